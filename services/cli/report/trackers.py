"""Base of all trackers: the points, the interface, and the error for a missing package."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.errors import BadInput


@dataclass(frozen=True)
class Point:
    """Value of one metric in one round."""

    tag: str
    round: int
    value: float
    at: float  # commit time of the round in seconds since 1970, so that repeated tracking gives the same value


class Sink(Protocol):
    """Receiver of one job's points. It is created from the job and its settings, and keeps the points it has."""

    def add(self, points: Sequence[Point], /) -> None:
        """Stores the points that the sink does not have yet."""

    def end(self, outcome: str | None, at: float | None, /) -> None:
        """Ends the tracking; `outcome` is None if the job continues."""


def missing(package: str) -> BadInput:
    """Returns the error for a missing package that only tracking needs, with the command to install it."""
    return BadInput(f"{package} is not installed here: install fedq[tracking]")


def flattened(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yields each setting of a job with its dotted path, as `--set` takes it."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{place}.{key}" if place else str(key))
    elif value is not None:
        yield place, str(value)
