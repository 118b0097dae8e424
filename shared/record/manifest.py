"""The commit record of a round as a value; `docs/guide/records.md` describes each field."""

from typing import Any

from pydantic import Field, ValidationError

from shared.aggregation import fold
from shared.aggregation.aggregate import Plan
from shared.aggregation.strategies import strategy
from shared.errors import Refused
from shared.events import BlobRef, Figures
from shared.job.catalog.compression import CompressSpec
from shared.job.catalog.strategies import StrategySpec
from shared.record.job import Document


class Grid(Document):
    """The fixed-point grid that the round was folded on."""

    max_abs: float = Field(gt=0)
    max_weight: int = Field(ge=1)
    updates: int = Field(ge=1)
    shift: int

    def rebuilt(self) -> fold.Grid:
        """The same grid made here, or `Refused` if it comes out otherwise."""
        made = fold.Grid(max_abs=self.max_abs, max_weight=self.max_weight, updates=self.updates)
        if made.shift != self.shift:
            raise Refused(f"the grid's shift is {made.shift} here and {self.shift} in the manifest")
        return made


class Counted(Document):
    """An update that is in the round's model."""

    client: str
    blob: BlobRef
    examples: int
    metrics: Figures = Field(default_factory=dict)
    max_abs: float | None = None
    norm: float | None = None
    staleness: int = 0  # rounds since the one that it was trained in
    batch: str | None = None  # the first of the clients whose partial fold the blob is

    @property
    def known(self) -> strategy.Counted:
        """The update as strategies know it."""
        return strategy.Counted(self.client, self.examples, self.norm or 0.0, self.staleness, self.metrics)


class Fault(Document):
    """A line of the job's log."""

    fault: str
    round: int = -1
    detail: str = ""


class Manifest(Document):
    """A committed round."""

    round: int
    attempt: int
    base: BlobRef | None
    model: BlobRef
    strategy: StrategySpec
    compress: CompressSpec = CompressSpec()
    population: int = 1
    lr: float = 1.0
    server: BlobRef | None = None  # the strategy's state
    grid: Grid | None
    weight: int
    updates: tuple[Counted, ...]
    rejected: dict[str, str]
    opened: float
    committed: float
    cohort: tuple[str, ...] | None = None
    unanswered: tuple[str, ...] | None = None
    faults: tuple[Fault, ...] | None = None
    fence: int | None = None
    deadline: float | None = None

    @property
    def plan(self) -> Plan:
        """Everything but its updates that the round's model depends on."""
        return Plan(strategy=self.strategy, compress=self.compress, population=self.population, lr=self.lr)

    @property
    def groups(self) -> list[tuple[Counted, ...]]:
        """The updates, those of one partial fold together."""
        batches: dict[str, list[Counted]] = {}
        alone = [(update,) for update in self.updates if update.batch is None]
        for update in self.updates:
            if update.batch is not None:
                batches.setdefault(update.blob.key, []).append(update)
        return [*alone, *map(tuple, batches.values())]


def read(document: dict[str, Any]) -> Manifest:
    """The manifest in a document, or `Refused` with what is wrong with it."""
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refused(f"its manifest cannot be read: {where}: {first['msg']}") from error
