"""The learning rate of a round: within its bounds, falling after the warm-up, and as its formula says."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.training.optimizers import rate
from shared.job.catalog.training import Constant, Cosine, Exponential, ScheduleSpec, StepDecay

warmups = st.integers(0, 30)
floors = st.floats(0, 0.2)
gammas = st.floats(0.01, 1)
rates = st.floats(1e-6, 10)
schedules: st.SearchStrategy[ScheduleSpec] = st.one_of(
    st.builds(Constant, warmup=warmups),
    st.builds(StepDecay, warmup=warmups, every=st.integers(1, 20), gamma=gammas, floor=floors),
    st.builds(Exponential, warmup=warmups, gamma=gammas, floor=floors),
    st.builds(Cosine, warmup=warmups, floor=floors),
)
ULP = 1 + 1e-12  #: for what rounding does


def over(schedule: ScheduleSpec, lr: float, rounds: int) -> list[float]:
    return [rate(schedule, lr, number, rounds) for number in range(1, rounds + 1)]


@given(schedules, rates, st.integers(1, 100))
def test_a_rate_rises_to_that_of_the_optimizer_and_falls_to_the_floor(
    schedule: ScheduleSpec, lr: float, rounds: int
) -> None:
    """Whatever the schedule: the warm-up is linear, and what follows begins with the whole and never rises."""
    found, warmup = over(schedule, lr, rounds), schedule.warmup
    floor = min(lr, getattr(schedule, "floor", lr))

    assert found[: warmup - 1 if warmup else 0] == [
        lr * number / warmup for number in range(1, min(warmup, rounds + 1))
    ]
    after = found[max(0, warmup - 1) :]
    assert after[:1] in ([lr], [])
    assert all(later <= earlier * ULP for earlier, later in itertools.pairwise(after))
    assert all(floor <= one * ULP and one <= lr * ULP for one in after)


@given(rates, st.integers(1, 10**5), st.integers(1, 10**5))
def test_a_constant_rate_is_that_of_the_optimizer(lr: float, number: int, rounds: int) -> None:
    """To the bit: a job without a schedule is what it always was."""
    assert rate(Constant(), lr, number, rounds) == lr


def test_steps_halve_the_rate_down_to_the_floor() -> None:
    """Every two rounds here."""
    schedule = StepDecay(every=2, gamma=0.5, floor=0.3)

    assert over(schedule, 1.0, 7) == [1.0, 1.0, 0.5, 0.5, 0.3, 0.3, 0.3]
    assert over(schedule.model_copy(update={"warmup": 3}), 1.0, 7) == [1 / 3, 2 / 3, 1.0, 1.0, 0.5, 0.5, 0.3]


def test_an_exponential_rate_falls_by_the_same_share_each_round() -> None:
    """Down to the floor, and after ever so many rounds."""
    assert over(Exponential(gamma=0.5, floor=0.2), 1.0, 4) == [1.0, 0.5, 0.25, 0.2]
    assert rate(Exponential(gamma=0.5, floor=0.0), 1.0, 100_000, 100_000) == 0.0


def test_a_cosine_reaches_the_floor_in_the_last_round() -> None:
    """By half a wave, from the first round or from where the warm-up ends."""
    found = over(Cosine(floor=0.1), 1.1, 5)

    assert found == pytest.approx([1.1, 0.6 + 0.5 * math.sqrt(0.5), 0.6, 0.6 - 0.5 * math.sqrt(0.5), 0.1])
    assert over(Cosine(warmup=2, floor=0.1), 1.1, 4) == pytest.approx([0.55, 1.1, 0.6, 0.1])
    assert over(Cosine(), 1.0, 1) == [1.0]
    assert rate(Cosine(floor=0.1), 1.1, 9, 5) == pytest.approx(0.1)  # a job that was given more rounds


def test_a_floor_above_the_rate_raises_nothing() -> None:
    """The default of `exponential` is meant for SGD."""
    for schedule in (StepDecay(floor=1.0), Exponential(floor=1.0), Cosine(floor=1.0)):
        assert over(schedule, 0.01, 5) == pytest.approx([0.01] * 5)
