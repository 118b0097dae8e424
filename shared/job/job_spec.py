"""The job file: one schema for what a person writes, an editor completes and every service reads.

Pure: text and values in, a frozen `JobSpec` out, or `BadInput` that names each mistake with its path,
its value and what is allowed. What may be named in it is `shared.job.catalog`'s.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, model_validator

from shared.errors import BadInput
from shared.job import combinations, mistakes
from shared.job.catalog.choice import Custom, Strict
from shared.job.catalog.compression import CompressSpec
from shared.job.catalog.data import DataSpec, InFiles
from shared.job.catalog.models import ModelSpec
from shared.job.catalog.rounds import EvaluateSpec, LimitsSpec, RoundsSpec
from shared.job.catalog.selection import SelectAll, SelectSpec, Some
from shared.job.catalog.simulation import SimulateSpec
from shared.job.catalog.strategies import FedAvg, FedBuff, Scaffold, StrategySpec
from shared.job.catalog.training import TrainChoice, TrainSpec
from shared.job.clients import Listed, Numbered
from shared.names import JOB_NAME, ClientName

Kind = TypeVar("Kind", bound=BaseModel)

EXTENDED = 3  #: a round that is held up may last this many times its deadline, and no longer
CLAIMS = 20  #: owners that a job may lose without committing a round between them; then it fails


class JobSpec(Strict):
    """One federated training."""

    name: str = Field(pattern=JOB_NAME)
    seed: StrictInt = Field(default=0, ge=0, lt=2**31)
    model: ModelSpec
    data: DataSpec
    train: TrainChoice = TrainSpec()
    select: SelectSpec = SelectAll()
    rounds: RoundsSpec
    strategy: StrategySpec = FedAvg()
    compress: CompressSpec = CompressSpec()
    limits: LimitsSpec = LimitsSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    simulate: SimulateSpec | None = None
    pool: ClientName | None = None
    silos: tuple[ClientName, ...] | None = Field(default=None, min_length=1)
    keep_updates: StrictBool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.pool is None) == (self.silos is None):
            raise ValueError(
                "give either pool (trainers that share the data's clients) or silos (the clients that own their data)"
            )
        if self.silos is not None and len(set(self.silos)) < len(self.silos):
            raise ValueError("silos names a client twice")
        if self.pool is not None and self.data.clients is None:
            raise ValueError("a pool needs data.clients: into how many clients the data is split")
        if isinstance(self.select, Some) and self.select.clients > self.population:
            raise ValueError(f"select.clients is {self.select.clients}, but there are {self.population} clients")
        if self.target > self.cohort_size:
            key = "strategy.buffer_size" if isinstance(self.strategy, FedBuff) else "rounds.target"
            raise ValueError(f"{key} is {self.target}, but a round asks {self.cohort_size} clients")
        if self.minimum > self.target:
            key = "strategy.buffer_size" if isinstance(self.strategy, FedBuff) else "rounds.target"
            raise ValueError(f"rounds.minimum is {self.minimum}, more than {key}, {self.target}")
        if problems := list(combinations.problems(self)):
            raise ValueError("\n".join(problems))
        return self

    @property
    def population(self) -> int:
        """How many clients the job has."""
        return len(self.silos) if self.silos is not None else self.data.clients or 0

    @cached_property
    def clients(self) -> Listed | Numbered:
        """Their names, in order."""
        return Listed(self.silos) if self.silos is not None else Numbered(self.population)

    def in_order(self, clients: Collection[str]) -> tuple[str, ...]:
        """Some of them, in the job's order."""
        return tuple(sorted(clients, key=self.clients.index))

    @property
    def has_own_files(self) -> bool:
        """True where each client trains on all of a file of its own, not on a share of what all of them have."""
        return _are_own(self.silos, self.data)

    @property
    def needs_test_set(self) -> bool:
        """True where the model is evaluated on the data's held-out test set."""
        return self.evaluate.every > 0 and self.evaluate.where != "clients"

    @property
    def cohort_size(self) -> int:
        """How many clients a round asks."""
        if isinstance(self.select, Some):
            return min(self.select.size, self.population)
        return self.population

    @property
    def target(self) -> int:
        """How many updates close a round."""
        if isinstance(self.strategy, FedBuff):
            return self.strategy.buffer_size
        wanted = self.select.clients if isinstance(self.select, Some) else self.cohort_size
        return self.rounds.target or wanted

    @property
    def minimum(self) -> int:
        """How many updates a round needs at its deadline."""
        return self.rounds.minimum or (1 if self.max_staleness else self.target)

    @property
    def max_staleness(self) -> int:
        """How many rounds ago an update may have been begun; 0 where rounds are synchronous."""
        return self.strategy.max_staleness if isinstance(self.strategy, FedBuff) else 0

    @property
    def is_stateful(self) -> bool:
        """Whether clients keep something from round to round."""
        feedback = self.compress.update is not None and self.compress.update.error_feedback
        keeps = bool(self.train.personal) or self.train.buffers == "local"
        return isinstance(self.strategy, Scaffold) or feedback or keeps

    @property
    def has_code(self) -> bool:
        """True where trainers run code of the user's own for it."""
        return bool(self.code)

    @property
    def code(self) -> tuple[str, ...]:
        """The names, `module:attribute`, of the user's own code that trainers run."""
        return tuple(part.name for part in (self.model, self.data, self.train) if isinstance(part, Custom))

    def group_of(self, client: str) -> str:
        """Whose queue a client's work goes to: its pool's, or its own."""
        return self.pool or client


class Draft(BaseModel):
    """Data section of a job file, whatever is missing before it is a job."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    seed: StrictInt = Field(default=0, ge=0, lt=2**31)
    data: DataSpec
    silos: tuple[ClientName, ...] | None = None

    @property
    def has_own_files(self) -> bool:
        """As of a job."""
        return _are_own(self.silos, self.data)


def _are_own(silos: tuple[str, ...] | None, data: object) -> bool:
    return silos is not None and isinstance(data, InFiles)


def parse(document: object, texts: Mapping[tuple[str | int, ...], str] = {}) -> JobSpec:
    """The job that a parsed YAML document describes, or `BadInput` with one line per mistake.

    `texts` has plain values as a person wrote them, by the path that leads to each.
    """
    return _parsed(JobSpec, document, texts)


def draft(document: object, texts: Mapping[tuple[str | int, ...], str] = {}) -> Draft:
    """The data section of a parsed YAML document, or `BadInput` with one line per mistake in that."""
    return _parsed(Draft, document, texts)


def _parsed(kind: type[Kind], document: object, texts: Mapping[tuple[str | int, ...], str]) -> Kind:
    if not isinstance(document, Mapping):
        raise BadInput("a job file is a mapping that starts with name:, model:, data:, rounds:")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise BadInput("\n".join(mistakes.sentences(error, kind, texts))) from error


def override(document: Mapping[str, Any], assignments: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """`document` with each dotted path set to its value, as `--set rounds.count=3` does."""
    result = dict(document)
    for path, value in assignments:
        keys = path.split(".")
        place = result
        for depth, key in enumerate(keys[:-1], 1):
            inner = place.get(key, {})
            if not isinstance(inner, Mapping):
                raise BadInput(f"--set {path}: {'.'.join(keys[:depth])} holds a value, not a section")
            place[key] = dict(inner)  # a copy: an alias may have the same section elsewhere
            place = place[key]
        place[keys[-1]] = value
    return result


def new_job_id(name: str) -> str:
    """`<name>-<6 characters>`, from an alphabet without look-alikes."""
    return f"{name}-{''.join(secrets.choice('abcdefghjkmnpqrstuvwxyz23456789') for _ in range(6))}"
