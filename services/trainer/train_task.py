"""The work of one task: training of a client in one round, or of a batch of clients; and the one shape of its message.

Celery follows what a message says of itself: a date before which it holds a task, a time after which it kills the
slot, tasks to publish when this one is done. Anyone who may publish to a queue of tasks could have that done in a
trainer's name. So a message is looked at before Celery sees it, and one that has more than fedq's is a dead letter.

Pure.
"""

import uuid
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import msgpack
from pydantic import Field

from shared.amqp.connection import COUNTS
from shared.errors import Refused, Unavailable
from shared.events import (
    MAX_BODY,
    BlobRef,
    Digest,
    EvaluateModel,
    Fence,
    JobId,
    Name,
    Round,
    RoundStart,
    StateRef,
    Value,
)
from shared.job.job_spec import JobSpec
from shared.text import plain

_NAMESPACE = uuid.UUID("8a0c9f2e-5d0b-5c6e-9d0e-6f6564710001")  # any fixed value will do

VECTORS = 4  #: most times that the state of a client or a strategy is as long as the model


class HandedBack(Unavailable):
    """Raised if this trainer stops before the work is done: another one does it."""


class TrainTask(Value):
    """A task to train `members` on `base`, one after the other; without a base, to make the initial model."""

    job: JobId
    round: Round
    attempt: Annotated[int, Field(ge=1)]
    members: Annotated[tuple[Name, ...], Field(min_length=1)]
    base: BlobRef | None
    spec: JobSpec
    asked: float  # time at which the trainer heard of the round, in seconds since the epoch
    fence: Fence = 0  # the fence of the aggregator that asked
    again: bool = False  # True if asked a second time: the update may lie in the store already
    cohort_size: Annotated[int, Field(ge=1)] = 1  # clients in the whole round
    state: StateRef | None = None  # the client's state
    server: BlobRef | None = None  # the server state
    previous: Digest | None = None  # the digest of the model before the base
    delta: BlobRef | None = None  # the difference that makes the base of `previous`

    @property
    def client(self) -> str:
        """The client that the work is named after: the first of a batch stands for all."""
        return self.members[0]

    @property
    def is_batch(self) -> bool:
        """True if its update is the fold of its members' updates, even of a single one."""
        return self.base is not None and self.spec.rounds.clients_per_task > 1

    @property
    def work(self) -> tuple[str, int, int, int]:
        """Key by which `Signals` tells what is over: later owners come after earlier ones, at any attempt."""
        return self.job, self.round, self.fence, self.attempt

    @property
    def identity(self) -> str:
        return task_id(self.job, self.round, self.attempt, *self.members)


def check_sizes(work: TrainTask | EvaluateModel) -> None:
    """Raises `Refused` if a blob that the work needs is longer than its job allows, before memory is kept for it."""
    limit = work.spec.limits.max_model_mb
    for name, ref, times in _needed(work):
        if ref is not None and ref.size > times * limit << 20:
            raise Refused(f"the {name} has {ref.size >> 20} MB; limits.max_model_mb is {limit}")


def _needed(work: TrainTask | EvaluateModel) -> Iterator[tuple[str, BlobRef | StateRef | None, int]]:
    """The blobs that it fetches: a name, the reference, and the limit of its length, in lengths of the model."""
    if isinstance(work, TrainTask):
        yield from (("base", work.base, 1), ("difference", work.delta, 1))
        yield from (("server state", work.server, VECTORS), ("client's state", work.state, VECTORS))
    else:
        yield "model", work.model, 1
        yield from (("client's state", state, VECTORS) for state in work.states)


def task_id(job: str, number: int, attempt: int, *clients: str) -> str:
    """The id of a task: the same for the same work, from any trainer and at any repetition."""
    return str(uuid.uuid5(_NAMESPACE, f"{job}/{number}/{attempt}/{','.join(clients)}"))


def train_tasks(event: RoundStart, asked: float) -> Iterator[TrainTask]:
    """The tasks of a round-start: consecutive clients of the cohort in batches, or each client by itself."""
    size = event.spec.rounds.clients_per_task if event.base is not None else 1
    states = event.states or (None,) * len(event.cohort)
    for first in range(0, len(event.cohort), size):
        yield TrainTask(
            job=event.job,
            round=event.round,
            attempt=event.attempt,
            members=event.cohort[first : first + size],
            base=event.base,
            spec=event.spec,
            asked=asked,
            fence=event.fence,
            again=event.again,
            cohort_size=event.cohort_size or len(event.cohort),
            state=states[first],  # clients of a batch have no state
            server=event.server,
            previous=event.previous,
            delta=event.delta,
        )


KINDS = ("train", "evaluate")
CONTENT_TYPE, CONTENT_ENCODING = "application/x-msgpack", "binary"

_BROKERS = (*COUNTS, "x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason")
_FOLLOWING = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}  # no task follows


class Task(NamedTuple):
    """Work for a slot."""

    kind: str  # one of `KINDS`
    identity: str  # the id, the same for the same work
    description: str  # text for a person who looks at the queue in RabbitMQ's management page
    argument: dict[str, Any]  # a `TrainTask` or an `EvaluateModel`, as JSON

    @property
    def headers(self) -> dict[str, Any]:
        return {"lang": "py", "task": self.kind, "id": self.identity, "argsrepr": self.description}

    @property
    def body(self) -> bytes:
        """The body of Celery's protocol 2: positional arguments, named ones, and the tasks that follow."""
        packed: bytes = msgpack.packb(((self.argument,), {}, _FOLLOWING))
        return packed


def fault(message: Any) -> str | None:
    """The first difference of a message (kombu's) from a task of ours, in a sentence; None if there is none."""
    try:
        if len(message.body) > MAX_BODY:
            return f"it has {len(message.body)} bytes"
        if "unreadable" in message.headers:
            return f"its headers cannot be read: {plain(str(message.headers['unreadable']))[:100]}"
        own = {name: value for name, value in message.headers.items() if name not in _BROKERS}
        (argument,), _, _ = msgpack.unpackb(message.body, strict_map_key=True)
        task = Task(own["task"], own["id"], own["argsrepr"], argument)
        if task.kind not in KINDS or any(type(message.headers.get(name, 0)) is not int for name in COUNTS):
            return "its task or the count of its deliveries is none"
        properties = {name: value for name, value in message.properties.items() if name not in _TOLD}
        parts = {
            "headers": (own, task.headers),
            "properties": (properties, {"correlation_id": task.identity, "delivery_mode": 2, "priority": 0}),
            "encoding": ((message.content_type, message.content_encoding), (CONTENT_TYPE, CONTENT_ENCODING)),
            # Msgpack is written in its shortest form: the same value has the same bytes.
            "body": (message.body, task.body),
        }
    except Exception as error:  # a stranger's message may make a parser raise anything, and that is its fault
        return f"it cannot be read: {type(error).__name__}: {plain(str(error))[:100]}"
    return next((f"its {name} has more or else" for name, (found, ours) in parts.items() if found != ours), None)


#: Properties that kombu repeats elsewhere in the message, where they are checked.
_TOLD = ("content_type", "content_encoding", "application_headers")
