"""Reading the record again: what the object store knows of a job that Redis, or its owner, no longer does."""

from collections.abc import Iterator, Mapping
from typing import Any

import structlog

from shared import names, receipts
from shared.blobs import Blobs, NotFound
from shared.errors import Refused
from shared.events import ModelUpdate
from shared.ledger import ENDED, JobRecord, Ledger, Wanted

log = structlog.get_logger()


def committed(blobs: Blobs, job: str, known: int) -> int:
    """The last committed round: `known` by the ledger, or a later one whose manifest is in the store; -1 for none."""
    while blobs.exists(names.manifest_blob(job, known + 1)):
        known += 1
    return known


def updates(blobs: Blobs, job: str, asked: Mapping[str, int]) -> Iterator[ModelUpdate]:
    """The updates that the store holds of clients, each `asked` in a round, as the events that told of them."""
    for number in sorted(set(asked.values())):
        for key in blobs.list(names.updates_prefix(job, number)):
            client = key.rpartition("/")[2].rpartition("-")[0]
            if asked.get(client) != number:
                continue
            try:
                yield receipts.told_again(key, *blobs.stat(key))
            except (NotFound, Refused) as error:
                log.info("not taken in", job=job, round=number, client=client, reason=str(error))


def wanted(blobs: Blobs, job: str) -> Wanted | None:
    """What an operator wants of a job, as far as the store knows."""
    found = optional(blobs, names.wanted_blob(job))
    return Wanted(found["wanted"], found.get("reason", "")) if found else None


def optional(blobs: Blobs, key: str) -> dict[str, Any] | None:
    """A record, or None where there is none."""
    try:
        return blobs.get_json(key)
    except NotFound:
        return None


def restore(blobs: Blobs, ledger: Ledger) -> int:
    """Brings the ledger up to what the store holds and says how many jobs it did not know, or knew otherwise.

    The live jobs first: somebody waits for them.
    """
    jobs = blobs.folders("jobs/")
    results = {job: optional(blobs, names.result_blob(job)) for job in jobs}
    return sum(_restore(blobs, ledger, job, results[job]) for job in sorted(jobs, key=lambda job: bool(results[job])))


def _restore(blobs: Blobs, ledger: Ledger, job: str, result: dict[str, Any] | None) -> bool:
    known = ledger.job(job)
    if known is not None and (result is not None or known.status not in (*ENDED, "paused")):
        return False
    about = optional(blobs, names.job_blob(job))
    if about is None:
        return False
    rounds = int(about["spec"]["rounds"]["count"])
    wish = wanted(blobs, job) or Wanted()
    if known is not None:
        # Redis has it as ended or paused, and the store says that it was resumed since.
        resumed = known.status in ENDED or wish.status == "running"
        return resumed and ledger.revive(job, rounds) == "ok"
    return ledger.restore(_ended(job, rounds, result) if result else _live(blobs, job, rounds, wish))


def _ended(job: str, rounds: int, result: dict[str, Any]) -> JobRecord:
    return JobRecord(
        id=job,
        status=result["outcome"],
        detail=result["reason"],
        round=result["rounds"],
        rounds=rounds,
        owner="",
        fence=0,
        created=result["started"],
        started=result["started"],
        ended=result["ended"],
        metrics=result["metrics"],
    )


def _live(blobs: Blobs, job: str, rounds: int, wish: Wanted) -> JobRecord:
    paused = wish.status == "paused"
    first = optional(blobs, names.manifest_blob(job, 0))
    began = float(first["opened"]) if first else 0.0
    return JobRecord(
        id=job,
        status="paused" if paused else "queued",
        detail=wish.reason if paused else "read from the object store; waiting for an aggregator",
        round=committed(blobs, job, -1),
        rounds=rounds,
        owner="",
        fence=0,
        created=began,
        started=began,
        ended=0.0,
        wanted=wish,
    )
