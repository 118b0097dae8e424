"""Strategies that rank whole updates by their distances: Krum and Multi-Krum (Blanchard et al. 2017), and Bulyan.

The distances are exact, so that the ranking is the same for every cut and machine. A sum of floats depends on its
order, and a matrix product adds up in an order of its own choice, by the shape it is given and by the processor.
Colluding attackers send the same update several times, whose distances tie: then the last bit decides which is chosen.
So each update is rounded once to its own grid, 2^−42 of its norm, as integers

    q = 2^16 · high + low,    ‖high‖ < 2^26,    |low| ≤ 2^15

and ‖a‖² + ‖b‖² − 2·a·b comes of three matrix products of these. All their partial sums are integers below 2^53, by
Cauchy and Schwarz, which float64 holds exactly in any order. The totals are int64, and fit for 2^32 parameters.

Bulyan (El Mhamdi et al. 2018) takes what Krum trusts, and of that, at each coordinate, what is nearest to the median.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.aggregation.strategies import robust
from shared.aggregation.strategies.robust import Rows, Settled, by_coordinate, middle
from shared.aggregation.strategies.strategy import Counted, Slices, Tile
from shared.aggregation.weights import TILE
from shared.errors import Refused
from shared.job.catalog import strategies as catalog

_HIGH, _LOW = 26, 16  # bits
_BITS = _HIGH + _LOW
_TILE = 2 * 1024  # values of an update worked on at once
_TILES = 256 * 1024  # and of all of them together


def squared_distances(updates: Sequence[Counted], slices: Slices) -> list[list[int]]:
    """‖uᵢ − uⱼ‖² of all pairs, (K, K), as integers in one unit; `Counted.norm` must be theirs, as it was checked."""
    exponents = [math.frexp(update.norm)[1] for update in updates]  # norm < 2^e
    units = np.array([[math.ldexp(1.0, _BITS - exponent)] for exponent in exponents])
    width = max(min(_TILE, _TILES // slices.count), 1)
    highs, mixed, lows = (np.zeros((slices.count, slices.count), np.int64) for _ in range(3))
    for start, stop in slices.spans():
        values = slices.read(start, stop)
        for left in range(0, stop - start, width):
            low = np.multiply(values[:, left : left + width], units, dtype=np.float64)
            np.rint(low, out=low)
            high = np.rint(low * 2.0**-_LOW)
            low -= high * 2.0**_LOW
            highs += (high @ high.T).astype(np.int64)
            mixed += (high @ low.T).astype(np.int64)
            lows += (low @ low.T).astype(np.int64)
    products = [
        [(hh << 2 * _LOW) + ((hl + lh) << _LOW) + ll for hh, hl, lh, ll in zip(*rows, strict=True)]
        for rows in zip(highs.tolist(), mixed.tolist(), mixed.T.tolist(), lows.tolist(), strict=True)
    ]
    for index, update in enumerate(updates):
        if products[index][index] > 2 ** (2 * _BITS) * 1.01:
            raise ValueError(f"the update of {update.client} is longer than its norm, {update.norm:g}")
    # From each update's own grid to the finest of them.
    shifts = [exponent - min(exponents) for exponent in exponents]
    return [
        [
            (products[i][i] << 2 * one) + (products[j][j] << 2 * other) - (products[i][j] << one + other + 1)
            for j, other in enumerate(shifts)
        ]
        for i, one in enumerate(shifts)
    ]


class KrumStrategy(robust.Settled):
    """The one update with the least score (Blanchard et al. 2017, section 4)."""

    def __init__(self, spec: catalog.Krum) -> None:
        super().__init__(spec.lr)
        self._byzantine = spec.byzantine

    def combine(self, updates: Sequence[Counted], slices: Slices) -> npt.NDArray[np.float32]:
        enough(slices.count, 2 * self._byzantine + 3, "krum", self._byzantine)
        return mean_of(slices, ranked(squared_distances(updates, slices), self._byzantine)[:1])


class MultiKrumStrategy(robust.Settled):
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


class BulyanStrategy(Settled):
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
