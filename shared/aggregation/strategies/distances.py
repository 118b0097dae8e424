"""How far updates are from each other: exact, so that the ranking by it is the same for every cut and machine.

Pure. A sum of floats depends on its order, and a matrix product adds up in an order of its own, by the shape it is
given and the processor. Colluding attackers send the same update several times, whose distances tie: then the last bit
decides who is chosen. So each update is rounded once to a grid of its own, 2^−42 of its norm, as integers

    q = 2^16 · high + low,    ‖high‖ < 2^26,    |low| ≤ 2^15

and ‖a‖² + ‖b‖² − 2·a·b comes of three matrix products of these. All their partial sums are integers below 2^53, by
Cauchy and Schwarz, which float64 holds exactly in any order. The totals are int64, and fit for 2^32 parameters.
"""

import math
from collections.abc import Sequence

import numpy as np

from shared.aggregation.strategies.strategy import Counted, Slices

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
