"""Updates in slices: how they are cut, and some that are in memory already."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
