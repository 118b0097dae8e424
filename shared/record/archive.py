"""Reading the bucket: a job's spec, its committed rounds, what an operator wants of it, and its end, as values.

The object store is the record, and Redis can be rebuilt from it: `job_record` is the ledger's view of a job, made of
the bucket alone. A record that is damaged is `Refused`, with its key; one that is not there is None.
"""

from typing import Any

from shared import names
from shared.job.job_spec import JobSpec
from shared.record import parts
from shared.record.job import Result
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


def manifest(blobs: Blobs, job: str, number: int) -> dict[str, Any] | None:
    """The whole commit record of a round, its parts put together, or None if the round is not committed."""
    key = names.manifest_blob(job, number)
    found = optional(blobs, key)
    return None if found is None else parts.joined(blobs, key, found)


def folders(blobs: Blobs, job: str) -> list[int]:
    """The rounds that the bucket has anything of, committed or not, in order."""
    return sorted(int(name) for name in blobs.folders(names.rounds_prefix(job)) if name.isdecimal())


def committed(blobs: Blobs, job: str) -> int:
    """The last committed round; -1 if there is none."""
    found = reversed(folders(blobs, job))
    return next((number for number in found if blobs.exists(names.manifest_blob(job, number))), -1)


def committed_since(blobs: Blobs, job: str, known: int) -> int:
    """The last committed round, counted on from `known`: a short way if the ledger is nearly up to date."""
    while blobs.exists(names.manifest_blob(job, known + 1)):
        known += 1
    return known


def job_record(blobs: Blobs, job: str, rounds: int) -> JobRecord:
    """The ledger's record of a job of so many `rounds` that Redis has lost."""
    end = result(blobs, job)
    if end is not None:
        return JobRecord(
            id=job,
            status=end.outcome,
            detail=end.reason,
            # A result says 0 for the initial model alone, and for no model at all.
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
