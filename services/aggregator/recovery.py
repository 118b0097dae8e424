"""Bringing Redis, and a job's new owner, up to what the bucket knows and they do not."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from services.aggregator.turnout import Turnout
from shared import names
from shared.errors import Refused
from shared.events import ModelUpdate
from shared.record import archive, parts, receipts
from shared.record.rounds import AttemptLists, ClientLists
from shared.redis.ledger import ENDED, Ledger, Wanted
from shared.s3.json_records import reading
from shared.s3.store import Blobs, NotFound

log = structlog.get_logger()


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
            # If every client was heard, only reasons are news: the parts of a long record may be many, and stay unread.
            news = parts.count(record, "rejected") or not turnout.complete
            for piece in parts.pieces(blobs, key, record) if news else ():
                lists = AttemptLists.read(key, piece) if abandoned else ClientLists.read(key, piece)
                cohort.extend(lists.cohort or ())
                accepted.update(lists.clients)
                rejected.update(lists.rejected)
            turnout.tell(number, cohort, accepted, rejected, abandoned=abandoned)
    except NotFound:
        return False
    except Refused as refused:
        log.warning("not told of", round=number, reason=str(refused))
    return True


def restore(blobs: Blobs, ledger: Ledger) -> int:
    """Brings the ledger up to the bucket; the number of jobs that it did not know, or knew otherwise.

    The live jobs come first, because somebody waits for them. A job whose record cannot be read is left out, and no
    other with it.
    """
    found: list[tuple[bool, str]] = []
    for job in blobs.folders("jobs/"):
        with _leaving_out(job):
            found.append((blobs.exists(names.result_blob(job)), job))
    restored = 0
    for ended, job in sorted(found):
        with _leaving_out(job):
            restored += _restore(blobs, ledger, job, ended=ended)
    return restored


@contextmanager
def _leaving_out(job: str) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        log.error("not restored", job=job, reason=str(refused))


def _restore(blobs: Blobs, ledger: Ledger, job: str, *, ended: bool) -> bool:
    known = ledger.job(job)
    if known is not None and (ended or known.status not in (*ENDED, "paused")):
        return False
    key = names.job_blob(job)
    about = archive.optional(blobs, key)
    if about is None:
        return False
    with reading(key):
        rounds = int(about["spec"]["rounds"]["count"])  # not the whole spec: an older version's may be another
    if known is None:
        return ledger.restore(archive.job_record(blobs, job, rounds))
    # Redis has the job as ended or paused, and the bucket says that it was resumed since.
    resumed = known.status in ENDED or (archive.wanted(blobs, job) or Wanted()).status == "running"
    return resumed and ledger.revive(job, rounds) == "ok"
