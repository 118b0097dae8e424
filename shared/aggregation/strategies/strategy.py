"""Strategy: how updates are weighed, what is made of their mean, and what is kept from round to round.

All of it is about parameters. Buffers, such as batch norm's running statistics, have no gradient that a server step
could take them along: the next model's are the plain mean of the clients', weighted as the strategy weighs updates.
A robust strategy reads the updates themselves, cut in slices of all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shared.aggregation.weights import TILE, Flat

Tile = npt.NDArray[np.float64]
State = Mapping[str, Tile]  #: the server state's vectors, or one tile of each

DELTA = "delta"  #: the channel of an update that holds what training changed
CONTROL = "control"  #: the channel of control variates

_NONE: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Counted:
    """What a strategy knows of an accepted update before it sees a value of it."""

    client: str
    examples: int
    norm: float = 0.0  # L2 of what changed of the parameters, as it was received
    staleness: int = 0  # rounds between the model it began with and the one that it is folded into
    metrics: Mapping[str, float] = field(default_factory=dict)


class Strategy:
    """Folds on arrival: the mean of the updates, Σ wᵢ·sᵢ·uᵢ / Σ wᵢ, times `factor`, is what `step` gets.

    A subclass overrides what differs. All of it is a pure function of its arguments, in float64.
    """

    #: What an update holds, in the order in which it lies there; each channel has a value for each parameter.
    channels: tuple[str, ...] = (DELTA,)
    #: Vectors with a value for each parameter that are kept from round to round, float32 in the store, and what each is
    #: filled with at first.
    state: Mapping[str, float] = _NONE
    #: Whether clients need the state to train; it is one vector then.
    broadcast: bool = False

    def check(self, update: Counted) -> None:
        """`Refused` where an update lacks what the strategy needs of it; asked before it is accepted."""

    def weight(self, update: Counted) -> int:
        """wᵢ, at least 1: how much an update weighs in the mean."""
        return update.examples

    def scale(self, update: Counted) -> float:
        """sᵢ in (0, 1]: what an update is multiplied by before it is folded."""
        return 1.0

    def factor(self, updates: Sequence[Counted]) -> float | tuple[float, ...]:
        """What the mean is multiplied by, or each channel's; all updates are known by then, in client order."""
        return 1.0

    def check_fold(self, updates: Sequence[Counted], rounding: float) -> None:
        """`BadInput` where the fold lost what was sent: it rounds an update by an L2 norm of at most `rounding`."""

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        """The next model: a tile (n,) of the model and of the mean, or (channels, n) of it, in, the tile (n,) out.

        `state` holds the same tile of each vector, to be changed in place.
        """
        raise NotImplementedError


class Slices(Protocol):
    """The accepted updates of a round in client order, of which only a slice is ever in memory."""

    count: int  # K, how many
    size: int  # P, values of each

    def read(self, start: int, stop: int, rows: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """Values `start` to `stop` of all updates, or of those in `rows`: (K or len(rows), stop − start).

        Valid until the next call, and not to be written to.
        """

    def spans(self) -> Sequence[tuple[int, int]]:
        """How to cut (0, P) so that a slice of all updates fits into the memory that is granted; see `slices.cut`."""


class Robust(Strategy):
    """A strategy that compares single updates: they are not folded on arrival, but read from the store in slices.

    What it gives does not depend on how they are cut, to the bit, so that another process may do it again. It compares
    parameters alone: buffers have another scale, and would hide an attack on the parameters, or drown the honest.
    """

    def __init__(self, lr: float) -> None:
        self._lr = lr

    def weight(self, update: Counted) -> int:
        return 1

    def combine(self, updates: Sequence[Counted], slices: Slices) -> npt.NDArray[np.float32]:
        """What stands for the mean of the parameters, shape (P,). `Refused` where there are too few updates."""
        raise NotImplementedError

    def settle(self, slices: Slices) -> npt.NDArray[np.float32]:
        """What stands for the mean of the buffers, shape (buffers,), of the values that clients have.

        No client's are trusted as a whole, however near its parameters are to the others': there an
        attacker would hide.
        """
        raise NotImplementedError

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        return model + self._lr * mean

    def advance(self, model: Flat, combined: Flat) -> None:
        """Takes the server step in place with what `combine` gave, both (P,), as `Fold.apply` does with a mean.

        Of the parameters alone.
        """
        for start in range(0, combined.size, TILE):
            tile = slice(start, min(start + TILE, combined.size))
            model[tile] = self.step(model[tile].astype(np.float64), combined[tile].astype(np.float64), {})


SLICE = 64 * 1024 * 1024  #: bytes; of 16 updates, 4 MiB each: large enough for a ranged read to be worth its request

_LINE = 16  # values: a cache line


def cut(count: int, size: int, memory_bytes: int = SLICE) -> list[tuple[int, int]]:
    """(0, size) in spans of which `count` float32 updates take at most `memory_bytes`, or a cache line of each."""
    width = max(memory_bytes // (4 * max(count, 1)) // _LINE, 1) * _LINE
    return [(start, min(start + width, size)) for start in range(0, size, width)]


class Stacked:
    """Updates that are in memory, as an array (K, P): `Slices` for small models and for tests."""

    def __init__(self, updates: npt.NDArray[np.float32], memory_bytes: int = SLICE) -> None:
        self.count, self.size = updates.shape
        self._updates = updates
        self._memory_bytes = memory_bytes

    def read(self, start: int, stop: int, rows: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        return self._updates[:, start:stop] if rows is None else self._updates[list(rows), start:stop]

    def spans(self) -> Sequence[tuple[int, int]]:
        return cut(self.count, self.size, self._memory_bytes)


class Part:
    """Values `start` to `stop` of updates, as `Slices` of their own."""

    def __init__(self, whole: Slices, start: int, stop: int) -> None:
        self.count, self.size = whole.count, stop - start
        self._whole, self._start, self._stop = whole, start, stop

    def read(self, start: int, stop: int, rows: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        return self._whole.read(self._start + start, self._start + stop, rows)

    def spans(self) -> Sequence[tuple[int, int]]:
        begin, end = self._start, self._stop
        cuts = ((max(start, begin) - begin, min(stop, end) - begin) for start, stop in self._whole.spans())
        return [(start, stop) for start, stop in cuts if start < stop]
