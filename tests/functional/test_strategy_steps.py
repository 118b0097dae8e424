"""What a strategy makes of what training changed, before it travels."""

from typing import Any

import numpy as np
import pytest

from services.trainer.slot.client import Trained, pack_update
from services.trainer.training import strategy_steps
from shared.aggregation import weights
from shared.errors import BadInput
from tests.by_hand import digits

METRICS = {"client_loss": 2.0, "steps": 8.0}


@pytest.mark.parametrize(
    ("strategy", "factor", "told"),
    [
        ({"name": "fedavg"}, 1.0, {}),
        ({"name": "fednova"}, 1 / 8, {"local_norm": 8.0}),
        ({"name": "qfedavg", "q": 2.0}, 4.0, {}),
        ({"name": "qfedavg", "q": 0.0}, 1.0, {}),
    ],
    ids=["fedavg", "fednova", "qfedavg", "qfedavg as fedavg"],
)
def test_a_strategy_gets_what_it_folds(strategy: dict[str, Any], factor: float, told: dict[str, float]) -> None:
    """FedNova's is divided by its steps, q-FedAvg's times the loss to the q; others' is as it is."""
    delta, metrics = np.array([1.0, -2.0], np.float32), dict(METRICS)
    strategy_steps.shape(delta, digits(strategy=strategy), 1, metrics)
    assert delta.tolist() == [factor, -2 * factor]
    assert metrics == METRICS | told


def trained(*values: float) -> Trained:
    layout = weights.layout_of({"w": ("F32", (len(values),))})
    file = layout.empty_file()
    layout.flat(file)[:] = values
    return Trained(5, file, layout.flat(file))


@pytest.mark.parametrize("compress", [{}, {"update": {"name": "bf16"}}], ids=["plain", "compressed"])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((1.0, float("nan")), "training diverged: the update holds NaN or Inf; a lower learning rate may help"),
        ((300.0, 1.0), "the update is not sent: a value of 300 exceeds limits.max_abs, 256; raise that limit, or "),
        ((3.0, 4.0), "the update is not sent: its norm, 5, exceeds limits.max_norm, 4; raise that limit, or "),
    ],
    ids=["not a number", "too large", "too long"],
)
def test_what_may_not_be_sent_says_why(compress: dict[str, Any], values: tuple[float, ...], reason: str) -> None:
    """By the limits that the aggregator would hold it to, whatever it is packed in; divergence is only what is one."""
    spec = digits(compress=compress, limits={"max_norm": 4.0 if values[0] == 3 else 1000})
    layout = weights.layout_of({"w": ("F32", (2,))})
    with pytest.raises(BadInput, match=f"^{reason}"):
        pack_update(trained(*values), np.zeros(2, np.float32), layout, spec)
    assert pack_update(trained(1.0, 2.0), np.zeros(2, np.float32), layout, spec)[0].nbytes
