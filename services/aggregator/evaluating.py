"""Evaluation of a committed model: asks a trainer with the test set and clients with held-out examples for figures."""

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
from shared import names
from shared.amqp import topology
from shared.errors import Stale
from shared.events import BlobRef, EvaluateModel, ModelEvaluated, slices
from shared.record import parts
from shared.record.rounds import Unsound
from shared.redis.roster import groups
from shared.s3.json_records import reading


def evaluate(context: JobContext, state: State, number: int) -> Iterator[protocol.Input]:
    """Requests figures of the model: on the test set of a pool or silo that is alive, and on clients' own examples.

    The evaluation is complete at once if no request could be made and all pools and silos have reported that they have
    no test set.
    """
    model, spec, evaluations = context.accumulator.model, context.spec, state.evaluations
    if model is None:
        return
    alive = groups(context.edges.roster.alive())  # `state.alive` is empty if this owner took over an open round
    tester = None
    if spec.evaluate.where != "clients":
        tester = next_tester(spec, alive, evaluations.untested, evaluations.tester)
    on_clients = list(_on_clients(context, alive, number))
    parts_asked = {part_of(clients) for _, clients in on_clients}
    if tester is not None:
        parts_asked.add(part_of_tests(spec, tester))
    pending = Evaluation(number, frozenset(parts_asked), model=model.blob)
    if tester is not None:
        _publish(context, state, pending, model.blob, tester)
    for group, clients in on_clients:
        _publish(context, state, pending, model.blob, group, clients)
    yield protocol.EvaluationChanged(pending)
    if not parts_asked and nobody_has_tests(spec, evaluations.untested):
        yield complete(context, state, pending)


def ask_another(context: JobContext, state: State, number: int) -> Iterator[protocol.Input]:
    """Asks another silo to evaluate on its test set; if none is left, the evaluation may be complete without it."""
    before, spec, evaluations = state.evaluations.pending.get(number), context.spec, state.evaluations
    if before is None or before.model is None:
        return
    alive = groups(context.edges.roster.alive())
    parts = frozenset(before.parts) - {part_of_tests(spec, group) for group in before.tried}
    tester = next_tester(spec, alive, {*evaluations.untested, *before.tried}, evaluations.tester)
    if tester is not None:
        pending = replace(before, parts=parts | {part_of_tests(spec, tester)})
        _publish(context, state, pending, before.model, tester)
        yield protocol.EvaluationChanged(pending)
        return
    context.log.warning("nobody has a test set", round=number)
    pending = replace(before, parts=parts)
    yield protocol.EvaluationChanged(pending)
    if pending.complete:
        yield complete(context, state, pending)


def _publish(
    context: JobContext, state: State, pending: Evaluation, model: BlobRef, group: str, clients: tuple[str, ...] = ()
) -> None:
    """Asks a pool or silo to evaluate the model: on clients' held-out examples, or without clients on its test set."""
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
    """Yields each pool or silo with clients to evaluate on; a pool's clients are cut into a part for each slot."""
    spec = context.spec
    if spec.evaluate.where == "server":
        return
    for group, members in by_group(spec, evaluators(spec, alive, number)).items():
        part_size = math.ceil(len(members) / max(1, alive.get(group, 1)))
        for part in slices(members, stateful=True, most=part_size):
            yield group, part


def on_model_evaluated(context: JobContext, state: State, event: ModelEvaluated) -> protocol.Input:
    """Adds an answer to a round's evaluation, and completes it once all parts are answered; `Stale` if unexpected.

    `group` is the pool or silo whose test set was measured. An answer to a request of an earlier owner still counts if
    the test set is all that the job evaluates on, since that one part is the whole evaluation.
    """
    evaluations, group = state.evaluations, whose_tests(context.spec, event.part)
    is_whole_evaluation = context.spec.evaluate.where == "server" and group is not None and event.examples > 0
    if event.round not in evaluations.pending and not is_whole_evaluation:
        raise Stale(f"the evaluation of round {event.round} was asked for by another owner, or is complete")
    _check_model(context, state, event)
    pending = evaluations.pending.get(event.round) or Evaluation(event.round, frozenset({event.part}))
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
    """Records that a pool or silo could not measure a model on a test set, because of `error` or for lack of one."""
    tried = replace(pending, tried={**pending.tried, group: error or ""})
    is_new = error is None and group not in state.evaluations.untested
    if is_new and nobody_has_tests(context.spec, state.evaluations.untested | {group}):  # once, not in each round
        context.faults.note("not-evaluated", tried.untested(context.spec), pending.round)
    return protocol.Untested(pending.round, tried, group if is_new else "")


def _check_model(context: JobContext, state: State, event: ModelEvaluated) -> None:
    """Raises `Stale` unless the evaluated model is that of a committed round that waits for its evaluation."""
    pending, blobs, model = state.evaluations.pending.get(event.round), context.edges.blobs, None
    if pending is not None and pending.model is not None:
        model = pending.model.digest
    elif event.round <= state.artifacts.round and not blobs.exists(names.evaluation_blob(context.job, event.round)):
        key = names.manifest_blob(context.job, event.round)  # an earlier owner requested the evaluation
        with reading(key):
            model = blobs.get_json(key)["model"]["digest"]
    if event.model != model:
        raise Stale(f"{event.trainer} evaluated {event.model[:12]}…, which round {event.round} does not wait for")


def complete(context: JobContext, state: State, pending: Evaluation, tester: str = "") -> protocol.Evaluated:
    """Records a complete evaluation; returns its figures, and the reason to end the job if they give one.

    If a server is away, the state has not changed, and RabbitMQ redelivers the last answer.
    """
    evaluations, figures, metrics = state.evaluations, pending.metrics, state.metrics
    unsound, late = None, pending.round < evaluations.latest  # late: a later model's evaluation was complete before
    if pending.examples:
        event = next(iter(pending.answered.values()))
        record = {"job": context.job, "model": event.model, **pending.document()}
        not_finite = outcome.after(Unsound() if late else evaluations.unsound, pending.round, figures, pending.clients)
        if not late:
            unsound, metrics = not_finite, merge_metrics(state.metrics, figures)
        # The ledger is written first, because it refuses an owner whose fence is outdated.
        context.edges.ledger.set_metrics(context.job, context.fence, dict(metrics))
        key = names.evaluation_blob(context.job, pending.round)
        head = parts.split(context.edges.blobs, key, record | not_finite.document(), ("clients",))
        context.edges.blobs.put_json(key, head)
        context.log.info("evaluated", round=pending.round, trainer=event.trainer, metrics=figures)
    stop, done, progress = context.spec.evaluate.stop, "", {}
    if stop is not None and stop.metric in figures:
        progress = {pending.round: figures[stop.metric]}
        values = {**evaluations.progress, **progress}
        done = outcome.early_stop(stop, [values[number] for number in sorted(values)])
    elif stop is not None:
        detail = f"nobody measured {stop.metric}, which evaluate.stop goes by"
        context.faults.note("not-evaluated", detail, pending.round)
    return protocol.Evaluated(
        pending.round,
        done,
        pending.unmeasured(context.spec),
        metrics=metrics,
        clients=pending.clients,
        unsound=unsound,
        progress=progress,
        tester=tester,
    )
