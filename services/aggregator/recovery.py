"""Reading the record again: what the object store knows of a job that Redis, or its owner, no longer does."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

from services.aggregator.turnout import Turnout
from shared import names
from shared.errors import Refused
from shared.events import ModelUpdate, TrainingEnd
from shared.job.job_spec import JobSpec
from shared.record import parts, receipts
from shared.redis.ledger import ENDED, WANTED, JobRecord, Ledger, Wanted
from shared.s3.json_records import reading
from shared.s3.store import Blobs, NotFound
from shared.text import plain

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
    key = names.wanted_blob(job)
    found = optional(blobs, key)
    with reading(key):
        return read_wanted(found) if found else None


def read_wanted(found: Mapping[str, Any]) -> Wanted:
    """The wish that a record holds."""
    if found["wanted"] not in WANTED:
        raise ValueError(f"wanted is none of {', '.join(WANTED)}")
    return Wanted(found["wanted"], plain(str(found.get("reason", ""))))


def spec(blobs: Blobs, job: str) -> JobSpec | None:
    """The job's spec, or None where it was never announced."""
    key = names.job_blob(job)
    found = optional(blobs, key)
    with reading(key):
        return JobSpec.model_validate(found["spec"]) if found is not None else None


def recall(blobs: Blobs, job: str, committed: int, turnout: Turnout) -> None:
    """Tells of the rounds that earlier owners committed, and of the attempts at the one that nobody did.

    What cannot be read is left out: it keeps no job from its end.
    """
    for number in range(1, committed + 1):
        if not turnout.knows(number):
            _tell(blobs, names.manifest_blob(job, number), number, 0, turnout)
    for attempt in itertools.count(1):
        if not _tell(blobs, names.abandoned_blob(job, committed + 1, attempt), committed + 1, attempt, turnout):
            break


def _tell(blobs: Blobs, key: str, number: int, abandoned: int, turnout: Turnout) -> bool:
    """Tells of one record; False where there is none."""
    try:
        with reading(key):
            cohort: list[str] = []
            accepted: set[str] = set()
            rejected: dict[str, str] = {}
            record = blobs.get_json(key)
            # Where all have been heard, only reasons are news: the parts of a long record may be many, and stay unread.
            news = parts.count(record, "rejected") or not turnout.complete
            for piece in parts.pieces(blobs, key, record) if news else ():
                told = piece["accepted"] if abandoned else (update["client"] for update in piece["updates"])
                cohort.extend(map(str, piece["cohort"]))
                accepted.update(map(str, told))
                rejected.update(piece["rejected"])
            turnout.tell(number, cohort, accepted, rejected, abandoned=abandoned)
    except NotFound:
        return False
    except Refused as refused:
        log.warning("not told of", round=number, reason=str(refused))
    return True


def optional(blobs: Blobs, key: str) -> dict[str, Any] | None:
    """A record, or None where there is none."""
    try:
        return blobs.get_json(key)
    except NotFound:
        return None


def restore(blobs: Blobs, ledger: Ledger) -> int:
    """Brings the ledger up to what the store holds and says how many jobs it did not know, or knew otherwise.

    The live jobs first: somebody waits for them. A job whose record cannot be read is left out, and no other with it.
    """
    found: list[tuple[bool, str, dict[str, Any] | None]] = []
    for job in blobs.folders("jobs/"):
        with _leaving_out(job):
            result = optional(blobs, names.result_blob(job))
            found.append((result is not None, job, result))
    restored = 0
    for _, job, result in sorted(found, key=lambda one: one[:2]):
        with _leaving_out(job):
            restored += _restore(blobs, ledger, job, result)
    return restored


@contextmanager
def _leaving_out(job: str) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        log.error("not restored", job=job, reason=str(refused))


def _restore(blobs: Blobs, ledger: Ledger, job: str, result: dict[str, Any] | None) -> bool:
    known = ledger.job(job)
    if known is not None and (result is not None or known.status not in (*ENDED, "paused")):
        return False
    key = names.job_blob(job)
    about = optional(blobs, key)
    if about is None:
        return False
    with reading(key):
        rounds = int(about["spec"]["rounds"]["count"])
    wish = wanted(blobs, job) or Wanted()
    if known is not None:
        # Redis has it as ended or paused, and the store says that it was resumed since.
        resumed = known.status in ENDED or wish.status == "running"
        return resumed and ledger.revive(job, rounds) == "ok"
    return ledger.restore(_ended(job, rounds, result) if result else _live(blobs, job, rounds, wish))


def _ended(job: str, rounds: int, result: dict[str, Any]) -> JobRecord:
    with reading(names.result_blob(job)):
        end = ending(job, result)
        return JobRecord(
            id=job,
            status=end.outcome,
            detail=end.reason,
            round=end.rounds,
            rounds=rounds,
            owner="",
            fence=0,
            created=float(result["started"]),
            started=float(result["started"]),
            ended=float(result["ended"]),
            metrics=end.metrics,
        )


def ending(job: str, result: Mapping[str, Any]) -> TrainingEnd:
    """The end of a job that its result tells of; `Refused` where the result is none."""
    with reading(names.result_blob(job)):
        return TrainingEnd.model_validate({name: result[name] for name in TrainingEnd.model_fields if name in result})


def _live(blobs: Blobs, job: str, rounds: int, wish: Wanted) -> JobRecord:
    paused = wish.status == "paused"
    key = names.manifest_blob(job, 0)
    first = optional(blobs, key)
    with reading(key):
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
