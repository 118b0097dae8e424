"""Strategies that take the middle of each coordinate (Yin et al. 2018)."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.aggregation.strategies.sorting import Rows, by_coordinate
from shared.aggregation.strategies.strategy import Counted, Robust, Slices, Tile
from shared.job.catalog import strategies as catalog


class Settled(Robust):
    """Takes the median of each buffer, of all clients: it lies among the honest, whoever else is chosen or not."""

    def settle(self, slices: Slices) -> npt.NDArray[np.float32]:
        return by_coordinate(slices, middle)


class Median(Settled):
    """The median of each coordinate (Yin et al. 2018, algorithm 1, option I); of an even number, of the two midmost."""

    def combine(self, updates: Sequence[Counted], slices: Slices) -> npt.NDArray[np.float32]:
        return by_coordinate(slices, middle)


class TrimmedMean(Robust):
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
