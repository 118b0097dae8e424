"""Updates in slices: how they are cut, and some that are in memory already."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.aggregation.strategies.strategy import Slices

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
