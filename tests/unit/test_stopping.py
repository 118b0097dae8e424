"""When a job ends before its last round."""

import pytest

from services.aggregator.stopping import verdict
from shared.catalog.rounds import StopSpec


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
    ],
)
def test_a_job_ends_at_its_target_or_on_a_plateau(stop, values: list[float], ends: bool) -> None:
    """And the reason names the setting that ended it."""
    reason = verdict(StopSpec.model_validate(stop), values)

    assert bool(reason) is ends
    assert not ends or "evaluate.stop." in reason
