"""Values and helpers that every tracker needs: the points, the interface, and the sentence for a missing package."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.errors import BadInput


@dataclass(frozen=True)
class Point:
    """One figure of one round."""

    tag: str
    round: int
    value: float
    at: float  # seconds since 1970, when the round was committed: the same however often it is told


class Sink(Protocol):
    """Receiver of one job's figures. It is made of the job and its settings, and keeps the figures it already has."""

    def add(self, points: Sequence[Point], /) -> None:
        """Keeps the points that it does not have."""

    def end(self, outcome: str | None, at: float | None, /) -> None:
        """Ends the tracking; `outcome` is None if the job itself goes on."""


def missing(package: str) -> BadInput:
    """Returns the error that names a package which only tracking needs, and how to install it."""
    return BadInput(f"{package} is not installed here: install fedq[tracking]")


def flattened(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yields each setting of a job with its dotted path, as `--set` takes it."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{place}.{key}" if place else str(key))
    elif value is not None:
        yield place, str(value)
