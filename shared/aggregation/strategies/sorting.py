"""Sorting K updates at each coordinate, a tile at a time: a sorting network on whole rows.

Pure. A comparator of the network is `minimum` and `maximum` of two rows, which run at the speed of the cache: of 16
updates, ten times as fast as `np.partition` along that axis, and for 100 still twice as fast as `np.sort`. Sorted
values, unlike partitioned ones, also come in one order on every machine, so that sums of them have the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.aggregation.strategies.strategy import Slices, Tile
from shared.aggregation.weights import Flat

Rows = Sequence[Flat]  #: K of shape (n,)

_TILE = 16 * 1024  # values of an update worked on at once
_TILES = 4 * 1024 * 1024  # and of all of them together


def by_coordinate(
    slices: Slices, made_of: Callable[[Rows], Tile], rows: Sequence[int] | None = None
) -> npt.NDArray[np.float32]:
    """What `made_of` makes of sorted rows, shape (P,), of all updates or of those in `rows`.

    Each value is made of the K at its own coordinate, so that the cuts do not show in it.
    """
    count = slices.count if rows is None else len(rows)
    width = max(min(_TILE, _TILES // count), 1)
    work, comparators = np.empty((count + 1, width), np.float32), network(count)
    result = np.empty(slices.size, np.float32)
    for start, stop in slices.spans():
        values = slices.read(start, stop, rows)
        for left in range(0, stop - start, width):
            tile = values[:, left : left + width]
            lines = list(work[:, : tile.shape[1]])
            np.copyto(work[:count, : tile.shape[1]], tile)
            result[start + left : start + left + tile.shape[1]] = made_of(_sorted(lines, comparators))
    return result


def _sorted(lines: list[Flat], comparators: Sequence[tuple[int, int]]) -> Rows:
    """Sorts all rows but the last, which is spare, at each coordinate; they change their places, not their memory."""
    spare = lines.pop()
    for low, high in comparators:
        one, other = lines[low], lines[high]
        np.minimum(one, other, out=spare)
        np.maximum(one, other, out=other)
        lines[low], spare = spare, one
    return lines


@lru_cache(maxsize=8)
def network(count: int) -> tuple[tuple[int, int], ...]:
    """Comparators (low, high) that sort `count` rows: Batcher's merge exchange (Knuth, volume 3, algorithm 5.2.2 M)."""
    return tuple(_comparators(count))


def _comparators(count: int) -> Iterator[tuple[int, int]]:
    largest = 1 << max((count - 1).bit_length() - 1, 0)
    p = largest
    while p:
        q, r, d = largest, 0, p
        while d:
            yield from ((i, i + d) for i in range(count - d) if i & p == r)
            d, q, r = q - p, q // 2, p
        p //= 2
