"""Taking a seat: from the record in the store and in the ledger to where the engine begins."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.aggregator import client_history, job_state, manifests, outcome, protocol
from services.aggregator.accepted_updates import by_blob, gave_up, was_refused
from services.aggregator.committing import clear_away, tell_round_end
from services.aggregator.context import JobContext
from services.aggregator.ending import conclude
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
    """Brings the ledger up to the store, the model into memory, and says what is to be done first."""
    result = archive.result(context.edges.blobs, context.job)
    if result is not None:  # its owner died before it said so
        conclude(context, result.end)
        return job_state.State(context.spec, "ended"), ()
    context.metrics = record.metrics
    context.committed = _catch_up(context, record)
    state, effects = _begin(context, record)
    if record.claims > 1 or context.committed >= 0:
        context.log.info("took over", round=state.round, phase=state.phase, claims=record.claims)
        context.faults.note("takeover", f"fence {context.fence}, round {state.round}, {state.phase}", state.round)
    return state, effects


def _catch_up(context: JobContext, record: JobRecord) -> int:
    """The last committed round, its model loaded; the ledger knows of it when this returns."""
    committed = archive.committed_since(context.edges.blobs, context.job, record.round)
    for number in range(record.round + 1, committed + 1):
        with _manifest(context, number) as missed:
            came = manifests.came_to(missed, _pieces(context, number, missed))
        context.edges.ledger.advance(context.job, context.fence, number, came)
    if committed < 0:
        return committed
    with _manifest(context, committed) as manifest:
        left = {name: _ref(manifest.get(name)) for name in ("base", "server", "delta", "memory")}
        model, metrics = BlobRef.model_validate(manifest["model"]), figures(manifest["metrics"])
    context.accumulator.load(model, left["server"])
    context.previous, context.server, context.delta = left["base"], left["server"], left["delta"]
    if left["memory"] is not None:
        with reading(left["memory"].key):
            head = context.edges.blobs.get_json(left["memory"].key)
            histories = names.histories(context.job, committed)
            context.client_history = client_history.read(parts.joined(context.edges.blobs, histories, head))
        context.history_blob = left["memory"]
    if context.spec.evaluate.where != "server":  # what the next round's end tells selection
        with _evaluation(context, committed) as head:
            found = parts.joined(context.edges.blobs, names.evaluation_blob(context.job, committed), head)
            context.evaluated = {client: figures(own) for client, own in found.get("clients", {}).items()}
    _recall_bases(context, committed)
    _recall_soundness(context, committed)
    context.first_opened = record.started
    context.metrics = fitting({**context.metrics, **metrics} | context.metrics)
    # Its owner may have died before it said so, or before it tidied up.
    with reading(names.manifest_blob(context.job, committed)):
        tell_round_end(context, manifest)
    clear_away(context, committed)
    return committed


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


def _recall_soundness(context: JobContext, committed: int) -> None:
    """Recalls which figures of the last evaluation, one of the last rounds', were not finite."""
    evaluated = (number for number in range(committed, -1, -1) if job_state.is_evaluated(context.spec, number))
    for number in itertools.islice(evaluated, LATE):
        with _evaluation(context, number) as found:
            if found:
                context.judged, context.unsound = number, outcome.read(found)
                return


def _recall_progress(context: JobContext, committed: int) -> str:
    """The figures that may end the job, and why they do; empty where they do not."""
    stop = context.spec.evaluate.stop
    if stop is None:
        return ""
    for number in range(committed + 1):
        with _evaluation(context, number) as found:
            measured = figures(found.get("metrics", {}))
        if stop.metric in measured:
            context.progress[number] = measured[stop.metric]
    return outcome.early_stop(stop, [context.progress[number] for number in sorted(context.progress)])


def _in_flight(context: JobContext) -> dict[str, int]:
    """Who is at work since an earlier round."""
    if context.committed < 0 or not context.spec.max_staleness:
        return {}
    if context.edges.blobs.exists(names.abandoned_blob(context.job, context.committed + 1, 1)):
        return {}  # they were told that it is over, and are asked anew
    in_flight: dict[str, int] = {}
    with _manifest(context, context.committed) as manifest:
        for piece in _pieces(context, context.committed, manifest):
            answered = {update["client"] for update in piece["updates"]} | gave_up(piece["rejected"])
            unanswered = [client for client in piece["cohort"] if client not in answered]
            in_flight |= job_state.still_in_flight(
                context.spec, context.committed, unanswered, piece.get("carried", {})
            )
    return in_flight


def _begin(context: JobContext, record: JobRecord) -> job_state.Step:
    """With the open or closed round of an earlier owner, or with the next one."""
    spec, ledger, committed = context.spec, context.edges.ledger, context.committed
    if record.claims > CLAIMS:
        given_up = f"its aggregator died {record.claims - 1} times without committing a round"
        return job_state.State(spec, "ended", committed + 1), (protocol.End("failed", given_up),)
    done = _recall_progress(context, committed)
    pending = ledger.round(context.job, committed + 1)
    match pending.state if pending else "none":
        case "open" if pending:
            return _asking_again(context, _reopen(context, pending))
        case "closed" if pending:
            answered = {*pending.accepted, *gave_up(pending.rejected)}
            step = job_state.closing(spec, pending.number, pending.attempt, pending.cohort, answered, pending.carried)
            return _asking_again(context, step)
        case "failed" if pending and record.wanted.status == "stopped":
            return job_state.State(spec, "ended", pending.number), (protocol.End("stopped", record.wanted.reason),)
        case "failed" if pending:
            return job_state.abandoned(spec, pending.number, pending.attempt, pending.reason)
    waited = ledger.now() - record.waiting if record.waiting else 0.0
    return job_state.begin(
        spec,
        committed,
        now=context.edges.clock(),
        waited=waited,
        evaluated=_is_evaluated(context),
        done=done,
        in_flight=_in_flight(context),
    )


def _asking_again(context: JobContext, step: job_state.Step) -> job_state.Step:
    """With the evaluation of the last committed model asked for again, whose answers went to an earlier owner."""
    state, effects = step
    if _is_evaluated(context) or not job_state.is_evaluated(context.spec, context.committed):
        return step
    return state, (protocol.Evaluate(context.committed), *effects)


def _is_evaluated(context: JobContext) -> bool:
    return context.committed < 0 or context.edges.blobs.exists(names.evaluation_blob(context.job, context.committed))


def _reopen(context: JobContext, pending: RoundRecord) -> job_state.Step:
    """Folds what was accepted, from what the store keeps of it."""
    context.announced = True
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
