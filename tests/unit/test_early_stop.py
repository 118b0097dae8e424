"""When a job ends before its last round."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.aggregator.outcome import early_stop
from shared.job.catalog.rounds import StopSpec

NAN = math.nan


@pytest.mark.parametrize(
    ("stop", "values", "ends"),
    [
        ({"target": 0.9}, [], False),
        ({"target": 0.9}, [0.5, 0.89], False),
        ({"target": 0.9}, [0.5, 0.9], True),
        ({"target": 0.9}, [0.95, 0.5], False),
        ({"target": 0.1, "mode": "min"}, [0.5, 0.2], False),
        ({"target": 0.1, "mode": "min"}, [0.5, 0.1], True),
        ({"patience": 2}, [0.5, 0.5], False),
        ({"patience": 2}, [0.5, 0.5, 0.4], True),
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.5], False),
        ({"patience": 2, "min_delta": 0.1}, [0.5, 0.55, 0.59], True),
        ({"patience": 2, "min_delta": 0.1}, [0.5, 0.55, 0.61], False),
        ({"patience": 1, "mode": "min"}, [0.5, 0.4], False),
        ({"patience": 1, "mode": "min"}, [0.5, 0.6], True),
        ({"patience": 1, "target": 0.9}, [0.95, 0.95], True),
        ({"patience": 2, "mode": "min"}, [NAN, 1.0, 0.5], False),
        ({"patience": 2, "mode": "min"}, [1.0, NAN], False),
        ({"patience": 2, "mode": "min"}, [1.0, NAN, math.inf], True),
        ({"patience": 2, "mode": "min"}, [1.0, NAN, 0.5, NAN], False),
        ({"patience": 2}, [NAN], False),
        ({"patience": 2}, [NAN, NAN], True),
        ({"target": 0.9}, [math.inf], False),
        ({"target": 0.9}, [NAN], False),
    ],
)
def test_a_job_ends_at_its_target_or_on_a_plateau(stop, values: list[float], ends: bool) -> None:
    """And the reason names the setting that ended it."""
    reason = early_stop(StopSpec.model_validate(stop), values)

    assert bool(reason) is ends
    assert not ends or "evaluate.stop." in reason


def test_the_reason_says_what_was_never_reached() -> None:
    """The best number, or that there was none."""
    stop = StopSpec(metric="loss", mode="min", patience=2)
    assert "loss has not been better than 0.5 for 2 evaluations" in early_stop(stop, [1.0, 0.5, NAN, 0.7])
    assert "loss has not been a finite number for 2 evaluations" in early_stop(stop, [NAN, -math.inf])


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.just(NAN), st.just(math.inf), st.integers(-3, 3).map(float))),
    st.integers(1, 4),
    st.sampled_from(["min", "max"]),
)
def test_patience_is_over_when_the_last_evaluations_improved_on_none_before(values, patience, mode) -> None:
    """Whatever of them were numbers."""
    sign = 1 if mode == "max" else -1
    before = [sign * value for value in values[: len(values) - patience] if math.isfinite(value)]
    last = [sign * value for value in values[len(values) - patience :] if math.isfinite(value)]
    improved = bool(last) and (not before or max(last) > max(before))
    over = len(values) >= patience and not improved

    assert bool(early_stop(StopSpec(metric="loss", mode=mode, patience=patience), values)) is over
