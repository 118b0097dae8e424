"""One client's work in one round, small enough to be the arguments of a task.

Pure.
"""

import uuid
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from shared.errors import Unavailable
from shared.events import BlobRef, Fence, JobId, Name, Round, RoundStart, Value
from shared.jobs import JobSpec

_NAMESPACE = uuid.UUID("8a0c9f2e-5d0b-5c6e-9d0e-6f6564710001")  # any fixed one


class HandedBack(Unavailable):
    """This trainer stops before the work is done: another one does it."""


class Order(Value):
    """Train `client` on `base`; without a base, make the initial model."""

    job: JobId
    round: Round
    attempt: Annotated[int, Field(ge=1)]
    client: Name
    base: BlobRef | None
    spec: JobSpec
    asked: float  # seconds since the epoch, when the trainer heard of the round
    fence: Fence = 0  # of the aggregator that asked
    again: bool = False  # asked a second time: the update may lie in the store already

    @property
    def work(self) -> tuple[str, int, int, int]:
        """What a board is asked about: later owners of a job come after earlier ones, whatever attempt they are at."""
        return self.job, self.round, self.fence, self.attempt


def task_id(job: str, number: int, attempt: int, client: str) -> str:
    """The same work has the same id, whoever publishes it and however often."""
    return str(uuid.uuid5(_NAMESPACE, f"{job}/{number}/{attempt}/{client}"))


def orders(event: RoundStart, asked: float) -> Iterator[Order]:
    """A round-start, client by client."""
    for client in event.cohort:
        yield Order(
            job=event.job,
            round=event.round,
            attempt=event.attempt,
            client=client,
            base=event.base,
            spec=event.spec,
            asked=asked,
            fence=event.fence,
            again=event.again,
        )
