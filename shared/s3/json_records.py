"""The JSON of the object store: strict JSON that every parser reads, and readers that trust nothing in a record.

Pure. JSON has no NaN and no infinity: a figure that is not finite is null in a record, and NaN again in Python.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from shared.errors import FedqError, Refused
from shared.text import plain

NO_NUMBER = math.nan


def finite(value: Any) -> Any:
    """A document with null for each number that is not finite; all that is written goes through this rule."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def dumps(document: Any, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """A document as strict JSON (RFC 8259)."""
    try:
        return json.dumps(document, indent=indent, separators=separators, allow_nan=False)
    except ValueError:  # it holds a number that is not finite, which is rare
        return json.dumps(finite(document), indent=indent, separators=separators, allow_nan=False)


def loads(key: str, body: bytes | bytearray) -> dict[str, Any]:
    """The record that a blob holds, or `Refused`; NaN from other writers, and 1e999, are read as null."""
    try:
        record = json.loads(body, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise Refused(f"{key}: not a JSON object")
    return record


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def figures(found: Any) -> dict[str, float]:
    """The figures of a record by name, with NaN for null."""
    return {name: NO_NUMBER if value is None else float(value) for name, value in found.items()}


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Runs a `with` block that takes a record apart; `Refused` with the key if a part is missing or of another type."""
    try:
        yield
    except FedqError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        message = plain(first["msg"]).removeprefix("Value error, ")[:200]
        wrong = " is missing" if first["type"] == "missing" else f": {message}"
        raise Refused(f"{key} is no such record: {plain(where)[:100]}{wrong}") from error
    except KeyError as error:
        raise Refused(f"{key} is no such record: {plain(str(error.args[0]))[:100]} is missing") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise Refused(f"{key} is no such record: {plain(str(error))[:200]}") from error
