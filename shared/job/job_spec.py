"""The job file: one schema for what a person writes, an editor completes and every service reads.

Pure: text and values in, a frozen `JobSpec` out, or `BadInput` that names each mistake with its path,
its value and the allowed values. The entries that a file may name are in `shared.job.catalog`.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

from shared.errors import BadInput
from shared.job import combinations, mistakes
from shared.job.catalog.data import DataSpec
from shared.job.catalog.selection import Some
from shared.job.catalog.strategies import FedBuff
from shared.job.job_fields import JobFields, are_own
from shared.names import ClientName

Kind = TypeVar("Kind", bound=BaseModel)

EXTENDED = 3  #: deadlines that a delayed round may last at most
CLAIMS = 20  #: owners that a job may lose in a row without a committed round; then it fails


class JobSpec(JobFields):
    """One federated training."""

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


class Draft(BaseModel):
    """Data section of a job file that may lack other sections."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    seed: StrictInt = Field(default=0, ge=0, lt=2**31)
    data: DataSpec
    silos: tuple[ClientName, ...] | None = None

    @property
    def has_own_files(self) -> bool:
        """True if each client trains on a whole, separate file, as `JobFields.has_own_files`."""
        return are_own(self.silos, self.data)


def parse(document: object, texts: Mapping[tuple[str | int, ...], str] = {}) -> JobSpec:
    """The job that a parsed YAML document describes, or `BadInput` with one line per mistake.

    `texts` holds plain values as the user wrote them, by the path of each.
    """
    return _parsed(JobSpec, document, texts)


def draft(document: object, texts: Mapping[tuple[str | int, ...], str] = {}) -> Draft:
    """The data section of a parsed YAML document, or `BadInput` with one line per mistake in that section."""
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
            place[key] = dict(inner)  # a copy, because a YAML alias may put the same section elsewhere too
            place = place[key]
        place[keys[-1]] = value
    return result


def new_job_id(name: str) -> str:
    """`<name>-<6 characters>`, from an alphabet without look-alikes."""
    return f"{name}-{''.join(secrets.choice('abcdefghjkmnpqrstuvwxyz23456789') for _ in range(6))}"
