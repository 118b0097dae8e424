"""The exact fold: updates are rounded once to a fixed grid and summed as integers.

Pure. `acc += rint(u · w · 2^s)` in int64, so the sum has no order: arrival order, retries, a tree of partial
sums or a restart in the middle cannot change one bit of it. The mean, `acc / (2^s · Σw)`, is taken once, when
the set of updates is fixed. The idea of a (weighted sum, weight) pair is that of pfl-research's
`WeightedStatistics`; integers on a grid are what secure aggregation sums as well (Bonawitz et al. 2017).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import Refused
from shared.jobs import JobSpec
from shared.weights import Flat

TILE = 32 * 1024  #: parameters worked on at once: a tile and its buffers stay in the L2 cache

Tile = npt.NDArray[np.float64]
#: (model, mean, state) → model: a tile of each, the state's to be changed in place; see `shared.strategies`.
ServerStep = Callable[[Tile, Tile, Mapping[str, Tile]], Tile]


@dataclass(frozen=True)
class Grid:
    """The fixed-point grid of a round: bounds on |u| and on each weight, and the shift `s` they allow."""

    max_abs: float
    max_weight: int
    updates: int  # how many a round folds at most

    @property
    def shift(self) -> int:
        """The largest s with max_abs · Σw · 2^s < 2^62: half of int64 is left for rounding."""
        return 62 - math.ceil(math.log2(self.max_abs)) - math.ceil(math.log2(self.max_weight * self.updates))


def grid_of(spec: JobSpec, cohort: int) -> Grid:
    """The fixed-point grid of a round: a function of the job and of how many clients it asks."""
    return Grid(max_abs=spec.limits.max_abs, max_weight=spec.limits.max_examples, updates=cohort)


@dataclass(frozen=True)
class Measures:
    """What checking an update found."""

    max_abs: float
    norm: float  # L2


def check(update: Flat, weight: int, grid: Grid, max_norm: float | None = None) -> Measures:
    """Measures an update of shape (P,), or raises `Refused` where it must not be folded."""
    if not 1 <= weight <= grid.max_weight:
        raise Refused(f"examples is {weight}; allowed: 1 to {grid.max_weight} (limits.max_examples)")
    largest, squares = 0.0, 0.0
    for start in range(0, update.size, TILE):
        tile = update[start : start + TILE]
        # NaN passes through max and min, so one pass over the tile serves both checks.
        high, low = float(tile.max()), float(tile.min())
        if not (math.isfinite(high) and math.isfinite(low)):
            raise Refused("holds NaN or Inf")
        largest = max(largest, high, -low)
        if largest > grid.max_abs:
            raise Refused(f"a value of {largest:.4g} exceeds limits.max_abs, {grid.max_abs:g}")
        squares += float(np.dot(tile, tile))
    norm = math.sqrt(squares)
    if max_norm is not None and norm > max_norm:
        raise Refused(f"its norm, {norm:.4g}, exceeds limits.max_norm, {max_norm:g}")
    return Measures(max_abs=largest, norm=norm)


class Fold:
    """The running (weighted sum, weight) of a round; 8 bytes a parameter, however many updates."""

    def __init__(self, size: int, grid: Grid) -> None:
        self.grid = grid
        self.sums = np.zeros(size, np.int64)
        self.weight = 0
        self.count = 0
        self._products = np.empty(min(size, TILE), np.float64)
        self._rounded = np.empty(min(size, TILE), np.int64)

    def add(self, update: Flat, weight: int, scale: float = 1.0) -> None:
        """Adds a checked update of shape (P,), times `scale` in (0, 1], exactly as it is rounded to the grid."""
        unit = math.ldexp(weight, self.grid.shift) * scale  # exact in float64 for a scale of 1: a weight has 29 bits
        for start in range(0, update.size, TILE):
            tile = update[start : start + TILE]
            products, rounded = self._products[: tile.size], self._rounded[: tile.size]
            np.multiply(tile, unit, out=products, dtype=np.float64)
            np.rint(products, out=products)
            np.copyto(rounded, products, casting="unsafe")
            self.sums[start : start + TILE] += rounded
        self.weight += weight
        self.count += 1

    def merge(self, other: "Fold") -> None:
        """Adds another partial sum of the same round."""
        self.sums += other.sums
        self.weight += other.weight
        self.count += other.count

    def reset(self) -> None:
        """Forgets everything and keeps the memory."""
        self.sums.fill(0)
        self.weight = self.count = 0

    def apply(
        self,
        model: Flat,
        step: ServerStep,
        state: Mapping[str, Flat] | None = None,
        *,
        factor: float = 1.0,
        channels: int = 1,
    ) -> None:
        """Takes the server step in place: `model = step(model, mean · factor, state)`, tile by tile in float64.

        `model` and each vector of `state` have shape (P,), the fold has `channels` · P values.
        """
        if self.weight == 0:
            raise ValueError("nothing was folded")
        unit = math.ldexp(1.0, -self.grid.shift) / self.weight * factor
        sums = self.sums.reshape(channels, model.size)
        for start in range(0, model.size, TILE):
            tile = slice(start, start + TILE)
            mean: Tile = np.multiply(sums[0, tile] if channels == 1 else sums[:, tile], unit, dtype=np.float64)
            kept: dict[str, Tile] = {name: vector[tile].astype(np.float64) for name, vector in (state or {}).items()}
            model[tile] = step(model[tile].astype(np.float64), mean, kept)
            for name, vector in kept.items():
                state[name][tile] = vector  # type: ignore[index]
