"""Readers of the bucket: a job's spec, its committed rounds, its operator's request, and its end, as values.

The object store is the record, and Redis can be rebuilt from it: `job_record` is the ledger's view of a job, made from
the bucket alone. A damaged record raises `Refused` with its key; a missing one is None.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shared import names
from shared.errors import Refused
from shared.events import RoundEnd
from shared.job.job_spec import JobSpec
from shared.record import parts
from shared.record.job import Result
from shared.record.rounds import ClientLists, EvaluatedClients, EvaluationRecord, Manifest, Round
from shared.redis.ledger import WANTED, JobRecord, Wanted
from shared.s3.json_records import reading
from shared.s3.store import Blobs, NotFound
from shared.text import plain


def optional(blobs: Blobs, key: str) -> dict[str, Any] | None:
    """A record as it is written, or None if there is none."""
    try:
        return blobs.get_json(key)
    except NotFound:
        return None


def spec(blobs: Blobs, job: str) -> JobSpec | None:
    """The job's spec, or None if it was never announced."""
    key = names.job_blob(job)
    found = optional(blobs, key)
    with reading(key):
        return JobSpec.model_validate(found["spec"]) if found is not None else None


def wanted(blobs: Blobs, job: str) -> Wanted | None:
    """An operator's request for a job, or None if the bucket has none: then the job is to run."""
    key = names.wanted_blob(job)
    found = optional(blobs, key)
    if found is None:
        return None
    with reading(key):
        if found["wanted"] not in WANTED:
            raise ValueError(f"wanted is none of {', '.join(WANTED)}")
        return Wanted(found["wanted"], plain(str(found.get("reason", ""))))


def result(blobs: Blobs, job: str) -> Result | None:
    """The end of a job, or None while it has not ended."""
    key = names.result_blob(job)
    found = optional(blobs, key)
    return None if found is None else Result.read(key, found)


@dataclass(frozen=True)
class CommittedRound:
    """A committed round: the round as a whole, and its clients on demand, with one part in memory at a time."""

    key: str  # of its manifest
    round: Round
    document: parts.Record  # the manifest as it is stored; of a long one, the head
    blobs: Blobs

    def count(self, field: str) -> int:
        """The number of entries of a field with entries of clients, found without reading a part."""
        with reading(self.key):
            return parts.count(self.document, field)

    @property
    def end(self) -> RoundEnd:
        """The `round-end` event of this round."""
        found = self.round
        with reading(self.key):
            return RoundEnd(
                job=found.job,
                round=found.round,
                attempt=found.attempt,
                outcome="committed",
                accepted=self.count("updates"),
                rejected=self.count("rejected"),
                metrics=found.metrics,
                model=found.model,
                seconds=found.seconds,
            )

    def lists(self) -> Iterator[ClientLists]:
        """The manifest's lists of clients, part by part, in the order of the clients' names."""
        for piece in parts.pieces(self.blobs, self.key, self.document):
            yield ClientLists.read(self.key, piece)


def committed_round(blobs: Blobs, job: str, number: int) -> CommittedRound | None:
    """A committed round, or None if it is not committed."""
    key = names.manifest_blob(job, number)
    found = optional(blobs, key)
    if found is None:
        return None
    read = Round.read(key, found)
    if read.job != job:
        raise Refused(f"{key} is the record of another job, {plain(read.job)[:60]}")
    if read.round != number:
        raise Refused(f"{key} is the record of another round, {read.round}")
    return CommittedRound(key, read, found, blobs)


def manifest(blobs: Blobs, job: str, number: int) -> Manifest | None:
    """The whole commit record of a round, its parts put together, or None if the round is not committed."""
    key = names.manifest_blob(job, number)
    found = optional(blobs, key)
    return None if found is None else Manifest.read(key, parts.joined(blobs, key, found))


@dataclass(frozen=True)
class RoundEvaluation:
    """The evaluation of a round's model: as a whole, and its clients on demand."""

    key: str
    record: EvaluationRecord
    document: parts.Record  # as it is stored; of a long one, the head
    blobs: Blobs

    @property
    def clients(self) -> dict[str, dict[str, float]]:
        """The figures of each client on the examples that it holds out; empty if no client was asked."""
        whole = parts.joined(self.blobs, self.key, self.document)
        return EvaluatedClients.read(self.key, whole).clients


def evaluation(blobs: Blobs, job: str, number: int) -> RoundEvaluation | None:
    """The evaluation of a round's model, or None if there is none."""
    key = names.evaluation_blob(job, number)
    found = optional(blobs, key)
    return None if found is None else RoundEvaluation(key, EvaluationRecord.read(key, found), found, blobs)


def folders(blobs: Blobs, job: str) -> list[int]:
    """The rounds with any blob in the bucket, committed or not, in order."""
    return sorted(int(name) for name in blobs.folders(names.rounds_prefix(job)) if name.isdecimal())


def committed(blobs: Blobs, job: str) -> int:
    """The last committed round; -1 if there is none."""
    found = reversed(folders(blobs, job))
    return next((number for number in found if blobs.exists(names.manifest_blob(job, number))), -1)


def committed_since(blobs: Blobs, job: str, known: int) -> int:
    """The last committed round, searched upward from `known`, which is fast if the ledger is nearly up to date."""
    while blobs.exists(names.manifest_blob(job, known + 1)):
        known += 1
    return known


def job_record(blobs: Blobs, job: str, rounds: int) -> JobRecord:
    """The ledger's record of a job with `rounds` rounds that Redis has lost."""
    end = result(blobs, job)
    if end is not None:
        return JobRecord(
            id=job,
            status=end.outcome,
            detail=end.reason,
            # A result says 0 both for a job with only the initial model and for one with no model at all.
            round=end.rounds or committed(blobs, job),
            rounds=rounds,
            owner="",
            fence=0,
            created=end.started,
            started=end.started,
            ended=end.ended,
            metrics=end.metrics,
        )
    wish = wanted(blobs, job) or Wanted()
    paused = wish.status == "paused"
    began = _began(blobs, job)
    return JobRecord(
        id=job,
        status="paused" if paused else "queued",
        detail=wish.reason if paused else "read from the object store; waiting for an aggregator",
        round=committed(blobs, job),
        rounds=rounds,
        owner="",
        fence=0,
        created=began,
        started=began,
        ended=0.0,
        wanted=wish,
    )


def _began(blobs: Blobs, job: str) -> float:
    """The seconds since the epoch when the first round was opened; 0 if it is not committed."""
    key = names.manifest_blob(job, 0)
    first = optional(blobs, key)
    with reading(key):
        return float(first["opened"]) if first else 0.0
