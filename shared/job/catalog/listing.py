"""The catalog as a list: each entry of each section of the job file, with its parameters, for people and programs.

Pure. The list is computed from the classes that job files are checked by, so that it cannot contradict them.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from shared.job.catalog.choice import DURATION, Custom, tag_of
from shared.job.catalog.compression import CompressSpec, EncodingSpec
from shared.job.catalog.data import DataSpec, PartitionSpec
from shared.job.catalog.models import Lora, ModelSpec
from shared.job.catalog.rounds import EvaluateSpec, LimitsSpec, RoundsSpec, StopSpec
from shared.job.catalog.selection import SelectSpec
from shared.job.catalog.simulation import (
    AttackSpec,
    AvailabilitySpec,
    DropoutSpec,
    NetworkSpec,
    SimulateSpec,
    SpeedSpec,
)
from shared.job.catalog.strategies import StrategySpec
from shared.job.catalog.training import FedProx, OptimizerSpec, ScheduleSpec, TrainChoice

#: The path of each family in the job file, in the order of the file, and the classes of its entries.
FAMILIES: Mapping[str, Any] = {
    "model": ModelSpec,
    "model.adapters": Lora,
    "data": DataSpec,
    "data.partition": PartitionSpec,
    "train": TrainChoice,
    "train.optimizer": OptimizerSpec,
    "train.schedule": ScheduleSpec,
    "train.fedprox": FedProx,
    "select": SelectSpec,
    "rounds": RoundsSpec,
    "strategy": StrategySpec,
    "compress": CompressSpec,
    "compress.update": EncodingSpec,
    "compress.model": EncodingSpec,
    "limits": LimitsSpec,
    "evaluate": EvaluateSpec,
    "evaluate.stop": StopSpec,
    "simulate": SimulateSpec,
    "simulate.speed": SpeedSpec,
    "simulate.network": NetworkSpec,
    "simulate.availability": AvailabilitySpec,
    "simulate.dropout": DropoutSpec,
    "simulate.attack": AttackSpec,
}
OWN = "module:attribute"  #: the name of the user's own code


@dataclass(frozen=True)
class Parameter:
    """A key of an entry."""

    name: str
    type: str
    default: Any  # as JSON; None if there is none, or if the key is required
    required: bool
    allowed: str  # empty if every value of the type is allowed


@dataclass(frozen=True)
class Entry:
    """One choice of a section, under its `name`; a section without a choice is one entry without a name."""

    name: str | None
    line: str
    parameters: tuple[Parameter, ...]


@cache
def families() -> dict[str, tuple[Entry, ...]]:
    """Every family, in the order of the job file."""
    return {family: tuple(map(_entry, _classes(annotation))) for family, annotation in FAMILIES.items()}


def matching(wanted: str) -> dict[str, tuple[Entry, ...]]:
    """The families that a person means: `train` with all below it, `train.optimizer`, or just `optimizer`."""
    found = {name: entries for name, entries in families().items() if f"{name}.".startswith(f"{wanted}.")}
    return found or {name: entries for name, entries in families().items() if name.endswith(f".{wanted}")}


def in_common(entries: Sequence[Entry]) -> tuple[Parameter, ...]:
    """The parameters that all of several entries share, so that a list shows them only once."""
    named = [entry for entry in entries if entry.name != OWN]
    if len(named) < 2:
        return ()
    return tuple(one for one in named[0].parameters if all(one in entry.parameters for entry in named))


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _classes(part)]


def _entry(kind: type[BaseModel]) -> Entry:
    schema = kind.model_json_schema()
    required = schema.get("required", ())
    name = OWN if issubclass(kind, Custom) else tag_of(kind) if "name" in kind.model_fields else None
    line = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    keys = [(key, found) for key, found in schema["properties"].items() if key != "name"]
    return Entry(name, line, tuple(_parameter(key, found, key in required) for key, found in keys))


def _parameter(name: str, schema: dict[str, Any], required: bool) -> Parameter:
    kind, allowed = _kind(schema)
    return Parameter(name, kind, schema.get("default"), required, allowed)


def _kind(schema: dict[str, Any]) -> tuple[str, str]:
    """The type that a JSON Schema describes, and the allowed values of that type, in words."""
    if schema.get("description") == DURATION:
        return "duration", "> 0, ≤ 7 days"
    if options := [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]:
        return _kind(options[0])
    if "$ref" in schema or "oneOf" in schema:
        return "section", ", ".join(_names(schema))
    if "enum" in schema or "const" in schema:
        return "choice", ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema["type"] in ("array", "object"):
        return _many(schema)
    return {"string": "text", "boolean": "true or false"}.get(schema["type"], schema["type"]), _bounds(schema)


def _many(schema: dict[str, Any]) -> tuple[str, str]:
    """The type of a list or a mapping with its items, and the allowed values of each item, in words."""
    fixed = schema.get("prefixItems")
    inner = fixed[0] if fixed else schema.get("items", schema.get("additionalProperties"))
    if not isinstance(inner, dict):
        return "mapping", ""
    kind, allowed = _kind(inner)
    many = kind.replace("list of", "lists of") if kind.startswith("list of") else f"{kind}s"
    of = "mapping to" if schema["type"] == "object" else f"list of {len(fixed)}" if fixed else "list of"
    least = f"at least {schema['minItems']}" if "minItems" in schema and not fixed else ""
    return f"{of} {many}", ", ".join(filter(None, (least, f"each {allowed}" if allowed else "")))


def _bounds(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "≥ {}",
        "exclusiveMinimum": "> {}",
        "maximum": "≤ {}",
        "exclusiveMaximum": "< {}",
        "multipleOf": "a multiple of {}",
        "maxLength": "at most {} characters",
        "pattern": "like {}",
    }
    return ", ".join(text.format(_number(schema[word])) for word, text in words.items() if word in schema)


def _number(value: Any) -> str:
    whole = isinstance(value, int | float) and float(value).is_integer()
    return f"{int(value):,}" if whole else str(value)


def _names(schema: dict[str, Any]) -> list[str]:
    """The names that may be chosen in a section; for a section without a choice, the family that describes it."""
    refs = [part["$ref"].rpartition("/")[2] for part in schema.get("oneOf", [schema])]
    found = [(family, kind) for family, entries in FAMILIES.items() for kind in _classes(entries)]
    if len(refs) == 1:
        return [f"see {family}" for family, kind in found if kind.__name__ == refs[0]]
    return list(dict.fromkeys(tag_of(kind) for _, kind in found if kind.__name__ in refs))
