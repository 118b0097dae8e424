"""Taking a seat: from the record in the store and in the ledger to where the engine begins."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.aggregator import client_history, job_state, manifests, protocol, recovery, soundness, stopping
from services.aggregator.accepted_updates import by_blob, gave_up, was_refused
from services.aggregator.context import Seat
from services.aggregator.effects import clear_away, conclude, tell_round_end
from shared import names
from shared.errors import Refused
from shared.events import BlobRef, fitting
from shared.job.job_spec import CLAIMS
from shared.record import parts
from shared.redis.ledger import JobRecord, RoundRecord
from shared.s3.json_records import figures, reading
from shared.s3.store import NotFound

LATE = 3  #: evaluations that may be on their way or have failed, before the last one that was made


def take_over(seat: Seat, record: JobRecord) -> job_state.Step:
    """Brings the ledger up to the store, the model into memory, and says what is to be done first."""
    result = recovery.optional(seat.edges.blobs, names.result_blob(seat.job))
    if result is not None:  # its owner died before it said so
        conclude(seat, result)
        return job_state.State(seat.spec, "ended"), ()
    seat.metrics = record.metrics
    seat.committed = _catch_up(seat, record)
    state, effects = _begin(seat, record)
    if record.claims > 1 or seat.committed >= 0:
        seat.log.info("took over", round=state.round, phase=state.phase, claims=record.claims)
        seat.faults.note("takeover", f"fence {seat.fence}, round {state.round}, {state.phase}", state.round)
    return state, effects


def _catch_up(seat: Seat, record: JobRecord) -> int:
    """The last committed round, its model loaded; the ledger knows of it when this returns."""
    committed = recovery.committed(seat.edges.blobs, seat.job, record.round)
    for number in range(record.round + 1, committed + 1):
        with _manifest(seat, number) as missed:
            came = manifests.came_to(missed, _pieces(seat, number, missed))
        seat.edges.ledger.advance(seat.job, seat.fence, number, came)
    if committed < 0:
        return committed
    with _manifest(seat, committed) as manifest:
        left = {name: _ref(manifest.get(name)) for name in ("base", "server", "delta", "memory")}
        model, metrics = BlobRef.model_validate(manifest["model"]), figures(manifest["metrics"])
    seat.tally.load(model, left["server"])
    seat.previous, seat.server, seat.delta = left["base"], left["server"], left["delta"]
    if left["memory"] is not None:
        with reading(left["memory"].key):
            head = seat.edges.blobs.get_json(left["memory"].key)
            histories = names.histories(seat.job, committed)
            seat.memory = client_history.read(parts.joined(seat.edges.blobs, histories, head))
        seat.remembered = left["memory"]
    if seat.spec.evaluate.where != "server":  # what the next round's end tells selection
        with _evaluation(seat, committed) as head:
            found = parts.joined(seat.edges.blobs, names.evaluation_blob(seat.job, committed), head)
            seat.evaluated = {client: figures(own) for client, own in found.get("clients", {}).items()}
    _recall_bases(seat, committed)
    _recall_soundness(seat, committed)
    seat.first_opened = record.started
    seat.metrics = fitting({**seat.metrics, **metrics} | seat.metrics)
    # Its owner may have died before it said so, or before it tidied up.
    with reading(names.manifest_blob(seat.job, committed)):
        tell_round_end(seat, manifest)
    clear_away(seat, committed)
    return committed


@contextmanager
def _manifest(seat: Seat, number: int) -> Iterator[dict[str, Any]]:
    """A committed round's manifest; `Refused` where what is taken from it is not there, or of another kind."""
    key = names.manifest_blob(seat.job, number)
    with reading(key):
        yield seat.edges.blobs.get_json(key)


def _pieces(seat: Seat, number: int, manifest: dict[str, Any]) -> Iterator[parts.Record]:
    """Pieces of a manifest, each with all that it tells of some clients."""
    return parts.pieces(seat.edges.blobs, names.manifest_blob(seat.job, number), manifest)


@contextmanager
def _evaluation(seat: Seat, number: int) -> Iterator[dict[str, Any]]:
    """The record of a round's evaluation, or its head where it is long; empty where there was none."""
    key = names.evaluation_blob(seat.job, number)
    with reading(key):
        yield recovery.optional(seat.edges.blobs, key) or {}


def _ref(found: Any) -> BlobRef | None:
    return BlobRef.model_validate(found) if found else None


def _recall_bases(seat: Seat, committed: int) -> None:
    """The models that updates may refer to which began in an earlier round."""
    for number in range(max(1, committed + 1 - seat.spec.max_staleness), committed + 1):
        with _manifest(seat, number - 1) as before:
            seat.tally.bases[number] = BlobRef.model_validate(before["model"])


def _recall_soundness(seat: Seat, committed: int) -> None:
    """Recalls which figures of the last evaluation, one of the last rounds', were not finite."""
    evaluated = (number for number in range(committed, -1, -1) if job_state.is_evaluated(seat.spec, number))
    for number in itertools.islice(evaluated, LATE):
        with _evaluation(seat, number) as found:
            if found:
                seat.judged, seat.unsound = number, soundness.read(found)
                return


def _recall_progress(seat: Seat, committed: int) -> str:
    """The figures that may end the job, and why they do; empty where they do not."""
    stop = seat.spec.evaluate.stop
    if stop is None:
        return ""
    for number in range(committed + 1):
        with _evaluation(seat, number) as found:
            measured = figures(found.get("metrics", {}))
        if stop.metric in measured:
            seat.progress[number] = measured[stop.metric]
    return stopping.verdict(stop, [seat.progress[number] for number in sorted(seat.progress)])


def _flying(seat: Seat) -> dict[str, int]:
    """Who is at work since an earlier round."""
    if seat.committed < 0 or not seat.spec.max_staleness:
        return {}
    if seat.edges.blobs.exists(names.abandoned_blob(seat.job, seat.committed + 1, 1)):
        return {}  # they were told that it is over, and are asked anew
    flying: dict[str, int] = {}
    with _manifest(seat, seat.committed) as manifest:
        for piece in _pieces(seat, seat.committed, manifest):
            answered = {update["client"] for update in piece["updates"]} | gave_up(piece["rejected"])
            unanswered = [client for client in piece["cohort"] if client not in answered]
            flying |= job_state.still_flying(seat.spec, seat.committed, unanswered, piece.get("carried", {}))
    return flying


def _begin(seat: Seat, record: JobRecord) -> job_state.Step:
    """With the open or closed round of an earlier owner, or with the next one."""
    spec, ledger, committed = seat.spec, seat.edges.ledger, seat.committed
    if record.claims > CLAIMS:
        given_up = f"its aggregator died {record.claims - 1} times without committing a round"
        return job_state.State(spec, "ended", committed + 1), (protocol.End("failed", given_up),)
    done = _recall_progress(seat, committed)
    pending = ledger.round(seat.job, committed + 1)
    match pending.state if pending else "none":
        case "open" if pending:
            return _asking_again(seat, _reopen(seat, pending))
        case "closed" if pending:
            answered = {*pending.accepted, *gave_up(pending.rejected)}
            step = job_state.closing(spec, pending.number, pending.attempt, pending.cohort, answered, pending.carried)
            return _asking_again(seat, step)
        case "failed" if pending and record.wanted.status == "stopped":
            return job_state.State(spec, "ended", pending.number), (protocol.End("stopped", record.wanted.reason),)
        case "failed" if pending:
            return job_state.abandoned(spec, pending.number, pending.attempt, pending.reason)
    waited = ledger.now() - record.waiting if record.waiting else 0.0
    return job_state.begin(
        spec,
        committed,
        now=seat.edges.clock(),
        waited=waited,
        evaluated=_is_evaluated(seat),
        done=done,
        flying=_flying(seat),
    )


def _asking_again(seat: Seat, step: job_state.Step) -> job_state.Step:
    """With the evaluation of the last committed model asked for again, whose answers went to an earlier owner."""
    state, effects = step
    if _is_evaluated(seat) or not job_state.is_evaluated(seat.spec, seat.committed):
        return step
    return state, (protocol.Evaluate(seat.committed), *effects)


def _is_evaluated(seat: Seat) -> bool:
    return seat.committed < 0 or seat.edges.blobs.exists(names.evaluation_blob(seat.job, seat.committed))


def _reopen(seat: Seat, pending: RoundRecord) -> job_state.Step:
    """Folds what was accepted, from what the store keeps of it."""
    seat.announced = True
    seat.tally.begin(len(pending.cohort), pending.number)
    for group in by_blob(pending.accepted):
        try:
            seat.tally.count_again(group)
        except (NotFound, Refused) as error:
            reason = f"its accepted update cannot be had: {error}"
            for client in group:
                seat.edges.ledger.exclude(seat.job, seat.fence, pending.number, client, reason)
                seat.faults.note("excluded", f"{client}: {error}", pending.number)
    accepted = frozenset(seat.tally.counted)
    wrong = {client: reason for client, reason in pending.rejected.items() if client not in accepted}
    return job_state.reopened(
        seat.spec,
        pending.number,
        pending.attempt,
        pending.cohort,
        accepted,
        failed=gave_up(wrong),
        refused=was_refused(wrong),
        why=next((f"{client}: {reason}" for client, reason in wrong.items()), ""),
        flying=pending.carried,
    )
