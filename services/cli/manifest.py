"""The commit record of a round as a value: what `docs/guide/records.md` says of it, as far as it is judged here."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared import fold
from shared.catalog.strategies import StrategySpec
from shared.errors import Refused
from shared.events import BlobRef


class Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Grid(Record):
    """The fixed-point grid that the round was folded on."""

    max_abs: float = Field(gt=0)
    max_weight: int = Field(ge=1)
    updates: int = Field(ge=1)
    shift: int

    def rebuilt(self) -> fold.Grid:
        """The same grid made here, or `Refused` where it comes out otherwise."""
        made = fold.Grid(max_abs=self.max_abs, max_weight=self.max_weight, updates=self.updates)
        if made.shift != self.shift:
            raise Refused(f"the grid's shift is {made.shift} here and {self.shift} in the manifest")
        return made


class Counted(Record):
    """An update that is in the round's model."""

    client: str
    blob: BlobRef
    examples: int
    max_abs: float | None = None
    norm: float | None = None


class Fault(Record):
    """A line of the job's log."""

    fault: str
    round: int = -1
    detail: str = ""


class Manifest(Record):
    """A committed round."""

    round: int
    attempt: int
    base: BlobRef | None
    model: BlobRef
    strategy: StrategySpec
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


def read(document: dict[str, Any]) -> Manifest:
    """The manifest in a document, or `Refused` with what is wrong with it."""
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refused(f"its manifest cannot be read: {where}: {first['msg']}") from error
