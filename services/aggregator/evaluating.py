"""Asking how good a model is: whoever has a test set, and clients on what they hold out."""

import math
from collections.abc import Iterator, Mapping

from services.aggregator.context import JobContext
from services.aggregator.effects import by_group
from services.aggregator.evaluation import Evaluation, evaluators, next_tester, nobody_has_tests, part_of, part_of_tests
from shared.amqp import topology
from shared.events import BlobRef, EvaluateModel, slices
from shared.redis.roster import groups


def evaluate(context: JobContext, number: int) -> Evaluation | None:
    """Asks how good the model is: a pool or a silo that is alive, on the test set; clients, on their own examples.

    The evaluation, where it is complete by that: nobody has anything to measure the model on.
    """
    model, spec = context.accumulator.model, context.spec
    if model is None:
        return None
    alive = groups(context.edges.roster.alive())  # an owner that took over an open round has not looked yet
    pending = context.evaluations[number] = Evaluation(number, set(), model=model.blob)
    tester = next_tester(spec, alive, context.untested, context.tester) if spec.evaluate.where != "clients" else None
    on_clients = list(_on_clients(context, alive, number))
    pending.parts |= {part_of(clients) for _, clients in on_clients}
    if tester is not None:
        pending.parts.add(part_of_tests(spec, tester))
        _ask_how_good(context, pending, model.blob, tester)
    for group, clients in on_clients:
        _ask_how_good(context, pending, model.blob, group, clients)
    return pending if not pending.parts and nobody_has_tests(spec, context.untested) else None


def ask_another(context: JobContext, number: int) -> Evaluation | None:
    """Asks another silo for the test set of a round's evaluation; the evaluation, where it is complete by that."""
    pending, spec = context.evaluations.get(number), context.spec
    if pending is None or pending.model is None:
        return None
    alive = groups(context.edges.roster.alive())
    pending.parts -= {part_of_tests(spec, group) for group in pending.tried}
    tester = next_tester(spec, alive, {*context.untested, *pending.tried}, context.tester)
    if tester is not None:
        pending.parts.add(part_of_tests(spec, tester))
        _ask_how_good(context, pending, pending.model, tester)
        return None
    context.log.warning("nobody has a test set", round=number)
    return pending if pending.answered.keys() == pending.parts else None


def _ask_how_good(
    context: JobContext, pending: Evaluation, model: BlobRef, group: str, clients: tuple[str, ...] = ()
) -> None:
    states = tuple(map(context.memory.states.get, clients)) if context.memory.states else ()
    context.edges.bus.declare_once(topology.rounds(group))
    context.edges.bus.publish(
        EvaluateModel(
            job=context.job,
            group=group,
            round=pending.round,
            model=model,
            spec=context.spec,
            clients=clients,
            states=states,
            part=part_of(clients) if clients else part_of_tests(context.spec, group),
        )
    )


def _on_clients(context: JobContext, alive: Mapping[str, int], number: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Groups and the clients that they evaluate on: those of a pool in as many parts as it has slots."""
    spec = context.spec
    if spec.evaluate.where == "server":
        return
    chosen = evaluators(spec, alive, number)
    for group, members in by_group(spec, chosen).items():
        each = math.ceil(len(members) / max(1, alive.get(group, 1)))
        for part in slices(members, stateful=True, most=each):
            yield group, part
