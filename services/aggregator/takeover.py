"""Takeover of a job: from its record in the store and in the ledger to the state its next owner begins with.

A new job is taken over as well: its record is empty.
"""

import itertools
from dataclasses import replace

from services.aggregator import client_history, job_state, manifests, outcome, protocol
from services.aggregator.accepted_updates import gave_up, was_refused
from services.aggregator.client_history import ClientHistory
from services.aggregator.committing import clear_away, tell_round_end
from services.aggregator.context import JobContext
from services.aggregator.ending import conclude
from services.aggregator.evaluation import Evaluations
from services.aggregator.job_state import State
from services.aggregator.protocol import Artifacts
from shared import names
from shared.errors import Refused
from shared.events import fitting
from shared.job.job_spec import CLAIMS
from shared.record import archive, parts
from shared.record.rounds import AcceptedUpdate, Unsound, by_blob
from shared.redis.ledger import JobRecord, RoundRecord
from shared.s3.json_records import reading
from shared.s3.store import NotFound

LATE = 3  #: evaluations that may be on their way or have failed, before the last one that was made


def take_over(context: JobContext, record: JobRecord) -> job_state.Step:
    """Brings the ledger up to the store and the model into memory; returns the state, and what is to be done first."""
    result = archive.result(context.edges.blobs, context.job)
    if result is not None:  # its owner died before it said so
        conclude(context, result.end, ClientHistory())
        return State(context.spec, "ended"), ()
    known = _catch_up(context, record)
    if record.claims <= CLAIMS:
        progress = _recall_progress(context, known.artifacts.round)
        known = replace(known, evaluations=replace(known.evaluations, progress=progress))
    state, effects = _begin(context, known, record)
    if record.claims > 1 or known.artifacts.round >= 0:
        context.log.info("took over", round=state.round, phase=state.phase, claims=record.claims)
        context.faults.note("takeover", f"fence {context.fence}, round {state.round}, {state.phase}", state.round)
    state = replace(
        state,
        artifacts=known.artifacts,
        evaluations=known.evaluations,
        metrics=known.metrics,
        first_opened=known.first_opened,
        announced=state.phase == "open",  # by the owner that opened the round
    )
    return state, effects


def _catch_up(context: JobContext, record: JobRecord) -> State:
    """Facts of the last committed round, its model loaded; the ledger knows of the round when this returns."""
    committed = archive.committed_since(context.edges.blobs, context.job, record.round)
    for number in range(record.round + 1, committed + 1):
        missed = _committed(context, number)
        totals = manifests.came_to(missed.round, missed.lists())
        context.edges.ledger.advance(context.job, context.fence, number, totals)
    if committed < 0:
        return State(context.spec, metrics=record.metrics)
    last = _committed(context, committed)
    found = last.round
    context.accumulator.load(found.model, found.server)
    history = ClientHistory()
    if found.memory is not None:
        with reading(found.memory.key):
            head = context.edges.blobs.get_json(found.memory.key)
            histories = names.histories(context.job, committed)
            history = client_history.read(parts.joined(context.edges.blobs, histories, head))
    clients: dict[str, dict[str, float]] = {}
    if context.spec.evaluate.where != "server":  # selection learns them when the next round ends
        evaluation = archive.evaluation(context.edges.blobs, context.job, committed)
        clients = evaluation.clients if evaluation is not None else {}
    _recall_bases(context, committed)
    latest, unsound = _recall_unsound(context, committed)
    # The earlier owner may have died before it said so, or before it tidied up.
    tell_round_end(context, last)
    clear_away(context, committed)
    return State(
        context.spec,
        artifacts=Artifacts(committed, found.base, found.delta, found.server, history, found.memory),
        evaluations=Evaluations(latest=latest, unsound=unsound, clients=clients),
        metrics=fitting({**record.metrics, **found.metrics} | record.metrics),
        first_opened=record.started,
    )


def _committed(context: JobContext, number: int) -> archive.CommittedRound:
    """A committed round; `NotFound` if its manifest is gone."""
    found = archive.committed_round(context.edges.blobs, context.job, number)
    if found is None:
        raise NotFound(f"{names.manifest_blob(context.job, number)} is not in the store")
    return found


def _recall_bases(context: JobContext, committed: int) -> None:
    """The models that updates may refer to which began in an earlier round."""
    for number in range(max(1, committed + 1 - context.spec.max_staleness), committed + 1):
        context.accumulator.bases[number] = _committed(context, number - 1).round.model


def _recall_unsound(context: JobContext, committed: int) -> tuple[int, Unsound]:
    """The round of the last evaluation, among the last rounds, and its figures that were not finite; -1 without one."""
    evaluated = (number for number in range(committed, -1, -1) if job_state.is_evaluated(context.spec, number))
    for number in itertools.islice(evaluated, LATE):
        found = archive.evaluation(context.edges.blobs, context.job, number)
        if found is not None:
            return number, found.record.unsound
    return -1, Unsound()


def _recall_progress(context: JobContext, committed: int) -> dict[int, float]:
    """The figures that may end the job, by round; empty if none may."""
    stop, progress = context.spec.evaluate.stop, {}
    for number in range(committed + 1) if stop is not None else ():
        found = archive.evaluation(context.edges.blobs, context.job, number)
        if found is not None and stop is not None and stop.metric in found.record.metrics:
            progress[number] = found.record.metrics[stop.metric]
    return progress


def _in_flight(context: JobContext, committed: int) -> dict[str, int]:
    """Clients at work since an earlier round, and which."""
    if committed < 0 or not context.spec.max_staleness:
        return {}
    if context.edges.blobs.exists(names.abandoned_blob(context.job, committed + 1, 1)):
        return {}  # they were told that it is over, and are asked anew
    in_flight: dict[str, int] = {}
    for clients in _committed(context, committed).lists():
        answered = {update.client for update in clients.updates} | gave_up(clients.rejected)
        unanswered = [client for client in clients.cohort or () if client not in answered]
        in_flight |= job_state.still_in_flight(context.spec, committed, unanswered, clients.carried)
    return in_flight


def _begin(context: JobContext, known: State, record: JobRecord) -> job_state.Step:
    """Begins with the open or closed round of an earlier owner, or with the next one."""
    spec, ledger, committed = context.spec, context.edges.ledger, known.artifacts.round
    if record.claims > CLAIMS:
        given_up = f"its aggregator died {record.claims - 1} times without committing a round"
        return State(spec, "ended", committed + 1), (protocol.End("failed", given_up),)
    stop, progress = spec.evaluate.stop, known.evaluations.progress
    done = outcome.early_stop(stop, [progress[number] for number in sorted(progress)]) if stop is not None else ""
    pending = ledger.round(context.job, committed + 1)
    match pending.state if pending else "none":
        case "open" if pending:
            return _asking_again(context, committed, _reopen(context, pending))
        case "closed" if pending:
            answered = {*pending.accepted, *gave_up(pending.rejected)}
            step = job_state.closing(spec, pending.number, pending.attempt, pending.cohort, answered, pending.carried)
            return _asking_again(context, committed, step)
        case "failed" if pending and record.wanted.status == "stopped":
            return State(spec, "ended", pending.number), (protocol.End("stopped", record.wanted.reason),)
        case "failed" if pending:
            return job_state.abandoned(spec, pending.number, pending.attempt, pending.reason)
    waited = ledger.now() - record.waiting if record.waiting else 0.0
    return job_state.begin(
        spec,
        committed,
        now=context.edges.clock(),
        waited=waited,
        evaluated=_is_evaluated(context, committed),
        done=done,
        in_flight=_in_flight(context, committed),
    )


def _asking_again(context: JobContext, committed: int, step: job_state.Step) -> job_state.Step:
    """The step, with the evaluation of the last committed model asked for again: its answers went to another owner."""
    state, effects = step
    if _is_evaluated(context, committed) or not job_state.is_evaluated(context.spec, committed):
        return step
    return state, (protocol.Evaluate(committed), *effects)


def _is_evaluated(context: JobContext, committed: int) -> bool:
    return committed < 0 or context.edges.blobs.exists(names.evaluation_blob(context.job, committed))


def _reopen(context: JobContext, pending: RoundRecord) -> job_state.Step:
    """Folds what was accepted, from what the store keeps of it."""
    context.accumulator.begin(len(pending.cohort), pending.number)
    entries = AcceptedUpdate.of_ledger(names.accepted_key(context.job, pending.number), pending.accepted)
    for group in by_blob(entries.values()):
        try:
            context.accumulator.count_again(group)
        except (NotFound, Refused) as error:
            reason = f"its accepted update cannot be had: {error}"
            for update in group:
                context.edges.ledger.exclude(context.job, context.fence, pending.number, update.client, reason)
                context.faults.note("excluded", f"{update.client}: {error}", pending.number)
    accepted = frozenset(context.accumulator.counted)
    wrong = {client: reason for client, reason in pending.rejected.items() if client not in accepted}
    return job_state.reopened(
        context.spec,
        pending.number,
        pending.attempt,
        pending.cohort,
        accepted,
        failed=gave_up(wrong),
        refused=was_refused(wrong),
        why=next((f"{client}: {reason}" for client, reason in wrong.items()), ""),
        in_flight=pending.carried,
    )
