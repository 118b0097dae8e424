"""Strategies that choose whole updates, by how near their nearest neighbours are (Blanchard et al. 2017)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.aggregation.strategies import robust
from shared.aggregation.strategies.distances import squared_distances
from shared.aggregation.strategies.strategy import Counted, Slices
from shared.aggregation.weights import TILE
from shared.errors import Refused
from shared.job.catalog import strategies as catalog


class Krum(robust.Settled):
    """The one update with the least score (Blanchard et al. 2017, section 4)."""

    def __init__(self, spec: catalog.Krum) -> None:
        super().__init__(spec.lr)
        self._byzantine = spec.byzantine

    def combine(self, updates: Sequence[Counted], slices: Slices) -> npt.NDArray[np.float32]:
        enough(slices.count, 2 * self._byzantine + 3, "krum", self._byzantine)
        return mean_of(slices, ranked(squared_distances(updates, slices), self._byzantine)[:1])


class MultiKrum(robust.Settled):
    """The mean of the `keep` updates with the least scores (Blanchard et al. 2017, section 6); K − f where left out."""

    def __init__(self, spec: catalog.MultiKrum) -> None:
        super().__init__(spec.lr)
        self._byzantine, self._keep = spec.byzantine, spec.keep

    def combine(self, updates: Sequence[Counted], slices: Slices) -> npt.NDArray[np.float32]:
        enough(slices.count, 2 * self._byzantine + 3, "multikrum", self._byzantine)
        most = slices.count - self._byzantine
        keep = most if self._keep is None else self._keep
        if keep > most:
            raise Refused(f"{slices.count} updates, of which {self._byzantine} may be byzantine: cannot keep {keep}")
        return mean_of(slices, ranked(squared_distances(updates, slices), self._byzantine)[:keep])


def ranked(distances: Sequence[Sequence[int]], byzantine: int) -> list[int]:
    """The updates from the best score to the worst, ties in client order.

    The score is the sum of the squared distances (K, K) to the K − f − 2 nearest others.
    """
    neighbours = len(distances) - byzantine - 2
    scores = [sum(sorted(row[:one] + row[one + 1 :])[:neighbours]) for one, row in enumerate(map(list, distances))]
    return sorted(range(len(scores)), key=scores.__getitem__)


def mean_of(slices: Slices, rows: Sequence[int]) -> npt.NDArray[np.float32]:
    """The mean of some updates, shape (P,), added up in float64 in client order."""
    result = np.empty(slices.size, np.float32)
    for start, stop in slices.spans():
        values = slices.read(start, stop, sorted(rows))
        for left in range(0, stop - start, TILE):
            tile = robust.mean(list(values[:, left : left + TILE]))
            result[start + left : start + left + tile.size] = tile
    return result


def enough(count: int, needed: int, name: str, byzantine: int) -> None:
    """`Refused` where a round has too few updates."""
    if count < needed:
        raise Refused(f"{count} updates; strategy {name} needs {needed} to tolerate {byzantine} byzantine ones")
