"""Records of a round as values: its manifest with each update, and its evaluation.

`docs/guide/records.md` describes each field. A record of many clients is stored as a head and parts
(`shared.record.parts`): `Round` is what a manifest's head says of the round as a whole, `ClientLists` is what one part
says of some clients, and `Manifest` is all of it, put together.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field

from shared.aggregation import fold
from shared.aggregation.aggregate import Plan
from shared.aggregation.strategies.strategy import Counted
from shared.errors import Refused
from shared.events import BlobRef, Count, Digest, Inputs, StateRef
from shared.job.catalog.compression import CompressSpec
from shared.job.catalog.strategies import StrategySpec
from shared.record.job import Document, Number
from shared.s3.json_records import figures, reading

OF_CLIENTS = ("cohort", "carried", "updates", "rejected", "unanswered")  #: fields that tell of clients
LARGEST = 2**70  #: bytes that a round may have moved: a million clients at the most that one may say


def _checked_amount(amount: Any) -> int:
    if type(amount) is not int or not 0 <= amount <= LARGEST:
        raise ValueError("no number of files or bytes")
    return amount


Amount = Annotated[Any, AfterValidator(_checked_amount)]
#: Figures, or seconds, by name; null, which a number that is not finite is stored as, is NaN.
Measured = Annotated[dict[str, float], BeforeValidator(figures)]


class AcceptedUpdate(Document):
    """One client's update that counts. Clients whose updates one file sums up have an entry each, with that file."""

    client: str
    trainer: str = ""
    blob: BlobRef
    examples: int
    metrics: Measured = Field(default_factory=dict)
    timings: Measured = Field(default_factory=dict)  # seconds by part of the trainer's work
    downloaded: int = 0  # bytes
    max_abs: float | None = None  # None in round 0, whose update is the initial model
    norm: float | None = None  # L2 of what changed of the parameters
    staleness: int = 0  # rounds since the one that it was trained in
    batch: str | None = None  # the first of the clients whose partial fold the blob is
    state: StateRef | None = None  # the client's, from now on
    inputs: Inputs | None = None  # of the initial model; the manifest has it beside the updates

    @classmethod
    def of_ledger(cls, key: str, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Self]:
        """The updates that the ledger holds under `key`, by client; `Refused` if an entry is no update."""
        with reading(key):
            return {client: cls.model_validate({"client": client, **entry}) for client, entry in entries.items()}

    @property
    def counted(self) -> Counted:
        """The update as strategies know it."""
        return Counted(self.client, self.examples, self.norm or 0.0, self.staleness, self.metrics)

    @property
    def line(self) -> dict[str, Any]:
        """The update's JSON object in a manifest; a field that says nothing is left out."""
        return {"client": self.client, **{name: value for name, value in self.entry.items() if name != "inputs"}}

    @property
    def entry(self) -> dict[str, Any]:
        """The update's JSON object in the ledger, which has it under its client."""
        found: dict[str, Any] = {  # written out, because `model_dump` takes ten times as long, for each of many clients
            "trainer": self.trainer,
            "blob": {"key": self.blob.key, "size": self.blob.size, "digest": self.blob.digest},
            "examples": self.examples,
            "metrics": self.metrics,
            "timings": self.timings,
            "downloaded": self.downloaded,
        }
        if self.max_abs is not None:
            found |= {"max_abs": self.max_abs, "norm": self.norm}
        if self.staleness:
            found["staleness"] = self.staleness
        if self.batch is not None:
            found["batch"] = self.batch
        if self.state is not None:
            found["state"] = self.state.model_dump()
        if self.inputs is not None:
            found["inputs"] = self.inputs.model_dump(mode="json")
        return found


def by_blob(updates: Iterable[AcceptedUpdate]) -> list[tuple[AcceptedUpdate, ...]]:
    """The updates, those of one file together; files and their clients are in the order of the clients' names."""
    found: dict[str, list[AcceptedUpdate]] = {}
    for update in sorted(updates, key=lambda one: one.client):
        found.setdefault(update.blob.key, []).append(update)
    return [tuple(group) for group in found.values()]


class GridRecord(Document):
    """Fixed-point grid that a round was folded on."""

    max_abs: float = Field(gt=0)
    max_weight: int = Field(ge=1)
    updates: int = Field(ge=1)
    shift: int

    @classmethod
    def of(cls, grid: fold.Grid) -> Self:
        """The record of a grid."""
        return cls(max_abs=grid.max_abs, max_weight=grid.max_weight, updates=grid.updates, shift=grid.shift)

    def rebuilt(self) -> fold.Grid:
        """The same grid made here, or `Refused` if it comes out otherwise."""
        made = fold.Grid(max_abs=self.max_abs, max_weight=self.max_weight, updates=self.updates)
        if made.shift != self.shift:
            raise Refused(f"the grid's shift is {made.shift} here and {self.shift} in the manifest")
        return made


class Fault(Document):
    """Line of the job's log."""

    at: float = 0.0  # seconds since the epoch
    fault: str
    round: int = -1
    detail: str = ""


class Round(Document):
    """Committed round as a whole, without its clients."""

    job: str
    round: int
    attempt: int
    fence: int | None = None  # token of the aggregator that committed it
    base: BlobRef | None = None
    model: BlobRef
    server: BlobRef | None = None  # the strategy's state
    delta: BlobRef | None = None  # what makes the model of the one before
    memory: BlobRef | None = None  # the client history
    inputs: Inputs | None = None  # of round 0: the form of the data that the initial model was made for
    metrics: Measured
    traffic: dict[str, Amount] = Field(default_factory=dict)  # files and bytes
    timings: Measured = Field(default_factory=dict)  # seconds by part of the aggregator's work
    opened: float = 0.0  # seconds since the epoch, by Redis's clock, like those that follow
    deadline: float | None = None
    committed: float = 0.0
    seconds: Number  # from `opened` to `committed`


class ClientLists(Document):
    """Fields of a manifest, or of a part of it, that tell of clients."""

    cohort: tuple[str, ...] | None = None  # None in manifests that are older than the field
    carried: dict[str, int] = Field(default_factory=dict)  # client → the earlier round that asked it
    updates: tuple[AcceptedUpdate, ...]
    rejected: dict[str, str]  # client → reason
    unanswered: tuple[str, ...] | None = None

    @property
    def clients(self) -> Iterable[str]:
        """The clients whose updates count."""
        return (update.client for update in self.updates)


class AttemptLists(Document):
    """Fields that tell of clients in the record of an attempt at a round that was abandoned."""

    cohort: tuple[str, ...]
    accepted: tuple[str, ...]
    rejected: dict[str, str]

    @property
    def clients(self) -> Iterable[str]:
        """The clients whose updates had been accepted."""
        return self.accepted


class Manifest(Round, ClientLists):
    """Whole commit record of a round: all that is needed to fold it again, and what happened."""

    strategy: StrategySpec
    compress: CompressSpec = CompressSpec()
    population: int = 1  # clients of the job
    lr: float = 1.0  # of the clients' optimizer
    grid: GridRecord | None
    weight: int  # examples of all updates
    faults: tuple[Fault, ...] | None = None

    @property
    def plan(self) -> Plan:
        """Everything but its updates that the round's model depends on."""
        return Plan(strategy=self.strategy, compress=self.compress, population=self.population, lr=self.lr)

    @property
    def groups(self) -> list[tuple[AcceptedUpdate, ...]]:
        """The updates, those of one partial fold together."""
        batches: dict[str, list[AcceptedUpdate]] = {}
        alone = [(update,) for update in self.updates if update.batch is None]
        for update in self.updates:
            if update.batch is not None:
                batches.setdefault(update.blob.key, []).append(update)
        return [*alone, *map(tuple, batches.values())]

    def document(self) -> dict[str, Any]:
        """The manifest as JSON: the round first, then its clients."""
        found = self.model_dump(mode="json", exclude={*OF_CLIENTS})
        if self.inputs is None:
            del found["inputs"]
        carried = {"carried": self.carried} if self.carried else {}
        return {
            **found,
            "cohort": list(self.cohort or ()),
            **carried,
            "updates": [update.line for update in self.updates],
            "rejected": self.rejected,
            "unanswered": list(self.unanswered or ()),
        }


class Unsound(Document):
    """Figures that are not finite in the last evaluation."""

    since: dict[str, int] = Field(default_factory=dict)  # figure → the first of the evaluations in a row, by round
    clients: tuple[str, ...] = ()  # with a figure on their held-out examples that is not finite

    def document(self) -> dict[str, Any]:
        """The entry of the evaluation's record; empty if all figures are finite."""
        return {"unsound": {"since": self.since, "clients": list(self.clients)}} if self.since else {}


class EvaluationRecord(Document):
    """Evaluation of a round's model as a whole, without its clients."""

    model: Digest
    examples: Count
    metrics: Measured
    traffic: dict[str, Amount] = Field(default_factory=dict)  # bytes
    unsound: Unsound = Unsound()


class EvaluatedClients(Document):
    """Figures of clients on the examples that they hold out, by client."""

    clients: dict[str, Measured] = Field(default_factory=dict)
