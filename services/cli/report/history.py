"""History of a job from the object store: its spec, its committed rounds and its end."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shared.errors import BadInput, Unavailable
from shared.events import ModelEvaluated, RoundEnd, TrainingEnd
from shared.record import archive
from shared.record.archive import CommittedRound, RoundEvaluation
from shared.record.rounds import Round
from shared.redis.ledger import JobRecord, Ledger
from shared.s3.store import Blobs

AT_ONCE = 16  #: concurrent requests for records, because each costs one round trip


@dataclass(frozen=True)
class PastRound:
    """Committed round with the result of its model's evaluation, if there is one."""

    committed: CommittedRound
    evaluation: RoundEvaluation | None

    @property
    def manifest(self) -> Round:
        """The manifest of the round, without its clients."""
        return self.committed.round

    @property
    def number(self) -> int:
        """The number of the round."""
        return self.manifest.round

    @property
    def accepted(self) -> int:
        """The number of updates in the round's model."""
        return self.committed.count("updates")

    @property
    def rejected(self) -> int:
        """The number of clients in whose name an update was rejected."""
        return self.committed.count("rejected")

    @property
    def figures(self) -> dict[str, float]:
        """Metrics of the model on test and held-out examples, and of its base model on the clients' own data."""
        return self.manifest.metrics | self.tested

    @property
    def tested(self) -> dict[str, float]:
        """Metrics of the model on the test set and on held-out examples; empty if it was not evaluated."""
        return self.evaluation.record.metrics if self.evaluation is not None else {}

    @property
    def traffic(self) -> dict[str, int]:
        """Files and bytes of the updates and of the models downloaded for training and for the `evaluation`."""
        evaluation = self.evaluation.record.traffic.get("down", 0) if self.evaluation is not None else 0
        return {**self.manifest.traffic, "evaluation": evaluation}

    @property
    def evaluated(self) -> dict[str, dict[str, float]]:
        """Metrics of each client on its held-out examples; empty if clients did not evaluate."""
        return self.evaluation.clients if self.evaluation is not None else {}

    def events(self) -> "Iterator[RoundEnd | ModelEvaluated]":
        """The events that announced the round, for a reader that missed them."""
        yield self.committed.end
        if self.evaluation is not None:
            found = self.evaluation.record
            yield ModelEvaluated(
                job=self.manifest.job,
                round=self.number,
                model=found.model,
                trainer="unknown",
                examples=found.examples,
                metrics=found.metrics,
            )


def reported(rounds: Sequence[PastRound]) -> list[str]:
    """The names of all metrics in the rounds, sorted, without the count of training steps."""
    return sorted({name for past in rounds for name in past.figures} - {"steps"})


def rounds(blobs: Blobs, job: str, first: int = 0, last: int | None = None) -> list[PastRound]:
    """The committed rounds from `first` to `last`, or to the latest."""
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
    """The job spec with all defaults, or None if there is no such job; `Refused` if the stored spec is invalid."""
    found = archive.spec(blobs, job)
    return None if found is None else found.model_dump(mode="json")


def known_spec(blobs: Blobs, ledger: Ledger, job: str) -> dict[str, Any]:
    """The spec of a job that has begun; otherwise an error that gives the job's status."""
    found = spec(blobs, job)
    if found is None:
        record = ledger.required(job)
        if record.status == "queued":
            raise BadInput(f"job {job} is queued: it has no rounds yet")
        raise Unavailable(f"job {job} is {record.status}, and {blobs.place} holds nothing of it; check FEDQ_S3_BUCKET")
    return found


def end(blobs: Blobs, job: str) -> TrainingEnd | None:
    """The end of a job, or None if it has not ended."""
    result = archive.result(blobs, job)
    return None if result is None else result.end


def end_of(blobs: Blobs, record: JobRecord) -> TrainingEnd:
    """The end of a job that has ended by the ledger; taken from the ledger if the store does not have it."""
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
    """The ledger record of a job that Redis has lost, rebuilt from the bucket; None if that does not have it either."""
    found = archive.spec(blobs, job)
    return None if found is None else archive.job_record(blobs, job, found.rounds.count)


def _round(blobs: Blobs, job: str, number: int) -> PastRound | None:
    committed = archive.committed_round(blobs, job, number)
    return None if committed is None else PastRound(committed, archive.evaluation(blobs, job, number))
