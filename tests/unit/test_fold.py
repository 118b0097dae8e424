"""The exact fold: any order, split or duplication of updates gives the same model."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.aggregation import fold
from shared.aggregation.fold import Fold, Grid
from shared.aggregation.strategies.averaging import Averaged
from shared.errors import Refused
from shared.job.catalog.strategies import FedAvg

fedavg = Averaged(FedAvg()).step

GRID = Grid(max_abs=16.0, max_weight=2**20, updates=8)
SIZE = 7

updates = st.lists(
    st.tuples(
        st.lists(st.floats(-16, 16, width=32), min_size=SIZE, max_size=SIZE).map(
            lambda values: np.array(values, np.float32)
        ),
        st.integers(1, 2**20),
    ),
    min_size=1,
    max_size=8,
)


def folded(pairs: list[tuple[np.ndarray, int]]) -> Fold:
    running = Fold(SIZE, GRID)
    for update, weight in pairs:
        running.add(update, weight)
    return running


def model_of(running: Fold) -> bytes:
    model = np.linspace(-1, 1, SIZE, dtype=np.float32)
    running.apply(model, fedavg)
    return model.tobytes()


@given(updates, st.randoms(use_true_random=False))
def test_arrival_order_changes_no_bit(pairs, random) -> None:
    """Folding in any order commits the same model."""
    shuffled = list(pairs)
    random.shuffle(shuffled)

    assert model_of(folded(shuffled)) == model_of(folded(pairs))


@given(updates, st.integers(0, 8))
def test_partial_sums_merge_exactly(pairs, cut) -> None:
    """A tree of partial folds commits the same model as one fold."""
    left, right = folded(pairs[:cut]), folded(pairs[cut:])
    left.merge(right)

    assert model_of(left) == model_of(folded(pairs))


@given(updates)
def test_mean_is_that_of_float64(pairs) -> None:
    """The mean is within the grid and float32 rounding of a float64 reference."""
    running = folded(pairs)
    model = np.zeros(SIZE, np.float32)
    running.apply(model, fedavg)
    total = sum(weight for _, weight in pairs)
    reference = sum(update.astype(np.float64) * weight for update, weight in pairs) / total

    np.testing.assert_allclose(model, reference, rtol=1e-6, atol=1e-9)


@given(updates)
def test_extremes_do_not_overflow(pairs) -> None:
    """A full round of the largest updates with the largest weights stays inside int64."""
    running = folded([(np.full(SIZE, 16.0, np.float32), 2**20)] * 8)
    model = np.zeros(SIZE, np.float32)
    running.apply(model, fedavg)

    assert model.tolist() == [16.0] * SIZE


@given(st.floats(1e-3, 2**20), st.integers(1, 2**28), st.integers(1, 10_000))
def test_grid_keeps_the_sum_below_2_to_the_62(max_abs: float, max_weight: int, count: int) -> None:
    """The shift is the largest for which the sum of a whole round cannot overflow."""
    shift = Grid(max_abs, max_weight, count).shift

    assert math.ldexp(max_abs * max_weight * count, shift) <= 2**62
    assert math.ldexp(max_abs * max_weight * count, shift + 3) > 2**62


def test_a_fold_works_across_tiles() -> None:
    """More parameters than a tile holds, and not a multiple of it."""
    size = fold.TILE * 2 + 5
    update = np.arange(size, dtype=np.float32) % 13
    running = Fold(size, GRID)
    running.add(update, 3)
    running.add(update * np.float32(0.5), 1)
    model = np.ones(size, np.float32)
    running.apply(model, fedavg)

    np.testing.assert_allclose(model, 1 + update.astype(np.float64) * 3.5 / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "weight", "reason"),
    [
        ([0, math.nan], 1, "NaN or Inf"),
        ([math.inf, 0], 1, "NaN or Inf"),
        ([0, -math.inf], 1, "NaN or Inf"),
        ([0, 17], 1, "limits.max_abs"),
        ([0, -17], 1, "limits.max_abs"),
        ([0, 1], 0, "limits.max_examples"),
        ([0, 1], 2**20 + 1, "limits.max_examples"),
        ([3, 4], 1, "limits.max_norm"),
    ],
)
def test_what_must_not_be_folded_is_refused(values: list[float], weight: int, reason: str) -> None:
    """Each check names the limit that it holds an update to."""
    with pytest.raises(Refused, match=reason):
        fold.check(np.array(values, np.float32), weight, GRID, max_norm=4.9)


def test_a_good_update_is_measured() -> None:
    """Checking gives the largest value and the L2 norm."""
    found = fold.check(np.array([3, -4], np.float32), 1, GRID)

    assert (found.max_abs, found.norm) == (4.0, 5.0)


# --- updates in tiles -----------------------------------------------------------------------


@given(updates, st.integers(1, SIZE))
def test_tiles_are_folded_where_they_belong(pairs, cut) -> None:
    """An update in runs, or in single places, is the same as in one piece."""
    whole, runs, places = folded(pairs), Fold(SIZE, GRID), Fold(SIZE, GRID)
    for update, weight in pairs:
        runs.add([(slice(0, cut), update[:cut]), (slice(cut, SIZE), update[cut:])], weight)
        kept = np.flatnonzero(update)  # what is left out is 0
        places.add([(kept[:cut], update[kept[:cut]]), (kept[cut:], update[kept[cut:]])], weight)

    for tiled in (runs, places):
        assert model_of(tiled) == model_of(whole)
        assert (tiled.weight, tiled.count) == (whole.weight, whole.count)


@given(updates, st.floats(0.001, 1))
def test_a_scale_shrinks_what_is_added_and_not_its_weight(pairs, scale) -> None:
    """Each product is rounded to the grid once, whether it comes whole or in tiles."""
    whole, tiled = Fold(SIZE, GRID), Fold(SIZE, GRID)
    expected = np.zeros(SIZE)
    for update, weight in pairs:
        whole.add(update, weight, scale)
        tiled.add([(slice(0, SIZE), update)], weight, scale)
        expected += np.rint(update.astype(np.float64) * (math.ldexp(weight, GRID.shift) * scale))

    np.testing.assert_array_equal(tiled.sums, whole.sums)
    np.testing.assert_allclose(whole.sums, expected, rtol=1e-12)
    assert whole.weight == sum(weight for _, weight in pairs)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -17.0])
def test_every_tile_is_checked(bad: float) -> None:
    """The last one as the first."""
    with pytest.raises(Refused):
        fold.check([(np.array([0]), np.ones(1, np.float32)), (np.array([4]), np.full(1, bad, np.float32))], 1, GRID)


def test_tiles_are_measured_together() -> None:
    """The largest value and the L2 norm are those of all tiles."""
    tiles = [(slice(0, 1), np.array([3], np.float32)), (np.array([5]), np.array([-4], np.float32))]
    found = fold.check(tiles, 1, GRID)

    assert (found.max_abs, found.norm) == (4.0, 5.0)


# --- partial sums from elsewhere ------------------------------------------------------------


@given(updates, st.integers(0, 8))
def test_a_batch_that_was_folded_elsewhere_counts_exactly(pairs, cut) -> None:
    """Whatever allowed updates a trainer folds, its sum is accepted, and commits the same model."""
    running = folded(pairs[:cut])
    if pairs[cut:]:
        batch = folded(pairs[cut:])
        running.add_partial(batch.sums, batch.weight, batch.count)

    assert model_of(running) == model_of(folded(pairs))
    assert running.count == len(pairs)


def test_the_largest_batch_is_accepted_and_one_unit_more_is_not() -> None:
    """The bound is max_abs · weight · 2^s, and half a unit for each update, on either side."""
    for sign in (1, -1):
        batch = folded([(np.full(SIZE, sign * 16.0, np.float32), 2**20)] * 3)
        fold.check_partial(batch.sums, batch.weight, batch.count, GRID)
        batch.sums[SIZE - 1] += sign * 1
        fold.check_partial(batch.sums, batch.weight, batch.count, GRID)
        batch.sums[SIZE - 1] += sign * 1
        with pytest.raises(Refused, match=r"limits\.max_abs"):
            Fold(SIZE, GRID).add_partial(batch.sums, batch.weight, batch.count)


@pytest.mark.parametrize("place", [0, fold.TILE, 2 * fold.TILE + 4])
@pytest.mark.parametrize("value", [2**63 - 1, -(2**63)])
def test_no_sum_overflows_the_fold(place: int, value: int) -> None:
    """The largest integers there are, wherever they stand; the fold is as it was."""
    running = Fold(2 * fold.TILE + 5, GRID)
    sums = np.zeros(2 * fold.TILE + 5, np.int64)
    sums[place] = value
    with pytest.raises(Refused, match=r"limits\.max_abs"):
        running.add_partial(sums, 2**20, 1)

    assert (running.sums.any(), running.weight, running.count) == (False, 0, 0)


@pytest.mark.parametrize(
    ("weight", "count", "reason"),
    [
        (1, 0, "the sum of 0 updates"),
        (9, 9, "the sum of 9 updates"),
        (1, 2, r"limits\.max_examples"),
        (2 * 2**20 + 1, 2, r"limits\.max_examples"),
        (-1, 1, r"limits\.max_examples"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(weight: int, count: int, reason: str) -> None:
    """Its count is held to the round's, its weight to what as many clients may have."""
    with pytest.raises(Refused, match=reason):
        fold.check_partial(np.zeros(SIZE, np.int64), weight, count, GRID)


def test_batches_together_stay_within_the_round() -> None:
    """The grid has room for as many updates as the round asks."""
    running = Fold(SIZE, GRID)
    running.add_partial(np.zeros(SIZE, np.int64), 5, 5)
    with pytest.raises(Refused, match="more than the 8"):
        running.add_partial(np.zeros(SIZE, np.int64), 4, 4)

    assert (running.weight, running.count) == (5, 5)


def test_a_good_batch_is_measured() -> None:
    """By its weighted mean."""
    batch = folded([(np.array([3, 0, 0, 0, 0, 0, -4], np.float32), weight) for weight in (1, 6)])
    found = fold.check_partial(batch.sums, batch.weight, batch.count, GRID)

    assert (found.max_abs, found.norm) == (4.0, 5.0)
