"""Takeover of a job: from its record in the store and in the ledger to the state its next owner begins with.

A new job is taken over as well: its record is empty.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from services.aggregator import client_history, job_state, manifests, outcome, protocol
from services.aggregator.accepted_updates import by_blob, gave_up, was_refused
from services.aggregator.client_history import ClientHistory
from services.aggregator.committing import clear_away, tell_round_end
from services.aggregator.context import JobContext
from services.aggregator.ending import conclude
from services.aggregator.evaluation import Evaluations
from services.aggregator.job_state import State
from services.aggregator.outcome import Unsound
from services.aggregator.protocol import Artifacts
from shared import names
from shared.errors import Refused
from shared.events import BlobRef, fitting
from shared.job.job_spec import CLAIMS
from shared.record import archive, parts
from shared.redis.ledger import JobRecord, RoundRecord
from shared.s3.json_records import figures, reading
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
        with _manifest(context, number) as missed:
            totals = manifests.came_to(missed, _pieces(context, number, missed))
        context.edges.ledger.advance(context.job, context.fence, number, totals)
    if committed < 0:
        return State(context.spec, metrics=record.metrics)
    with _manifest(context, committed) as manifest:
        left = {name: _ref(manifest.get(name)) for name in ("base", "server", "delta", "memory")}
        model, metrics = BlobRef.model_validate(manifest["model"]), figures(manifest["metrics"])
    context.accumulator.load(model, left["server"])
    history = ClientHistory()
    if left["memory"] is not None:
        with reading(left["memory"].key):
            head = context.edges.blobs.get_json(left["memory"].key)
            histories = names.histories(context.job, committed)
            history = client_history.read(parts.joined(context.edges.blobs, histories, head))
    clients: dict[str, dict[str, float]] = {}
    if context.spec.evaluate.where != "server":  # selection learns them when the next round ends
        with _evaluation(context, committed) as head:
            found = parts.joined(context.edges.blobs, names.evaluation_blob(context.job, committed), head)
            clients = {client: figures(own) for client, own in found.get("clients", {}).items()}
    _recall_bases(context, committed)
    latest, unsound = _recall_unsound(context, committed)
    # The earlier owner may have died before it said so, or before it tidied up.
    with reading(names.manifest_blob(context.job, committed)):
        tell_round_end(context, manifest)
    clear_away(context, committed)
    return State(
        context.spec,
        artifacts=Artifacts(committed, left["base"], left["delta"], left["server"], history, left["memory"]),
        evaluations=Evaluations(latest=latest, unsound=unsound, clients=clients),
        metrics=fitting({**record.metrics, **metrics} | record.metrics),
        first_opened=record.started,
    )


@contextmanager
def _manifest(context: JobContext, number: int) -> Iterator[dict[str, Any]]:
    """A committed round's manifest; `Refused` where what is taken from it is not there, or of another kind."""
    key = names.manifest_blob(context.job, number)
    with reading(key):
        yield context.edges.blobs.get_json(key)


def _pieces(context: JobContext, number: int, manifest: dict[str, Any]) -> Iterator[parts.Record]:
    """Pieces of a manifest, each with all that it tells of some clients."""
    return parts.pieces(context.edges.blobs, names.manifest_blob(context.job, number), manifest)


@contextmanager
def _evaluation(context: JobContext, number: int) -> Iterator[dict[str, Any]]:
    """The record of a round's evaluation, or its head where it is long; empty where there was none."""
    key = names.evaluation_blob(context.job, number)
    with reading(key):
        yield archive.optional(context.edges.blobs, key) or {}


def _ref(found: Any) -> BlobRef | None:
    return BlobRef.model_validate(found) if found else None


def _recall_bases(context: JobContext, committed: int) -> None:
    """The models that updates may refer to which began in an earlier round."""
    for number in range(max(1, committed + 1 - context.spec.max_staleness), committed + 1):
        with _manifest(context, number - 1) as before:
            context.accumulator.bases[number] = BlobRef.model_validate(before["model"])


def _recall_unsound(context: JobContext, committed: int) -> tuple[int, Unsound]:
    """The round of the last evaluation, among the last rounds, and its figures that were not finite; -1 without one."""
    evaluated = (number for number in range(committed, -1, -1) if job_state.is_evaluated(context.spec, number))
    for number in itertools.islice(evaluated, LATE):
        with _evaluation(context, number) as found:
            if found:
                return number, outcome.read(found)
    return -1, Unsound()


def _recall_progress(context: JobContext, committed: int) -> dict[int, float]:
    """The figures that may end the job, by round; empty if none may."""
    stop, progress = context.spec.evaluate.stop, {}
    for number in range(committed + 1) if stop is not None else ():
        with _evaluation(context, number) as found:
            measured = figures(found.get("metrics", {}))
        if stop is not None and stop.metric in measured:
            progress[number] = measured[stop.metric]
    return progress


def _in_flight(context: JobContext, committed: int) -> dict[str, int]:
    """Clients at work since an earlier round, and which."""
    if committed < 0 or not context.spec.max_staleness:
        return {}
    if context.edges.blobs.exists(names.abandoned_blob(context.job, committed + 1, 1)):
        return {}  # they were told that it is over, and are asked anew
    in_flight: dict[str, int] = {}
    with _manifest(context, committed) as manifest:
        for piece in _pieces(context, committed, manifest):
            answered = {update["client"] for update in piece["updates"]} | gave_up(piece["rejected"])
            unanswered = [client for client in piece["cohort"] if client not in answered]
            in_flight |= job_state.still_in_flight(context.spec, committed, unanswered, piece.get("carried", {}))
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
    for group in by_blob(pending.accepted):
        try:
            context.accumulator.count_again(group)
        except (NotFound, Refused) as error:
            reason = f"its accepted update cannot be had: {error}"
            for client in group:
                context.edges.ledger.exclude(context.job, context.fence, pending.number, client, reason)
                context.faults.note("excluded", f"{client}: {error}", pending.number)
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
