"""Snapshot of a job, read from bucket, Redis and dead letters as they are, without judging them.

The job may run meanwhile: moving state is read twice, and whatever changed in between is left out.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from services.cli.jobs import jobfile
from services.cli.report import history
from services.cli.servers import Servers
from services.cli.verify import replaying
from services.cli.verify.replaying import Replay
from shared import names
from shared.amqp.connection import Peeked
from shared.errors import Refused
from shared.events import BlobRef
from shared.job.job_spec import JobSpec
from shared.record import archive
from shared.record.job import Result
from shared.record.rounds import AcceptedUpdate, Manifest
from shared.redis.ledger import ENDED, JobRecord, RoundRecord
from shared.s3.store import Blobs, NotFound

File = npt.NDArray[np.uint8]

LETTERS = 1000  #: dead letters that are read


@dataclass(frozen=True)
class Round:
    """Committed round, with the results of reading its blobs again."""

    number: int
    manifest: Manifest
    model: str = ""  # the fault of the model's blob; empty if it is as the manifest says
    kept: int = 0  # number of the round's updates in the bucket
    damaged: tuple[str, ...] = ()  # the faults of kept updates
    replayed: str | None = None  # digest of the model folded from the kept updates; None if they were not folded
    why_not: str = ""  # reason why intact updates could not be folded


@dataclass(frozen=True)
class OpenRound:
    """Round that the ledger has as open, closed or failed."""

    record: RoundRecord
    gone: tuple[str, ...] = ()  # clients whose accepted update is not in the bucket


@dataclass(frozen=True)
class LedgerView:
    """View of the job in the ledger."""

    before: JobRecord  # read before the bucket was
    after: JobRecord
    now: float
    lease: float  # end of the lease in seconds since the epoch; 0 if the job has no owner
    open: OpenRound | None
    log: tuple[dict[str, Any], ...]
    faults: dict[str, int]

    @property
    def ended(self) -> bool:
        """Tells whether the job had ended before the bucket was read, with the same status afterwards."""
        return self.before.status in ENDED and self.after.status == self.before.status


@dataclass(frozen=True)
class DeadLetter:
    """Entry of `dead-letters` that belongs to this job."""

    what: str
    queue: str
    reason: str  # empty if the letter gives none


@dataclass(frozen=True)
class Snapshot:
    """Snapshot of all that is stored about a job."""

    job: str
    spec: JobSpec
    rounds: tuple[Round, ...]  # sorted by number
    unreadable: dict[int, str]  # the errors of invalid manifests, by round
    result: Result | None
    final: str  # the fault of model.safetensors; empty if there is none, or if the file is not due yet
    redis: LedgerView | None  # None if Redis does not know the job
    letters: tuple[DeadLetter, ...]
    unseen: int = 0  # dead letters beyond those that were read

    @property
    def last(self) -> int:
        """The last committed round; -1 if there is none."""
        return max((past.number for past in self.rounds), default=-1)


Tell = Callable[[str], None]  #: reports the current step to the user


def gather(servers: Servers, job: str, tell: Tell) -> Snapshot:
    """Reads all that is stored about a job; `BadInput` if there is no such job."""
    blobs, ledger = servers.blobs, servers.ledger
    before = ledger.job(job)
    spec = jobfile.amended(history.known_spec(blobs, ledger, job), (), names.job_blob(job))
    tell("reading manifests")
    manifests, unreadable = _manifests(blobs, job)
    after = ledger.job(job)
    result = archive.result(blobs, job)
    redis = None
    if before is not None and after is not None:
        redis = LedgerView(
            before=before,
            after=after,
            now=ledger.now(),
            lease=after.lease,
            open=_open_round(servers, job, max((before.round, *manifests)) + 1),
            log=tuple(ledger.log(job)),
            faults=ledger.faults(),  # read after the log, so that each fault in the log is counted
        )
    tell("reading dead letters")
    letters = servers.bus.peek(names.DEAD_LETTERS, LETTERS)
    depth = servers.bus.depth(names.DEAD_LETTERS) if len(letters) == LETTERS else None
    return Snapshot(
        job=job,
        spec=spec,
        rounds=tuple(_read_again(blobs, job, manifests, spec.keep_updates, tell)),
        unreadable=unreadable,
        result=result,
        final=final(blobs, result) if redis is None or redis.ended else "",
        redis=redis,
        letters=tuple(_of_job(letters, job)),
        unseen=max(0, depth[0] - LETTERS) if depth else 0,
    )


def _manifests(blobs: Blobs, job: str) -> tuple[dict[int, Manifest], dict[int, str]]:
    found: dict[int, Manifest] = {}
    unreadable: dict[int, str] = {}

    def one(number: int) -> Manifest | str | None:
        try:
            return archive.manifest(blobs, job, number)
        except Refused as refused:
            return f"its manifest cannot be read: {refused}"

    numbers = archive.folders(blobs, job)
    with ThreadPoolExecutor(history.AT_ONCE) as pool:
        for number, read in zip(numbers, pool.map(one, numbers), strict=True):
            if isinstance(read, Manifest):
                found[number] = read
            elif read is not None:
                unreadable[number] = read
    return found, unreadable


def _open_round(servers: Servers, job: str, number: int) -> OpenRound | None:
    """The round after the last committed one; None if it changes while it is read."""
    record = servers.ledger.round(job, number)
    if record is None:
        return None
    there = _updates(servers.blobs, job, {number, *record.carried.values()})
    again = servers.ledger.round(job, number)
    if again is None or (again.state, again.attempt) != (record.state, record.attempt):
        return None
    gone = [
        client
        for client, update in record.accepted.items()
        if client in again.accepted and update["blob"]["key"] not in there
    ]
    return OpenRound(record, tuple(gone))


# --- models and updates ---------------------------------------------------------------------


def _read_again(blobs: Blobs, job: str, manifests: dict[int, Manifest], keep: bool, tell: Tell) -> Iterator[Round]:
    """Reads every model, and folds every round with kept updates, with one model and one update in memory."""
    base: File | None = None  # the previous round's model, if it is the base of this round and intact
    for number, found in sorted(manifests.items()):
        before = manifests.get(number - 1)
        if before is None or found.base is None or before.model.digest != found.base.digest:
            base = None
        server = before.server if before is not None else None
        past = _folded_again(blobs, job, Round(number, found), keep, base, server, tell)
        base = None  # frees its memory before the next model is read
        tell(f"round {number}: its model")
        problem, base = _model(blobs, found.model)
        yield replace(past, model=problem)


def _model(blobs: Blobs, blob: BlobRef) -> "tuple[str, File | None]":
    try:
        return "", blobs.get(blob)
    except (NotFound, Refused) as error:
        return str(error), None


def _updates(blobs: Blobs, job: str, numbers: set[int]) -> set[str]:
    """The keys of these rounds' updates in the bucket."""
    return {key for number in numbers for key in blobs.list(names.updates_prefix(job, number))}


def _folded_again(
    blobs: Blobs, job: str, past: Round, keep: bool, base: "File | None", server: BlobRef | None, tell: Tell
) -> Round:
    """Folds the round's updates again if all of them exist; overwrites `base`."""
    found = past.manifest
    there = _updates(blobs, job, {past.number - update.staleness for update in found.updates})
    kept = sum(update.blob.key in there for update in found.updates)
    if kept < len(found.updates) and not keep:
        return past  # without `keep_updates`, the missing updates are being removed
    past = replace(past, kept=kept)
    if not kept or kept < len(found.updates) or (found.base is not None and base is None):
        return past
    damaged: list[str] = []
    try:
        if base is None:
            return replace(past, replayed=replaying.initial(blobs, found))
        folding = Replay(blobs, found, base, server)
        groups = found.groups
        for index, group in enumerate(groups, 1):
            tell(f"round {past.number}: update {index} of {len(groups)}")
            try:
                _check_base(blobs, group[0], found)
                folding.add(group)
            except Refused as refused:
                damaged.append(f"{group[0].client}: {refused}")
        return replace(past, damaged=tuple(damaged), replayed=None if damaged else folding.digest())
    except Refused as refused:
        return replace(past, why_not=str(refused))
    except NotFound:  # an update was removed after the listing
        return replace(past, kept=kept - 1) if keep else replace(past, kept=0)


def _check_base(blobs: Blobs, update: AcceptedUpdate, found: Manifest) -> None:
    """Raises `Refused` if the update's metadata says that it was trained on another model."""
    base = blobs.stat(update.blob.key)[1].get("base", "")
    if found.base is not None and not update.staleness and base not in ("", found.base.digest):
        raise Refused(f"was trained on the model {base[:12]}, not on {found.base.digest[:12]}")


def final(blobs: Blobs, result: Result | None) -> str:
    """The fault of the job's final model; empty if it is intact or does not exist."""
    return "" if result is None or result.model is None else _model(blobs, result.model)[0]


# --- dead letters ---------------------------------------------------------------------------


def _of_job(letters: list[Peeked], job: str) -> Iterator[DeadLetter]:
    """The dead letters about the job, recognized by their queue, their properties or their contents."""
    for letter in letters:
        deaths = letter.headers.get("x-death") or [{}]
        queue = str(letter.headers.get("x-fedq-queue") or deaths[0].get("queue", ""))
        if letter.correlation_id != job and queue != names.updates_queue(job) and job.encode() not in letter.body:
            continue
        reason = str(letter.headers.get("x-fedq-reason") or deaths[0].get("reason", ""))
        yield DeadLetter(letter.type or "a message", queue, reason)
