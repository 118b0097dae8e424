"""Evaluating a committed model: asking those who have a test set or hold out examples, and hearing their answers."""

import math
from collections.abc import Iterator, Mapping

from services.aggregator import outcome, protocol
from services.aggregator.context import JobContext
from services.aggregator.evaluation import (
    Evaluation,
    evaluators,
    next_tester,
    nobody_has_tests,
    part_of,
    part_of_tests,
    whose_tests,
)
from services.aggregator.opening import by_group
from services.aggregator.outcome import Unsound
from shared import names
from shared.amqp import topology
from shared.errors import Stale
from shared.events import BlobRef, EvaluateModel, ModelEvaluated, slices
from shared.record import parts
from shared.redis.roster import groups
from shared.s3.json_records import reading


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
    states = tuple(map(context.client_history.states.get, clients)) if context.client_history.states else ()
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


def on_model_evaluated(context: JobContext, event: ModelEvaluated) -> protocol.Input:
    """Keeps the figures of a round's model; the job goes on once all who were asked have answered."""
    group = whose_tests(context.spec, event.part)
    is_wanted = context.spec.evaluate.where == "server" and group is not None and event.examples > 0
    if event.round not in context.evaluations and not is_wanted:
        raise Stale(f"the evaluation of round {event.round} was asked for by another owner, or is complete")
    _check_model(context, event)
    pending = context.evaluations.setdefault(event.round, Evaluation(event.round, {event.part}))
    if event.error is not None:
        context.log.warning("not evaluated", round=event.round, reason=event.error)
        context.faults.note("not-evaluated", event.error, event.round)
    if group is not None and event.part in pending.parts:
        if not event.examples:
            pending.tried[group] = event.error or ""
            if event.error is None and group not in context.untested:
                context.untested.add(group)
                if nobody_has_tests(context.spec, context.untested):  # said once, not in each round
                    context.faults.note("not-evaluated", pending.untested(context.spec), event.round)
            return protocol.Untested(event.round)
        context.tester = group
    if not pending.take(event):
        raise Stale(f"round {event.round} is waiting for other evaluations")
    return complete(context, pending)


def _check_model(context: JobContext, event: ModelEvaluated) -> None:
    """`Stale` where what was evaluated is not the model of a committed round, or is known to be evaluated."""
    pending, blobs, model = context.evaluations.get(event.round), context.edges.blobs, None
    if pending is not None and pending.model is not None:
        model = pending.model.digest
    elif event.round <= context.committed and not blobs.exists(names.evaluation_blob(context.job, event.round)):
        key = names.manifest_blob(context.job, event.round)  # an earlier owner asked
        with reading(key):
            model = blobs.get_json(key)["model"]["digest"]
    if event.model != model:
        raise Stale(f"{event.trainer} evaluated {event.model[:12]}…, which round {event.round} does not wait for")


def complete(context: JobContext, pending: Evaluation) -> protocol.Evaluated:
    """Records what those have answered who were asked how good a model is, and what that says of the job."""
    if pending.examples:
        event = next(iter(pending.answered.values()))
        metrics, clients = pending.metrics, pending.clients
        late = pending.round < context.judged  # a later model's figures have come before
        unsound = outcome.after(Unsound() if late else context.unsound, pending.round, metrics, clients)
        if not late:
            context.judged, context.unsound = pending.round, unsound
            context.measured(metrics)
            context.evaluated = {**context.evaluated, **clients}
        # The ledger first: it knows whether the job is still ours to write about.
        context.edges.ledger.set_metrics(context.job, context.fence, context.metrics)
        record = {"job": context.job, "model": event.model, **pending.document(), **unsound.document()}
        key = names.evaluation_blob(context.job, pending.round)
        context.edges.blobs.put_json(key, parts.split(context.edges.blobs, key, record, ("clients",)))
        context.log.info("evaluated", round=pending.round, trainer=event.trainer, metrics=metrics)
    stop, enough = context.spec.evaluate.stop, ""
    if stop is not None and stop.metric in pending.metrics:
        context.progress[pending.round] = pending.metrics[stop.metric]
        enough = outcome.early_stop(stop, [context.progress[number] for number in sorted(context.progress)])
    elif stop is not None:
        context.faults.note(
            "not-evaluated", f"nobody measured {stop.metric}, which evaluate.stop goes by", pending.round
        )
    del context.evaluations[pending.round]  # last: where a server was away, the answer comes again
    return protocol.Evaluated(pending.round, enough, pending.unmeasured(context.spec))
