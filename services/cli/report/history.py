"""A job as the object store keeps it: its spec, its committed rounds and its end."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shared import names
from shared.errors import BadInput, Refused, Unavailable
from shared.events import ModelEvaluated, RoundEnd, TrainingEnd
from shared.record import archive, parts
from shared.redis.ledger import JobRecord, Ledger
from shared.s3.json_records import figures, reading
from shared.s3.store import Blobs
from shared.text import plain

NUMBER = (int, float)
LARGEST = 2**70  #: bytes that a round may have moved: a million clients at the most that one may say
AT_ONCE = 16  #: records asked for at the same time: each costs one way to the server and back


@dataclass(frozen=True)
class PastRound:
    """A committed round, by its manifest and, where its model was evaluated, the result: of long ones, the heads."""

    number: int
    manifest: dict[str, Any]
    evaluation: dict[str, Any] | None
    blobs: Blobs | None = None  # where their parts are, if they have any

    @property
    def accepted(self) -> int:
        """The number of updates in its model."""
        return parts.count(self.manifest, "updates")

    @property
    def rejected(self) -> int:
        """In how many clients' names something was refused."""
        return parts.count(self.manifest, "rejected")

    def pieces(self) -> Iterator[parts.Record]:
        """Pieces of the manifest, each with all that it tells of some clients."""
        if self.blobs is None:
            yield self.manifest
            return
        key = names.manifest_blob(self.manifest["job"], self.number)
        for piece in parts.pieces(self.blobs, key, self.manifest):
            yield _checked_clients(key, piece)

    @property
    def figures(self) -> dict[str, float]:
        """Those of the model on the test set and on held-out examples; those of its base on the clients' own data."""
        return figures(self.manifest["metrics"]) | figures(self.evaluation["metrics"] if self.evaluation else {})

    @property
    def traffic(self) -> dict[str, int]:
        """Files and bytes of its updates, and of models that trainers downloaded to train and for its `evaluation`."""
        evaluation = (self.evaluation or {}).get("traffic", {}).get("down", 0)
        return {**self.manifest.get("traffic", {}), "evaluation": evaluation}

    @property
    def evaluated(self) -> dict[str, dict[str, float]]:
        """Figures that each client measured on the examples that it holds out, if clients were asked to."""
        found, key = self.evaluation or {}, names.evaluation_blob(self.manifest["job"], self.number)
        if self.blobs is not None:
            found = parts.joined(self.blobs, key, found)
        with reading(key):
            return {client: figures(own) for client, own in found.get("clients", {}).items()}

    def events(self) -> "Iterator[RoundEnd | ModelEvaluated]":
        """The events that told of it, for whoever did not hear them."""
        found = self.manifest
        with reading(names.manifest_blob(found["job"], self.number)):
            yield RoundEnd(
                job=found["job"],
                round=self.number,
                attempt=found["attempt"],
                outcome="committed",
                accepted=self.accepted,
                rejected=self.rejected,
                metrics=found["metrics"],
                model=found["model"],
                seconds=found["seconds"],
            )
        if self.evaluation:
            with reading(names.evaluation_blob(found["job"], self.number)):
                yield ModelEvaluated(
                    job=found["job"],
                    round=self.number,
                    model=self.evaluation["model"],
                    trainer="unknown",
                    examples=self.evaluation["examples"],
                    metrics=self.evaluation["metrics"],
                )


def reported(rounds: Sequence[PastRound]) -> list[str]:
    """The metrics that any of the rounds has, by name, but for counts of the work that they took."""
    return sorted({name for past in rounds for name in past.figures} - {"steps"})


def rounds(blobs: Blobs, job: str, first: int = 0, last: int | None = None) -> list[PastRound]:
    """The committed rounds from `first` to `last`, or to the last one there is."""
    found: list[PastRound] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while last is None or first <= last:
            end = first + AT_ONCE if last is None else min(first + AT_ONCE, last + 1)
            batch = list(pool.map(lambda number: _round(blobs, job, number), range(first, end)))
            found += [past for past in batch if past is not None]
            if None in batch:
                break
            first = end
    return found


def spec(blobs: Blobs, job: str) -> dict[str, Any] | None:
    """The job spec with all defaults, or None if there is no such job; `Refused` if what is there is none."""
    found = archive.spec(blobs, job)
    return None if found is None else found.model_dump(mode="json")


def known_spec(blobs: Blobs, ledger: Ledger, job: str) -> dict[str, Any]:
    """The spec of a job that has begun, or `BadInput` with what is known of this one."""
    found = spec(blobs, job)
    if found is None:
        record = ledger.required(job)
        if record.status == "queued":
            raise BadInput(f"job {job} is queued: it has no rounds yet")
        raise Unavailable(f"job {job} is {record.status}, and {blobs.place} holds nothing of it; check FEDQ_S3_BUCKET")
    return found


def end(blobs: Blobs, job: str) -> TrainingEnd | None:
    """The end of a job, or None while it has not ended."""
    result = archive.result(blobs, job)
    return None if result is None else result.end


def end_of(blobs: Blobs, record: JobRecord) -> TrainingEnd:
    """The end of a job that the ledger says is over, told by the ledger where the store does not know it."""
    return end(blobs, record.id) or TrainingEnd.model_validate(
        {
            "job": record.id,
            "outcome": record.status,
            "reason": record.detail,
            "rounds": max(0, record.round),
            "metrics": record.metrics,
            "seconds": max(0.0, record.ended - record.started),
        }
    )


def record(blobs: Blobs, job: str) -> JobRecord | None:
    """The ledger's record of a job that Redis has lost; None if the bucket does not know the job either."""
    found = archive.spec(blobs, job)
    return None if found is None else archive.job_record(blobs, job, found.rounds.count)


def _round(blobs: Blobs, job: str, number: int) -> PastRound | None:
    key = names.manifest_blob(job, number)
    found = archive.optional(blobs, key)
    if found is None:
        return None
    checked(key, found, job=str, attempt=int, metrics=dict, seconds=NUMBER, model=dict)
    if found["job"] != job:
        raise Refused(f"{key} is the record of another job, {plain(found['job'])[:60]}")
    _check_numbers(key, found)
    if "parts" in found:
        checked(key, checked(key, found, counts=dict)["counts"], updates=int, rejected=int)
    else:
        _checked_clients(key, found)
    key = names.evaluation_blob(job, number)
    evaluation = archive.optional(blobs, key)
    if evaluation is not None:
        checked(key, evaluation, examples=int, metrics=dict, model=str)
        _check_numbers(key, evaluation)
    return PastRound(number, found, evaluation, blobs)


def _check_numbers(key: str, record: parts.Record) -> None:
    """`Refused` unless what is drawn and summed up of a round are numbers, and no larger than these are."""
    with reading(key):
        figures(record["metrics"])
        float(record.get("seconds", 0))
        for name, count in record.get("traffic", {}).items():
            if type(count) is not int or not 0 <= count <= LARGEST:
                raise ValueError(f"traffic.{plain(name)} is no number of files or bytes")


def _checked_clients(key: str, piece: parts.Record) -> parts.Record:
    checked(key, piece, updates=list, rejected=dict)
    for update in piece["updates"]:
        checked(key, update, client=str)
    for name in ("cohort", "unanswered"):
        if name in piece and not all(isinstance(one, str) for one in checked(key, piece, **{name: list})[name]):
            raise Refused(f"{key} is no such record: {name} holds what is no client")
    return piece


def checked(key: str, record: Any, **fields: type | tuple[type, ...]) -> Any:
    """The record, or `Refused` where one of these parts is missing, or of another kind."""
    with reading(key):
        for name, kind in fields.items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is {type(record[name]).__name__}")
    return record
