"""Evaluating a committed model: asking those who have a test set or hold out examples, and hearing their answers."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

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
from services.aggregator.job_state import State, merge_metrics
from services.aggregator.opening import by_group
from services.aggregator.outcome import Unsound
from shared import names
from shared.amqp import topology
from shared.errors import Stale
from shared.events import BlobRef, EvaluateModel, ModelEvaluated, slices
from shared.record import parts
from shared.redis.roster import groups
from shared.s3.json_records import reading


def evaluate(context: JobContext, state: State, number: int) -> Iterator[protocol.Input]:
    """Asks how good the model is: a pool or a silo that is alive, on the test set; clients, on their own examples.

    The evaluation is complete at once if nothing was asked and all have said that they have no test set.
    """
    model, spec, known = context.accumulator.model, context.spec, state.evaluations
    if model is None:
        return
    alive = groups(context.edges.roster.alive())  # an owner that took over an open round has not looked yet
    tester = next_tester(spec, alive, known.untested, known.tester) if spec.evaluate.where != "clients" else None
    on_clients = list(_on_clients(context, alive, number))
    parts_asked = {part_of(clients) for _, clients in on_clients}
    if tester is not None:
        parts_asked.add(part_of_tests(spec, tester))
    pending = Evaluation(number, frozenset(parts_asked), model=model.blob)
    if tester is not None:
        _ask_how_good(context, state, pending, model.blob, tester)
    for group, clients in on_clients:
        _ask_how_good(context, state, pending, model.blob, group, clients)
    yield protocol.EvaluationChanged(pending)
    if not parts_asked and nobody_has_tests(spec, known.untested):
        yield complete(context, state, pending)


def ask_another(context: JobContext, state: State, number: int) -> Iterator[protocol.Input]:
    """Asks another silo for the test set of a round's evaluation; without another, it may be complete by that."""
    found, spec, known = state.evaluations.pending.get(number), context.spec, state.evaluations
    if found is None or found.model is None:
        return
    alive = groups(context.edges.roster.alive())
    others = frozenset(found.parts) - {part_of_tests(spec, group) for group in found.tried}
    tester = next_tester(spec, alive, {*known.untested, *found.tried}, known.tester)
    if tester is not None:
        pending = replace(found, parts=others | {part_of_tests(spec, tester)})
        _ask_how_good(context, state, pending, found.model, tester)
        yield protocol.EvaluationChanged(pending)
        return
    context.log.warning("nobody has a test set", round=number)
    pending = replace(found, parts=others)
    yield protocol.EvaluationChanged(pending)
    if pending.complete:
        yield complete(context, state, pending)


def _ask_how_good(
    context: JobContext, state: State, pending: Evaluation, model: BlobRef, group: str, clients: tuple[str, ...] = ()
) -> None:
    history = state.artifacts.client_history
    states = tuple(map(history.states.get, clients)) if history.states else ()
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


def on_model_evaluated(context: JobContext, state: State, event: ModelEvaluated) -> protocol.Input:
    """Keeps the figures of a round's model; the job goes on once all who were asked have answered."""
    known, group = state.evaluations, whose_tests(context.spec, event.part)
    is_wanted = context.spec.evaluate.where == "server" and group is not None and event.examples > 0
    if event.round not in known.pending and not is_wanted:
        raise Stale(f"the evaluation of round {event.round} was asked for by another owner, or is complete")
    _check_model(context, state, event)
    pending = known.pending.get(event.round) or Evaluation(event.round, frozenset({event.part}))
    if event.error is not None:
        context.log.warning("not evaluated", round=event.round, reason=event.error)
        context.faults.note("not-evaluated", event.error, event.round)
    if group is not None and event.part in pending.parts and not event.examples:
        return _without_tests(context, state, pending, group, event.error)
    answered = pending.answered_by(event)
    if answered is pending:
        raise Stale(f"round {event.round} is waiting for other evaluations")
    tester = group or ""
    return (
        complete(context, state, answered, tester)
        if answered.complete
        else protocol.EvaluationChanged(answered, tester)
    )


def _without_tests(
    context: JobContext, state: State, pending: Evaluation, group: str, error: str | None
) -> protocol.Untested:
    """Notes that a pool or silo could not measure a model on a test set, because of `error` or for lack of one."""
    tried = replace(pending, tried={**pending.tried, group: error or ""})
    is_new = error is None and group not in state.evaluations.untested
    if is_new and nobody_has_tests(context.spec, state.evaluations.untested | {group}):  # said once, not in each round
        context.faults.note("not-evaluated", tried.untested(context.spec), pending.round)
    return protocol.Untested(pending.round, tried, group if is_new else "")


def _check_model(context: JobContext, state: State, event: ModelEvaluated) -> None:
    """Raises `Stale` unless the evaluated model is that of a committed round which waits for its evaluation."""
    pending, blobs, model = state.evaluations.pending.get(event.round), context.edges.blobs, None
    if pending is not None and pending.model is not None:
        model = pending.model.digest
    elif event.round <= state.artifacts.round and not blobs.exists(names.evaluation_blob(context.job, event.round)):
        key = names.manifest_blob(context.job, event.round)  # an earlier owner asked
        with reading(key):
            model = blobs.get_json(key)["model"]["digest"]
    if event.model != model:
        raise Stale(f"{event.trainer} evaluated {event.model[:12]}…, which round {event.round} does not wait for")


def complete(context: JobContext, state: State, pending: Evaluation, tester: str = "") -> protocol.Evaluated:
    """Records the answers of a complete evaluation, and returns what they say of the job.

    If a server is away nothing has changed here, and the last answer comes again.
    """
    known, figures, metrics = state.evaluations, pending.metrics, state.metrics
    unsound, late = None, pending.round < known.latest  # late: a later model's figures have come before
    if pending.examples:
        event = next(iter(pending.answered.values()))
        record = {"job": context.job, "model": event.model, **pending.document()}
        found = outcome.after(Unsound() if late else known.unsound, pending.round, figures, pending.clients)
        if not late:
            unsound, metrics = found, merge_metrics(state.metrics, figures)
        # The ledger first: it knows whether the job is still ours to write about.
        context.edges.ledger.set_metrics(context.job, context.fence, dict(metrics))
        key = names.evaluation_blob(context.job, pending.round)
        head = parts.split(context.edges.blobs, key, record | found.document(), ("clients",))
        context.edges.blobs.put_json(key, head)
        context.log.info("evaluated", round=pending.round, trainer=event.trainer, metrics=figures)
    stop, enough, progress = context.spec.evaluate.stop, "", {}
    if stop is not None and stop.metric in figures:
        progress = {pending.round: figures[stop.metric]}
        values = {**known.progress, **progress}
        enough = outcome.early_stop(stop, [values[number] for number in sorted(values)])
    elif stop is not None:
        detail = f"nobody measured {stop.metric}, which evaluate.stop goes by"
        context.faults.note("not-evaluated", detail, pending.round)
    return protocol.Evaluated(
        pending.round,
        enough,
        pending.unmeasured(context.spec),
        metrics=metrics,
        clients=pending.clients,
        unsound=unsound,
        progress=progress,
        tester=tester,
    )
