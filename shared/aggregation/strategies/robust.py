"""Strategies that take the middle of each coordinate (Yin et al. 2018), over updates sorted by a network of whole rows.

A comparator of the network is `minimum` and `maximum` of two rows, which run at the speed of the cache: for 16 updates
this is ten times as fast as `np.partition` along that axis, and for 100 still twice as fast as `np.sort`. Sorted
values, unlike partitioned ones, also come in one order on every machine, so that sums of them have the same bits.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.aggregation.strategies.strategy import Counted, Robust, Slices, Tile
from shared.aggregation.weights import Flat
from shared.job.catalog import strategies as catalog

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


class Settled(Robust):
    """Takes the median of each buffer, of all clients: it lies among the honest, whoever else is chosen or not."""

    def settle(self, slices: Slices) -> npt.NDArray[np.float32]:
        return by_coordinate(slices, middle)


class MedianStrategy(Settled):
    """The median of each coordinate (Yin et al. 2018, algorithm 1, option I); of an even number, of the two midmost."""

    def combine(self, updates: Sequence[Counted], slices: Slices) -> npt.NDArray[np.float32]:
        return by_coordinate(slices, middle)


class TrimmedMeanStrategy(Robust):
    """The mean of each coordinate without its ⌊beta·K⌋ smallest and largest values (Yin et al. 2018, option II)."""

    def __init__(self, spec: catalog.TrimmedMean) -> None:
        super().__init__(spec.lr)
        self._beta = spec.beta

    def combine(self, updates: Sequence[Counted], slices: Slices) -> npt.NDArray[np.float32]:
        return self.settle(slices)

    def settle(self, slices: Slices) -> npt.NDArray[np.float32]:
        # A little more than beta·K, or 0.29 of 100 would be 28; and one or two values are always left.
        ends = min(math.floor(self._beta * slices.count + 1e-9), (slices.count - 1) // 2)
        return by_coordinate(slices, lambda rows: mean(rows[ends : len(rows) - ends]))


def middle(rows: Rows) -> Tile:
    """The median of sorted rows, shape (n,)."""
    return mean(rows[(len(rows) - 1) // 2 : len(rows) // 2 + 1])


def mean(rows: Sequence[npt.NDArray[np.float32]]) -> Tile:
    """The mean of rows, shape (n,), added up in their order: its bits depend on nothing else.

    Beginning with 0.0, it is never −0.0: which of the two is the smaller is for the processor to say.
    """
    total = np.zeros(rows[0].shape, np.float64)
    for row in rows:
        total += row
    total /= len(rows)
    return total
