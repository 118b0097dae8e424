"""The exact fold: updates are rounded once to a fixed grid and summed as integers.

Pure. `acc += rint(u · w · 2^s)` in int64, so the sum has no order: arrival order, retries, a tree of partial
sums or a restart in the middle cannot change one bit of it. The mean, `acc / (2^s · Σw)`, is taken once, when
the set of updates is fixed. The idea of a (weighted sum, weight) pair is that of pfl-research's
`WeightedStatistics`; integers on a grid are what secure aggregation sums as well (Bonawitz et al. 2017).

The last values of an update may be buffers, such as batch norm's running statistics. Of them it holds the values and
not what changed, and the next model's are their plain weighted mean, whatever the server step does with parameters.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from shared.aggregation.weights import TILE, Flat, Layout, Place, Tiles, tiles_of
from shared.errors import OverLimit, Refused
from shared.job.job_spec import JobSpec

Tile = npt.NDArray[np.float64]
Sums = npt.NDArray[np.int64]
#: (model, mean, state) → model: a tile of each; the state's tile is changed in place. See `aggregation.strategies`.
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
class Buffers:
    """Place of an update's buffers, and the origin that the grid holds their distances from.

    That is 0, but for those beyond half of `max_abs` in the round's model it is what they are there. Folded as they
    are, values of one sign have a mean of that sign: a variance is never rounded to below 0. And a constant such as
    the −10⁹ of a mask breaks no limit that is meant for what training changes.
    """

    start: int
    origin: Tile  # shape (buffers,)

    @classmethod
    def of(cls, model: Flat, updates: Layout, max_abs: float) -> "Buffers":
        """Those of updates of such a layout to a model, shape (P,)."""
        values = model[model.size - (updates.size - updates.parameters) :].astype(np.float64)
        return cls(updates.parameters, np.where(np.abs(values) > max_abs / 2, values, 0.0))

    def distances(self, place: Place, values: Flat) -> Tile | None:
        """A tile of buffers as the grid holds it; None for one of parameters."""
        if not isinstance(place, slice) or place.start < self.start:
            return None
        distances: Tile = values - self.origin[place.start - self.start : place.stop - self.start]
        return distances


@dataclass(frozen=True)
class Measures:
    """What checking an update found."""

    max_abs: float  # of the parameters' differences and the buffers' distances
    norm: float  # L2, of the parameters alone


def check(
    update: Flat | Tiles, weight: int, grid: Grid, max_norm: float | None = None, *, buffers: Buffers | None = None
) -> Measures:
    """Measures an update, shape (P,) or its tiles as they are decoded; `Refused` where it must not be folded."""
    if not 1 <= weight <= grid.max_weight:
        raise OverLimit(f"examples is {weight}; allowed: 1 to {grid.max_weight} (limits.max_examples)")
    largest, squares = 0.0, 0.0
    for place, tile in _tiles(update, buffers):
        distances = None if buffers is None else buffers.distances(place, tile)
        held = tile if distances is None else distances
        # NaN passes through max and min, so one pass over the tile serves both checks.
        high, low = float(held.max()), float(held.min())
        if not (math.isfinite(high) and math.isfinite(low)):
            raise Refused("holds NaN or Inf")
        largest = max(largest, high, -low)
        if largest > grid.max_abs:
            what = "a value" if distances is None else "a buffer, such as batch norm's statistics, with a value"
            raise OverLimit(f"{what} of {largest:.4g} exceeds limits.max_abs, {grid.max_abs:g}")
        if distances is None:
            squares += float(np.dot(tile, tile))
    norm = math.sqrt(squares)
    if max_norm is not None and norm > max_norm:
        raise OverLimit(f"its norm, {norm:.4g}, exceeds limits.max_norm, {max_norm:g}")
    return Measures(max_abs=largest, norm=norm)


def check_partial(sums: Sums, weight: int, count: int, grid: Grid, *, buffers: Buffers | None = None) -> Measures:
    """Measures the sum of `count` updates that were folded elsewhere, shape (P,), or raises `Refused`.

    It is what `Fold.add` could have made of as many allowed updates: |sum| ≤ max_abs · weight · 2^s, and half a unit
    for each of them, which it was rounded by. What is measured is their weighted mean.
    """
    if not 1 <= count <= grid.updates:
        raise Refused(f"is the sum of {count} updates; allowed: 1 to {grid.updates}, which the round asks")
    if not count <= weight <= count * grid.max_weight:
        raise Refused(
            f"examples is {weight} for {count} updates; allowed: {count} to {count * grid.max_weight} "
            "(limits.max_examples)"
        )
    unit = Fraction(2) ** grid.shift * weight  # what a mean of 1 adds up to
    largest, squares = 0, 0.0
    parameters = sums.size if buffers is None else buffers.start
    for start in range(0, sums.size, TILE):
        tile = sums[start : start + TILE]
        largest = max(largest, int(tile.max()), -int(tile.min()))  # Python's integers: int64 has no |-2^63|
        mean = np.multiply(tile[: max(parameters - start, 0)], float(1 / unit), dtype=np.float64)
        squares += float(np.dot(mean, mean))
    if largest > Fraction(grid.max_abs) * unit + Fraction(count, 2):
        raise Refused(f"a mean value of {float(largest / unit):.4g} exceeds limits.max_abs, {grid.max_abs:g}")
    return Measures(max_abs=float(largest / unit), norm=math.sqrt(squares))


class Fold:
    """The running (weighted sum, weight) of a round; 8 bytes a value, however many updates."""

    def __init__(self, size: int, grid: Grid, buffers: Buffers | None = None) -> None:
        """Of updates of `size` values, the last of which may be buffers."""
        self.grid = grid
        self.sums = np.zeros(size, np.int64)
        self.weight = 0
        self.count = 0
        self._buffers = buffers
        self._products = np.empty(min(size, TILE), np.float64)
        self._rounded = np.empty(min(size, TILE), np.int64)

    def add(self, update: Flat | Tiles, weight: int, scale: float = 1.0) -> None:
        """Adds a checked update, its parameters times `scale` in (0, 1], exactly as it is rounded to the grid.

        Its shape is (P,), or it comes in tiles, as an encoding gives them; what these leave out is 0.
        """
        whole = math.ldexp(weight, self.grid.shift)  # exact in float64: a weight has 29 bits
        for place, tile in _tiles(update, self._buffers):
            products, rounded = self._products[: tile.size], self._rounded[: tile.size]
            distances = None if self._buffers is None else self._buffers.distances(place, tile)
            if distances is None:
                np.multiply(tile, whole * scale, out=products, dtype=np.float64)
            else:
                np.multiply(distances, whole, out=products)
            np.rint(products, out=products)
            np.copyto(rounded, products, casting="unsafe")
            self.sums[place] += rounded
        self.weight += weight
        self.count += 1

    def add_partial(self, sums: Sums, weight: int, count: int) -> None:
        """Adds what another fold of this grid made of `count` updates, shape (P,); `Refused` as by `check_partial`."""
        check_partial(sums, weight, count, self.grid)
        if self.count + count > self.grid.updates:
            raise Refused(
                f"is the sum of {count} updates; with the {self.count} that are folded that is more than the "
                f"{self.grid.updates} which the round asks"
            )
        self.sums += sums
        self.weight += weight
        self.count += count

    def merge(self, other: "Fold") -> None:
        """Adds another partial sum of the same round."""
        self.sums += other.sums
        self.weight += other.weight
        self.count += other.count

    def reset(self, buffers: Buffers | None = None) -> None:
        """Forgets everything and keeps the memory; another round's buffers are distances from another model."""
        self.sums.fill(0)
        self.weight = self.count = 0
        self._buffers = buffers

    def apply(
        self,
        model: Flat,
        step: ServerStep,
        state: Mapping[str, Flat] | None = None,
        *,
        factor: float | Sequence[float] = 1.0,
        channels: int = 1,
    ) -> None:
        """Takes the server step in place: `model = step(model, mean · factor, state)`, tile by tile in float64.

        That is of the parameters, of which `model` and each vector of `state` have the same number and the fold
        `channels` times as many; `factor` may be one for each channel. The buffers become their mean, and those that
        no client changed, such as a frozen weight or a constant of 1e-12, stay as they are to the bit.
        """
        if self.weight == 0:
            raise ValueError("nothing was folded")
        unit = math.ldexp(1.0, -self.grid.shift) / self.weight
        # One for each channel, or one for all: shape (channels, 1) or (1, 1).
        units = unit * np.reshape(np.asarray(factor, np.float64), (-1, 1))
        end = self.sums.size if self._buffers is None else self._buffers.start
        parameters = end // channels
        sums = self.sums[:end].reshape(channels, parameters)
        for start in range(0, parameters, TILE):
            tile = slice(start, min(start + TILE, parameters))
            means: Tile = np.multiply(sums[:, tile], units, dtype=np.float64)
            mean = means[0] if channels == 1 else means
            kept: dict[str, Tile] = {name: vector[tile].astype(np.float64) for name, vector in (state or {}).items()}
            model[tile] = step(model[tile].astype(np.float64), mean, kept)
            for name, vector in kept.items():
                state[name][tile] = vector  # type: ignore[index]
        if self._buffers is not None:
            rounded = self.count / 2 * unit  # what rounding to the grid changes of the mean, at most
            for start in range(0, model.size - parameters, TILE):
                tile = slice(parameters + start, parameters + start + TILE)
                before = model[tile].astype(np.float64)
                mean = self._buffers.origin[start : start + TILE] + self.sums[end + start : end + start + TILE] * unit
                model[tile] = np.where(np.abs(mean - before) <= rounded, before, mean)


def _tiles(update: Flat | Tiles, buffers: Buffers | None) -> Tiles:
    return tiles_of(update, buffers.start if buffers else None) if isinstance(update, np.ndarray) else update
