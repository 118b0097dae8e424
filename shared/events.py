"""Events that the services send to each other: frozen values, and their one encoding on the wire.

Pure. A body is a msgpack map of the event's fields plus `schema`, at most 64 KiB; `type` rides in the AMQP
properties, where a person reading the RabbitMQ console sees it. Model bytes never ride the bus: a `BlobRef` does.

A holder of a trainer's password may send anything, so the result of `decode` is bounded: numbers are finite and no
larger than JSON's integers, text holds only characters that show, and a blob lies below the event's own job.
"""

import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

import msgpack
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
)

from shared.errors import BadMessage
from shared.job.job_spec import JobSpec
from shared.names import CLIENT_NAME, JOB_ID
from shared.text import plain

SCHEMA = 1
MAX_BODY = 64 * 1024  #: bytes; longer contents belong in the object store
LISTED = 1024  #: labels or numbers that `Inputs` lists; twice as many numbers and 16 KB of labels stay under 64 KiB
COHORT_SLICE = 500  #: clients in one round-start: 500 names of 63 characters stay under 64 KiB
STATEFUL_SLICE = 200  #: clients in one round-start that also names their states
FIGURES = 100  #: figures in one event, and of a job at its end: their names alone take 25 KB at most
SENTENCE = 4000  #: characters
NAMED = 10  #: clients named in a list that may have any length
MAX_SLOTS = 256  #: of one trainer

JobId = Annotated[str, Field(pattern=JOB_ID)]
Name = Annotated[str, Field(pattern=CLIENT_NAME)]
Round = Annotated[int, Field(ge=0, le=1_000_000)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: Text for users, cut if it is long, because it may quote text from other sources.
Sentence = Annotated[str, AfterValidator(lambda text: plain(text[:SENTENCE]))]
LABEL = 64  #: characters
Label = Annotated[str, Field(max_length=LABEL), AfterValidator(plain)]
Class = Annotated[str, Field(max_length=200), AfterValidator(plain)]
Count = Annotated[int, Field(ge=0, le=2**53)]  #: the integers that every reader of JSON represents exactly
Fence = Count  #: the fencing token of the aggregator that sends the event; grows with each owner of a job

LARGEST = 3.4028234663852886e38  #: magnitude of a figure: float32's largest number


def _bounded(value: float) -> float:
    return value if abs(value) <= LARGEST else math.nan


#: A loss, an accuracy or a figure of the user's own code. A number outside float32 becomes NaN, which is null on the
#: wire.
Figure = Annotated[
    float,
    Field(allow_inf_nan=True, strict=True),
    BeforeValidator(lambda value: math.nan if value is None else value),
    AfterValidator(_bounded),
    PlainSerializer(lambda value: None if math.isnan(value) else value, when_used="json"),
]
Figures = Annotated[dict[Label, Figure], Field(max_length=FIGURES)]
Timings = Annotated[dict[Label, Annotated[float, Field(ge=0)]], Field(max_length=FIGURES)]  #: seconds


def fitting(figures: Mapping[str, float]) -> dict[str, float]:
    """The first of these figures, as many as fit an event; figures with too long a name are left out."""
    return dict(islice(((name, value) for name, value in figures.items() if len(name) <= LABEL), FIGURES))


def _one_of_each(states: tuple[Any, ...], told: ValidationInfo) -> tuple[Any, ...]:
    """The clients' states unchanged; `ValueError` unless there is one for each client, or none at all."""
    clients = told.data.get("cohort", told.data.get("clients", states))
    if states and len(states) != len(clients):
        raise ValueError(f"there are {len(states)} for {len(clients)} clients")
    return states


class Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StateRef(Value):
    """A reference to a client's state, stored under the client's name and its own digest; see `names.state_blob`."""

    size: Count
    digest: Digest


States = Annotated[tuple[StateRef | None, ...], AfterValidator(_one_of_each)]


class Member(Value):
    """One client of those that an update was folded from."""

    client: Name
    examples: Annotated[Count, Field(ge=1)]
    metrics: Figures = {}


class BlobRef(Value):
    """A reference to a blob: its key, its size in bytes, and their SHA-256."""

    key: Annotated[str, Field(max_length=512)]
    size: Count
    digest: Digest


class Inputs(Value):
    """Form of the examples that a job's model takes; the examples of all clients must have it.

    A value v in the file is (v − offset) / scale to the model, by feature or channel, or one for all of them; left
    out, they are 0 and 1. Labels are those of the classes 0, 1, …; None if the classes have no names. Lists of more
    than `LISTED` are left out, so that an event holds the rest. The digest is that of the files if all clients share
    them.
    """

    shape: tuple[Count, ...]  # of one example
    classes: Annotated[Count, Field(ge=1)]
    labels: Annotated[tuple[Class, ...], Field(max_length=LISTED)] | None = None
    offset: Annotated[tuple[float, ...], Field(max_length=LISTED)] | None = None
    scale: Annotated[tuple[float, ...], Field(max_length=LISTED)] | None = None
    digest: Digest | None = None


class Event(Value):
    """Base of all events; `type` is the word on the wire, in the log and in the guide."""

    type: ClassVar[str]
    max_body: ClassVar[int] = MAX_BODY
    job: JobId

    @property
    def routing_key(self) -> str:
        return f"{self.type}.{self.job}"


class StartTraining(Event):
    """An operator's request to run this job."""

    type = "start-training"
    max_body = 16 * 1024  # so that a round-start holds the spec and a slice of the cohort
    spec: JobSpec

    @property
    def routing_key(self) -> str:
        return self.type


class StopTraining(Event):
    """An operator's request to end this job in its present state."""

    type = "stop-training"
    reason: Sentence


class PauseTraining(Event):
    """An operator's request to begin no further round of this job until it is resumed."""

    type = "pause-training"
    reason: Sentence


class RoundStart(Event):
    """A request to a pool, or to one silo, to train `cohort` on the base model; round 0 asks for the first model.

    `again` marks a repeated request: the cohort holds the clients of the round that have not answered, whose updates
    may be in the store already.
    """

    type = "round-start"
    group: Name  # the pool, or the one client that a silo is
    round: Round
    attempt: Annotated[Count, Field(ge=1)]
    base: BlobRef | None
    cohort: tuple[Name, ...]
    spec: JobSpec
    deadline: float  # seconds since the epoch, by Redis's clock
    fence: Fence = 0
    again: bool = False
    cohort_size: Count = 0  # of the whole round: the grid of partial folds follows from it
    states: States = ()  # for each client of the cohort, the state after its last update that counted
    server: BlobRef | None = None  # the server state, if clients need it to train
    previous: Digest | None = None  # of the model before the base
    delta: BlobRef | None = None  # the compressed difference from that model to the base

    @property
    def routing_key(self) -> str:
        return f"{self.type}.{self.group}"


class ModelUpdate(Event):
    """The result of training a client: a blob of float32 deltas, or the error that prevented it."""

    type = "model-update"
    round: Round
    attempt: Annotated[Count, Field(ge=1)]
    client: Name
    trainer: Name
    base: Digest | None  # of the model that the update was trained on
    update: BlobRef | None
    examples: Count
    members: tuple[Member, ...] = ()  # clients of a partial fold, `client` the first; empty for a single client
    failures: dict[Name, Sentence] = {}  # client → the reason why it is not in the partial fold
    state: StateRef | None = None  # the client's, once this update counts
    metrics: Figures = {}
    timings: Timings = {}
    downloaded: Count = 0  # bytes; 0 if the node had the base already
    inputs: Inputs | None = None  # with the initial model: the form of the data that it was made for
    code: Digest | None = None  # of the user's own files that a pool's trainer ran for it
    tries: Annotated[Count, Field(ge=1)] = 1  # deliveries of its task, this one included
    error: Sentence | None = None

    @property
    def routing_key(self) -> str:
        return f"{self.type}.{self.job}.{self.client}"


class EvaluateModel(Event):
    """A request to a pool, or to one silo, to evaluate a model on the held-out test set or on clients' examples."""

    type = "evaluate-model"
    group: Name
    round: Round
    model: BlobRef
    spec: JobSpec
    clients: tuple[Name, ...] = ()  # the clients whose held-out examples are used; empty for the server's test set
    states: States = ()  # of each of the clients
    part: Count = 0  # number of this part of the round's evaluation

    @property
    def routing_key(self) -> str:
        return f"{self.type}.{self.group}"


class ModelEvaluated(Event):
    """The evaluation of a round's model on the held-out test set; 0 examples if there is no such set."""

    type = "model-evaluated"
    round: Round
    model: Digest
    trainer: Name
    examples: Count
    metrics: Figures = {}
    members: tuple[Member, ...] = ()  # each client's figures, if clients were asked
    part: Count = 0  # number of the part, from the request
    downloaded: Count = 0  # bytes; 0 if the node had the model already
    error: Sentence | None = None


class RoundEnd(Event):
    """The end of a round: its model is committed, or there is none and `reason` says why."""

    type = "round-end"
    round: Round
    attempt: Annotated[Count, Field(ge=1)] = 1  # of the round: another may follow a failed one
    fence: Fence = 0
    outcome: Literal["committed", "failed", "stopped"]
    reason: Sentence = ""
    accepted: Count
    rejected: Count
    metrics: Figures = {}
    model: BlobRef | None = None
    seconds: float = 0.0
    lag: Count = 0  # number of earlier rounds whose updates are still wanted


class Missing(Value):
    """Absences from a job's models: the number of clients that were asked and never accepted, the first by name."""

    clients: Count = 0
    first: Annotated[tuple[Name, ...], Field(max_length=NAMED)] = ()
    refused: Count = 0  # updates that the aggregator refused
    failed: Count = 0  # answers that a client cannot train


class TrainingEnd(Event):
    """The end of a job."""

    type = "training-end"
    outcome: Literal["finished", "stopped", "failed"]
    reason: Sentence = ""
    rounds: Annotated[int, Field(ge=-1, le=1_000_000)]
    metrics: Figures = {}
    model: BlobRef | None = None
    missing: Missing = Missing()
    seconds: float = 0.0
    fence: Fence = 0  # work requested under this fence or an earlier one is over


class JobStatus(Event):
    """The activity of a job, or the thing it waits for, in a sentence for users who watch it."""

    type = "job-status"
    status: Literal["running", "waiting", "paused"]
    detail: Sentence


class Heartbeat(Value):
    """A sign of life of a trainer, with its load; `leaving` marks the last one."""

    type: ClassVar[str] = "heartbeat"
    max_body: ClassVar[int] = MAX_BODY
    trainer: Name
    pool: Name | None
    client: Name | None
    host: Annotated[str, Field(max_length=255), AfterValidator(plain)]
    pid: Count
    device: Label
    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)]
    busy: Annotated[int, Field(ge=0, le=MAX_SLOTS)]
    leaving: bool = False
    sent_at: float  # seconds since the epoch, by the trainer's clock: shows skew

    @property
    def group(self) -> str:
        return self.pool or self.client or ""

    @property
    def routing_key(self) -> str:
        return f"{self.type}.{self.trainer}"


class TrainerJoined(Value):
    """A notice that the registry has taken a trainer into the roster, so that a job that waited for one may go on."""

    type: ClassVar[str] = "trainer-joined"
    max_body: ClassVar[int] = MAX_BODY
    trainer: Name
    group: Name

    @property
    def routing_key(self) -> str:
        return f"{self.type}.{self.group}"


AnyEvent = Event | Heartbeat | TrainerJoined

EVENTS: dict[str, type[AnyEvent]] = {
    event.type: event
    for event in (
        StartTraining,
        StopTraining,
        PauseTraining,
        RoundStart,
        ModelUpdate,
        EvaluateModel,
        ModelEvaluated,
        RoundEnd,
        TrainingEnd,
        JobStatus,
        Heartbeat,
        TrainerJoined,
    )
}


def encode(event: AnyEvent) -> bytes:
    """The body of `event`; `BadMessage` if it cannot be encoded or is longer than `max_body`."""
    try:
        body: bytes = msgpack.packb({"schema": SCHEMA, **event.model_dump(mode="json")})
    except (ValueError, OverflowError, RecursionError) as error:  # a job's `args` may hold anything
        raise BadMessage(f"{event.type} holds a value that cannot be sent: {error}") from error
    if len(body) > event.max_body:
        raise BadMessage(f"{event.type} has {len(body)} bytes; it has at most {event.max_body}")
    return body


def decode(kind: str | None, body: bytes) -> AnyEvent:
    """The event in `body`; any mistake in it is a `BadMessage` that names the mistake."""
    event = EVENTS.get(kind or "")
    if event is None:
        raise BadMessage(f"unknown event type {kind!a:.64}; known: {', '.join(EVENTS)}")
    if len(body) > MAX_BODY:
        raise BadMessage(f"{kind} has {len(body)} bytes; an event has at most {MAX_BODY}")
    fields = _unpack(kind, body)
    version = fields.pop("schema", None)
    if type(version) is not int or version != SCHEMA:
        shown = f"{version!a:.20}" if isinstance(version, int | str | None) else f"a {type(version).__name__}"
        raise BadMessage(f"{kind} has schema {shown}; this fedq reads schema {SCHEMA}")
    try:
        found = event.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = plain(".".join(str(part) for part in first["loc"]))
        raise BadMessage(f"{kind}.{where:.100}: {plain(first['msg']):.300}") from error
    if isinstance(found, Event):
        check_places(found.job, found)
    return found


def check_places(job: str, value: Value) -> None:
    """Raises `BadMessage` if a blob that a value refers to lies outside its job."""
    for name in type(value).model_fields:
        ref = getattr(value, name)
        if isinstance(ref, BlobRef):
            place = re.fullmatch(r"jobs/([^/]+)((?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+)", ref.key)
            if place is None or place[1] != job:
                kind = getattr(value, "type", "a task")
                raise BadMessage(f"{kind}.{name}: {ref.key[:100]!a} is no blob of job {job}")


def slices(
    cohort: tuple[str, ...], *, stateful: bool = False, batch: int = 1, most: int = COHORT_SLICE
) -> Iterator[tuple[str, ...]]:
    """The cohort in pieces that each fit one event, of at most `most` clients, cut between batches."""
    most = min(most, STATEFUL_SLICE if stateful else COHORT_SLICE)
    most -= most % batch
    for start in range(0, len(cohort), most):
        yield cohort[start : start + most]


def _unpack(kind: str | None, body: bytes) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(body, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessage(f"{kind} is not msgpack: {str(error) or type(error).__name__}") from error
    if not isinstance(fields, dict):
        raise BadMessage(f"{kind} is a msgpack {type(fields).__name__}; an event is a map")
    return fields
