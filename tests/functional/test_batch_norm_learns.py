"""Batch norm learns under server optimizers and compression: a federation in memory, of the real parts."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from services.trainer.models.flat import FlatModel
from services.trainer.training import loop
from shared.aggregation.aggregate import Aggregation, Plan
from shared.aggregation.compression.encoding import encode_with_feedback
from shared.aggregation.fold import Grid
from shared.aggregation.strategies.strategy import Counted
from shared.job.catalog.training import Sgd, TrainSpec

CLIENTS, CLASSES, FEATURES = 4, 3, 5
GRID = Grid(max_abs=256.0, max_weight=2**20, updates=CLIENTS)


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes, each with one feature of its own; all features small, so that variances are near zero."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (count,), generator=draw)
    x = torch.randn(count, FEATURES, generator=draw)
    x[torch.arange(count), y] += 3
    return 0.05 * x, y


@pytest.mark.parametrize(
    ("strategy", "update"),
    [
        ({"name": "fedavgm"}, None),
        ({"name": "fedadam"}, None),
        ({"name": "fedyogi", "lr": 0.1}, None),
        ({"name": "fedadagrad"}, None),
        ({"name": "fedavg"}, {"name": "topk", "ratio": 0.1}),
        ({"name": "fedavgm"}, {"name": "topk", "ratio": 0.1}),
    ],
    ids=lambda value: value["name"] if value else "plain",
)
def test_batch_norm_learns(strategy: dict[str, Any], update: dict[str, Any] | None) -> None:
    """Thirty rounds: an accuracy of 0.9, and variances of what the data have."""
    torch.manual_seed(1)
    model = FlatModel(nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES)))
    plan = Plan.model_validate({"strategy": strategy, "compress": {"update": update}})
    aggregation, base, layout = Aggregation(plan, model.layout), model.save(), model.layout
    residuals = [np.zeros(layout.size, np.float32) for _ in range(CLIENTS)]
    how = TrainSpec(batch_size=16, optimizer=Sgd(lr=0.1))
    for number in range(1, 31):
        aggregation.begin(GRID, layout.flat(base))
        counted = []
        for client in range(CLIENTS):
            model.load(base)
            loop.train(model.model, *examples(48, client), how, seed=1, client=f"c{client}", number=number)
            file = aggregation.update_layout.empty_file()
            values = layout.of_updates().flat(model.update(base))
            encode_with_feedback(aggregation._encoding, values, residuals[client] if update else None, file)
            about = Counted(f"c{client}", 48)
            counted.append(Counted(f"c{client}", 48, aggregation.measure(file, [about], GRID).norm))
            aggregation.add(file, [about])
        aggregation.advance(layout.flat(base), counted)

    model.load(base)
    variances = layout.views(base)["0.running_var"]
    assert (variances > 0.001).all()
    assert (variances < 0.02).all()
    found = loop.evaluate(model.model, *examples(120, 99))
    assert found["accuracy"] > 0.9, found
