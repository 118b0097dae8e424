"""Bulyan: what Krum trusts, and of that, at each coordinate, what is nearest to the median (El Mhamdi et al. 2018)."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.aggregation.strategies.distances import squared_distances
from shared.aggregation.strategies.krum import enough
from shared.aggregation.strategies.robust import Settled, middle
from shared.aggregation.strategies.sorting import Rows, by_coordinate
from shared.aggregation.strategies.strategy import Counted, Slices, Tile
from shared.job.catalog import strategies as catalog


class Bulyan(Settled):
    """θ = K − 2f updates by Krum, one after the other, then the mean of the θ − 2f values nearest to their median."""

    def __init__(self, spec: catalog.Bulyan) -> None:
        super().__init__(spec.lr)
        self._byzantine = spec.byzantine

    def combine(self, updates: Sequence[Counted], slices: Slices) -> npt.NDArray[np.float32]:
        byzantine = self._byzantine
        enough(slices.count, 4 * byzantine + 3, "bulyan", byzantine)
        chosen = selected(squared_distances(updates, slices), byzantine)
        return by_coordinate(slices, lambda rows: nearest(rows, len(rows) - 2 * byzantine), chosen)


def selected(distances: Sequence[Sequence[int]], byzantine: int) -> list[int]:
    """The K − 2f updates that Krum chooses, each among those that are left, in client order; (K, K) distances.

    A score is of one neighbour at least, where Krum among so few would have none.
    """
    left = list(range(len(distances)))
    near = [sorted(row[:one] + row[one + 1 :]) for one, row in enumerate(map(list, distances))]
    chosen = []
    for _ in range(len(distances) - 2 * byzantine):
        neighbours = max(len(left) - byzantine - 2, 1)
        best = min(left, key=lambda one: sum(near[one][:neighbours]))  # of ties, the first
        left.remove(best)
        chosen.append(best)
        for one in left:
            near[one].pop(bisect_left(near[one], distances[one][best]))
    return sorted(chosen)


def nearest(rows: Rows, keep: int) -> Tile:
    """The mean of the `keep` values nearest to the median of sorted rows, shape (n,); of two as near, the smaller.

    They are neighbours in the order. From the lowest `keep` upwards, row j gives way to row j + keep for as long as
    that is nearer to the median.
    """
    centre = middle(rows)
    passed = [centre - low > high - centre for low, high in zip(rows, rows[keep:], strict=False)]
    total = np.zeros_like(centre)
    for index, row in enumerate(rows):
        kept = np.ones(centre.shape, np.bool_)
        if index < len(passed):
            kept &= ~passed[index]
        if index >= keep:
            kept &= passed[index - keep]
        np.add(total, row, out=total, where=kept)
    return total / keep
