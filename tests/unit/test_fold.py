"""The exact fold: any order, split or duplication of updates gives the same model."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import fold
from shared.catalog.strategies import FedAvg
from shared.errors import Refused
from shared.fold import Fold, Grid
from shared.strategies.averaging import Averaged

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
