"""Promises of `docs/guide/promises.md`, each as a function from the snapshot of a job to its violations.

This module is pure: `services.cli.verify.snapshot` reads the servers, and no function here does.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from services.cli.verify.snapshot import LedgerView, OpenRound, Round, Snapshot
from shared import names
from shared.job.job_spec import CLAIMS, EXTENDED
from shared.record.rounds import AcceptedUpdate, Fault, GridRecord
from shared.redis.ledger import ENDED, LOG

GRACE = 60.0  #: additional seconds for closing a round and for another aggregator to take over a job
SKEW = 5.0  #: seconds by which the clocks of two successive Redis servers may differ

NOT_PROMISED = (
    "that a client trains only once: work is repeated after a fault, and counted once",
    "anything beyond the loss of the object store: it is the record, so back it up",
)

Problems = Iterator[str]


class Promise(NamedTuple):
    """Promise, with three functions of the snapshot that check it."""

    name: str
    says: str
    checked: Callable[[Snapshot], str]  # describes the checked objects
    problems: Callable[[Snapshot], Problems]
    notes: Callable[[Snapshot], Iterator[str]] = lambda _snapshot: iter(())


@dataclass(frozen=True)
class Finding:
    """Result of checking one promise: what was checked, and which problems were found."""

    promise: str
    says: str
    checked: str
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.problems

    def document(self) -> dict[str, Any]:
        return {**vars(self), "holds": self.holds}


def judge(snapshot: Snapshot) -> list[Finding]:
    """Checks every promise, in order."""
    return [
        Finding(
            promise.name,
            promise.says,
            promise.checked(snapshot),
            tuple(promise.problems(snapshot)),
            tuple(promise.notes(snapshot)),
        )
        for promise in _PROMISES
    ]


# --- P1 -------------------------------------------------------------------------------------


def every_update_is_accounted_for(snapshot: Snapshot) -> Problems:
    """P1: cohort = updates ∪ rejected ∪ unanswered, and each rejected client has a reason."""
    for past in snapshot.rounds:
        found = past.manifest
        counted, told = {update.client for update in found.updates}, {*found.rejected, *(found.unanswered or ())}
        cohort = set(found.cohort) if found.cohort is not None else counted | told
        yield from _each(past, sorted(counted - cohort), "is in the model and was not asked")
        yield from _each(past, sorted(set(found.unanswered or ()) - cohort), "is unanswered and was not asked")
        if found.unanswered is not None:  # older manifests do not list unanswered clients
            yield from _each(past, sorted(cohort - counted - told), "was asked, and nothing says what became of it")
        unexplained = sorted(client for client, reason in found.rejected.items() if not reason.strip())
        yield from _each(past, unexplained, "was rejected without a reason")
    yield from _of_open_round(snapshot.redis.open if snapshot.redis else None)


def _of_open_round(open_round: OpenRound | None) -> Problems:
    if open_round is None or open_round.record.state == "committed":
        return
    record = open_round.record
    where = f"round {record.number}, {record.state}"
    for client in sorted(record.accepted.keys() - set(record.cohort)):
        yield f"{where}: {client} is accepted and was not asked"
    for client in sorted(client for client, reason in record.rejected.items() if not reason.strip()):
        yield f"{where}: {client} was rejected without a reason"
    if record.state != "failed":
        for client in open_round.gone:
            yield f"{where}: {client}'s update is accepted and not in the bucket"
    elif not record.reason.strip():
        yield f"{where}: its updates are in no model, and there is no reason"


def _p1_checked(snapshot: Snapshot) -> str:
    rounds = [past.manifest for past in snapshot.rounds]
    told = (
        f"{_rounds(snapshot)}: {sum(len(found.updates) for found in rounds)} updates in models, "
        f"{sum(len(found.rejected) for found in rounds)} refused, "
        f"{sum(len(found.unanswered or ()) for found in rounds)} unanswered"
    )
    if snapshot.redis and snapshot.redis.open and snapshot.redis.open.record.state in ("open", "closed"):
        record = snapshot.redis.open.record
        told += f"; round {record.number}, {record.state}: {len(record.accepted)} of {len(record.cohort)} accepted"
    return told


# --- P2 -------------------------------------------------------------------------------------


def a_client_counts_once(snapshot: Snapshot) -> Problems:
    """P2: each client is unique in its round, has a separate blob, and the weights add up."""
    for past in snapshot.rounds:
        found = past.manifest
        often = Counter(update.client for update in found.updates)
        yield from _each(past, sorted(client for client, times in often.items() if times > 1), "is counted twice")
        blobs = Counter(group[0].blob.key for group in found.groups if group[0].batch is None for _ in group)
        yield from _each(past, sorted(key for key, times in blobs.items() if times > 1), "is counted twice")
        for update in found.updates:
            owner, trained = update.batch or update.client, past.number - update.staleness
            if update.blob.key != names.update_blob(snapshot.job, trained, owner, update.blob.digest):
                yield f"round {past.number}: {update.client} is counted with {update.blob.key}, which is not its own"
        weight = sum(update.examples for update in found.updates)
        if weight != found.weight:
            yield f"round {past.number}: its updates weigh {weight}, and the manifest says {found.weight}"


def _p2_checked(snapshot: Snapshot) -> str:
    examples = sum(past.manifest.weight for past in snapshot.rounds if past.number)
    return f"{_rounds(snapshot)}: every client, blob and weight; {examples} examples in all"


# --- P3 -------------------------------------------------------------------------------------


def a_round_has_one_model(snapshot: Snapshot) -> Problems:
    """P3: the models form a chain, exist bit by bit, and can be reproduced from the kept updates."""
    for number, problem in sorted(snapshot.unreadable.items()):
        yield f"round {number}: {problem}"
    for before, past in pairwise(snapshot.rounds):
        base = past.manifest.base
        if past.number == before.number + 1 and (base is None or base.digest != before.manifest.model.digest):
            yield (
                f"round {past.number}: began with the model {base.digest[:12] if base else 'none'}, "
                f"and round {before.number} ended with {before.manifest.model.digest[:12]}"
            )
    for past in snapshot.rounds:
        yield from _of_model(snapshot, past)
    yield from _of_result(snapshot)


def _of_model(snapshot: Snapshot, past: Round) -> Problems:
    found, where = past.manifest, f"round {past.number}"
    if past.model:
        yield f"{where}: its model: {past.model}"
    if found.model.key != names.model_blob(snapshot.job, past.number, found.model.digest):
        yield f"{where}: its model lies at {found.model.key}"
    if past.kept and past.kept < len(found.updates):
        yield f"{where}: {len(found.updates) - past.kept} of its {len(found.updates)} kept updates are gone"
    if past.why_not:
        yield f"{where}: cannot be folded again: {past.why_not}"
    elif past.replayed is not None and past.replayed != found.model.digest:
        yield f"{where}: its updates make the model {past.replayed[:12]}, and {found.model.digest[:12]} was committed"
    if found.base is None and found.updates and found.updates[0].blob.digest != found.model.digest:
        yield f"{where}: its model is not the one that {found.updates[0].client} sent"


def _of_result(snapshot: Snapshot) -> Problems:
    if snapshot.result is None or not (snapshot.redis is None or snapshot.redis.ended):
        return
    if snapshot.final:
        yield f"model.safetensors: {snapshot.final}"
    model = snapshot.result.model
    last = snapshot.rounds[-1].manifest.model.digest if snapshot.rounds else None
    if (model.digest if model else None) != last:
        yield (
            f"result.json has the model {model.digest[:12] if model else 'none'}, "
            f"and the last round's is {last[:12] if last else 'none'}"
        )


def _p3_checked(snapshot: Snapshot) -> str:
    folded = sum(past.replayed is not None for past in snapshot.rounds)
    gone = sum(not past.kept for past in snapshot.rounds)
    told = f"{_many(len(snapshot.rounds), 'model')} read, {_many(folded, 'round')} folded again"
    if gone:
        told += f", {gone} not: their updates are not kept (keep_updates)"
    return told


# --- P4 -------------------------------------------------------------------------------------


def rounds_move_forward(snapshot: Snapshot) -> Problems:
    """P4: round numbers have no gaps, times and fences are in order, and the ledger agrees with the bucket."""
    numbers = {past.number for past in snapshot.rounds} | snapshot.unreadable.keys()
    for number in sorted(set(range(max(numbers, default=-1))) - numbers):
        yield f"round {number} has no manifest, and a later one has"
    for past in snapshot.rounds:
        if past.manifest.round != past.number:
            yield f"round {past.number}: its manifest says round {past.manifest.round}"
        if past.manifest.committed < past.manifest.opened:
            yield f"round {past.number} was committed before it was opened"
    for before, past in pairwise(snapshot.rounds):
        if past.manifest.opened < before.manifest.committed - SKEW:
            yield f"round {past.number} was opened before round {before.number} was committed"
    for (_, earlier), (number, later) in pairwise(_fences(snapshot)):
        if later < earlier:
            yield f"round {number} was committed under fence {later}, after one under {earlier}"
    if snapshot.redis:
        yield from _of_ledger(snapshot, snapshot.redis)


def _fences(snapshot: Snapshot) -> list[tuple[int, int]]:
    """Rounds and the fences of their owners; older manifests do not record fences."""
    return [(past.number, past.manifest.fence) for past in snapshot.rounds if past.manifest.fence is not None]


def _of_ledger(snapshot: Snapshot, redis: LedgerView) -> Problems:
    last = max((snapshot.last, *snapshot.unreadable))
    if redis.before.round > last:
        yield f"Redis says that round {redis.before.round} is committed; the last manifest is that of round {last}"
    behind = last - redis.after.round
    if behind > (0 if redis.ended else 1):
        yield f"Redis says that round {redis.after.round} is the last one; there is a manifest of round {last}"
    fences = _fences(snapshot)
    # A job without an owner may have a lower fence, because Redis has just lost it.
    if fences and redis.after.owner and redis.after.fence < fences[-1][1]:
        yield f"Redis has fence {redis.after.fence}; a round was committed under {fences[-1][1]}"


def _p4_checked(snapshot: Snapshot) -> str:
    owners = len({fence for _, fence in _fences(snapshot)})
    told = f"{_rounds(snapshot)} in order, {_many(owners, 'owner')}"
    return told + ("" if snapshot.redis is None else f"; Redis is at round {snapshot.redis.after.round}")


# --- P5 -------------------------------------------------------------------------------------


def everything_ends(snapshot: Snapshot) -> Problems:
    """P5: rounds end by their deadline and the grace; a job has a result if it ended, or else an owner."""
    for past in snapshot.rounds:
        found = past.manifest
        if _overdue(snapshot, found.opened, found.deadline, found.committed):
            yield f"round {past.number} took {found.committed - found.opened:.0f} s; {_allowed(snapshot)}"
    if snapshot.redis is None:
        return
    redis, record = snapshot.redis, snapshot.redis.after
    if redis.ended:
        yield from _of_end(snapshot, redis)
    elif record.status in ("running", "waiting") and redis.now > redis.lease + GRACE:
        yield (
            f"the job is {record.status}, and nobody has owned it for {redis.now - redis.lease:.0f} s; "
            "start an aggregator: `python -m services.aggregator`"
        )
    if redis.open is not None and record.status not in ENDED and redis.open.record.state in ("open", "closed"):
        pending = redis.open.record
        if _overdue(snapshot, pending.opened, pending.deadline, redis.now):
            yield f"round {pending.number} is open for {redis.now - pending.opened:.0f} s; {_allowed(snapshot)}"


def _overdue(snapshot: Snapshot, opened: float, deadline: float | None, at: float) -> bool:
    """Tells whether `at` is too late by both the job's deadline and the round's, which may differ after a resume."""
    by_job = opened + EXTENDED * snapshot.spec.rounds.deadline
    return at > max(by_job, deadline or 0.0) + GRACE


def _allowed(snapshot: Snapshot) -> str:
    return f"{EXTENDED} × rounds.deadline and {GRACE:.0f} s are {_limit(snapshot):.0f} s"


def _limit(snapshot: Snapshot) -> float:
    return EXTENDED * snapshot.spec.rounds.deadline + GRACE


def _of_end(snapshot: Snapshot, redis: LedgerView) -> Problems:
    record, result = redis.after, snapshot.result
    if result is None:
        yield f"the job is {record.status} and has no result.json"
        return
    if result.outcome != record.status:
        yield f"result.json says {result.outcome}, and Redis {record.status}"
    if result.rounds != max(0, snapshot.last):
        yield f"result.json says {result.rounds} rounds, and the last manifest is that of round {snapshot.last}"


def _p5_checked(snapshot: Snapshot) -> str:
    slowest = max((past.manifest.committed - past.manifest.opened for past in snapshot.rounds), default=0.0)
    told = f"{_rounds(snapshot)}, the slowest took {slowest:.1f} s of {_limit(snapshot):.0f} s"
    if snapshot.redis is None:
        return told + ("; the job has a result" if snapshot.result else "")
    return f"{told}; the job is {snapshot.redis.after.status}"


# --- P6 -------------------------------------------------------------------------------------


def nothing_retries_for_ever(snapshot: Snapshot) -> Problems:
    """P6: attempts and owners are bounded, and each dead letter has a reason."""
    most = snapshot.spec.rounds.attempts
    for past in snapshot.rounds:
        if past.manifest.attempt > most:
            yield f"round {past.number} was tried {past.manifest.attempt} times; rounds.attempts is {most}"
    if snapshot.redis is not None:
        if snapshot.redis.open is not None and snapshot.redis.open.record.attempt > most:
            record = snapshot.redis.open.record
            yield f"round {record.number} is tried for the {record.attempt}th time; rounds.attempts is {most}"
        claims = snapshot.redis.after.claims
        if claims > CLAIMS and snapshot.redis.after.status not in ENDED:
            yield f"{claims} owners have had the job since its last committed round; at most {CLAIMS} may"
    for letter in snapshot.letters:
        if not letter.reason.strip():
            yield f"dead-letters has {letter.what} from {letter.queue or 'an unknown queue'}, and no reason with it"


def _p6_checked(snapshot: Snapshot) -> str:
    attempts = max((past.manifest.attempt for past in snapshot.rounds), default=1)
    told = f"{attempts} of {snapshot.spec.rounds.attempts} attempts at most"
    if snapshot.redis is not None:
        told += f", {_many(snapshot.redis.after.claims, 'owner')} since the last commit"
    told += f", {_many(len(snapshot.letters), 'dead letter')}"
    return told + (f"; {snapshot.unseen} more were not looked at" if snapshot.unseen else "")


def _p6_notes(snapshot: Snapshot) -> Iterator[str]:
    for letter in snapshot.letters:
        if letter.reason.strip():
            yield f"dead letter: {letter.what} from {letter.queue or 'an unknown queue'}: {letter.reason}"


# --- P7 -------------------------------------------------------------------------------------


def nothing_bad_was_folded(snapshot: Snapshot) -> Problems:
    """P7: every update is within the round's limits by the manifest, and sound if it is kept."""
    for past in snapshot.rounds:
        if past.manifest.grid is not None:
            for update in past.manifest.updates:
                if problem := _measured(update, past.manifest.grid):
                    yield f"round {past.number}: {update.client} {problem}"
        for problem in past.damaged:
            yield f"round {past.number}: {problem}"


def _measured(update: AcceptedUpdate, grid: GridRecord) -> str:
    """Describes the fault of an update by its entry in the manifest; empty if there is none."""
    if update.max_abs is None or update.norm is None:
        return "was folded and not measured"
    if not update.max_abs <= grid.max_abs:  # this form also catches NaN
        return f"was folded with a value of {update.max_abs:g}; the limit is {grid.max_abs:g}"
    if not math.isfinite(update.norm):
        return f"was folded with the norm {update.norm:g}"
    if not 1 <= update.examples <= grid.max_weight:
        return f"was folded with {update.examples} examples; allowed are 1 to {grid.max_weight}"
    return ""


def _p7_checked(snapshot: Snapshot) -> str:
    measured = sum(len(past.manifest.updates) for past in snapshot.rounds if past.number)
    read = sum(past.kept for past in snapshot.rounds)
    return f"{_many(measured, 'measured update')} within the limits, {_many(read, 'kept update')} read again"


# --- P8 -------------------------------------------------------------------------------------


def every_fault_is_seen(snapshot: Snapshot) -> Problems:
    """P8: every fault is in the manifest or the job's log, and in the counters."""
    log = snapshot.redis.log if snapshot.redis else ()
    lines = [Fault.model_validate(line) for line in log]
    lines += [line for past in snapshot.rounds for line in past.manifest.faults or ()]
    for past in snapshot.rounds:
        told = " ".join(line.detail for line in lines if line.round == past.number)
        silent = sorted(
            client for client, reason in past.manifest.rejected.items() if not reason.strip() and client not in told
        )
        yield from _each(past, silent, "was rejected, and nothing says why")
    takeovers = {line.round for line in lines if line.fault == "takeover"}
    for before, past in pairwise(snapshot.rounds):
        fences = before.manifest.fence, past.manifest.fence
        faults = past.manifest.faults
        # Older manifests do not list faults, and a full log has lost its first entries.
        known = faults is not None and len(faults) < LOG
        if known and None not in fences and fences[0] != fences[1] and not takeovers & {before.number, past.number}:
            yield f"round {past.number} has another owner than round {before.number}, and no takeover is recorded"
    if snapshot.redis is not None:
        for fault, count in sorted(Counter(line["fault"] for line in log).items()):
            if snapshot.redis.faults.get(fault, 0) < count:
                seen = snapshot.redis.faults.get(fault, 0)
                yield f"the log has {fault} {count} times, and fedq_faults_total counts {seen}"


def _p8_checked(snapshot: Snapshot) -> str:
    refused = sum(len(past.manifest.rejected) for past in snapshot.rounds)
    fences = [past.manifest.fence for past in snapshot.rounds]
    changes = sum(None not in pair and pair[0] != pair[1] for pair in pairwise(fences))
    told = f"{_many(refused, 'refusal')} with a reason, {_many(changes, 'takeover')}"
    return told + (f", {_many(len(snapshot.redis.log), 'line')} of the log" if snapshot.redis else "")


# --- words ----------------------------------------------------------------------------------


def _each(past: Round, clients: list[str], what: str) -> Problems:
    for client in clients:
        yield f"round {past.number}: {client} {what}"


def _rounds(snapshot: Snapshot) -> str:
    return _many(len(snapshot.rounds), "committed round")


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


_PROMISES = (
    Promise(
        "P1",
        "an accepted update is in its round's model, or listed with the reason why not",
        _p1_checked,
        every_update_is_accounted_for,
    ),
    Promise("P2", "a client counts at most once in a round", _p2_checked, a_client_counts_once),
    Promise("P3", "a round has one model, reproducible to the bit", _p3_checked, a_round_has_one_model),
    Promise("P4", "rounds only move forward", _p4_checked, rounds_move_forward),
    Promise("P5", "rounds and jobs end by their deadline and the grace", _p5_checked, everything_ends),
    Promise(
        "P6",
        "nothing is retried for ever, and what is given up says why",
        _p6_checked,
        nothing_retries_for_ever,
        _p6_notes,
    ),
    Promise("P7", "nothing corrupt, oversized, non-finite or stale is folded", _p7_checked, nothing_bad_was_folded),
    Promise("P8", "every fault is in a counter and in the record", _p8_checked, every_fault_is_seen),
)
