"""What a real trainer sends of batch norm's statistics: the values that its client has, whatever the job asks for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

from shared.aggregation import weights
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.fold import Buffers, Fold, grid_of
from shared.aggregation.strategies.choose import strategy_of
from shared.aggregation.strategies.strategy import Counted
from shared.aggregation.weights import Flat, Layout
from shared.events import ModelUpdate
from shared.job.job_spec import JobSpec
from tests.by_hand import Federation, digits

MODEL = {"name": f"{__name__}:normed"}


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))


@pytest.fixture(autouse=True)
def _own_model(allow: Callable[..., None]) -> None:
    """This process makes the model too."""
    allow(f"{__name__}:normed")


def sent(federation: Federation, update: ModelUpdate, layout: Layout, spec: JobSpec) -> tuple[Flat, Flat]:
    """The parameters' part of an update, and the buffers'."""
    plain = layout.of_updates(strategy_of(spec.strategy, spec.population).channels)
    values = np.empty(plain.size, np.float32)
    encoding_of(spec.compress.update, plain).decode_into(federation.file(update), values)
    return values[: plain.parameters], values[plain.parameters :]


def test_buffers_are_sent_as_they_are(federation: Federation) -> None:
    """Not divided by steps, weighed by a loss, encoded or counted in a norm; an attacker scales what changed."""
    federation.start("--pool", "cpu")
    spec = digits(model=MODEL)
    base = federation.given(spec)
    model = federation.blobs.get(base)
    layout = weights.read_layout(model)
    before = layout.flat(model)[layout.parameters :]
    assert {name.rpartition(".")[2] for name in layout.buffers} == {"running_mean", "running_var"}

    def trained(**changes: Any) -> tuple[Flat, Flat]:
        asked = digits(model=MODEL, **changes)
        (update,) = federation.trained(1, "client-1", base=base, spec=asked)
        return sent(federation, update, layout, asked)

    parameters, buffers = trained()
    assert (buffers != before).any()
    for changes in (
        {"strategy": {"name": "fednova"}},
        {"strategy": {"name": "qfedavg", "q": 2.0}},
        {"strategy": {"name": "scaffold"}},
        {"compress": {"update": {"name": "topk"}}},
        {"compress": {"update": {"name": "int4", "error_feedback": False}}},
        {"limits": {"max_norm": 1.01 * float(np.linalg.norm(parameters))}},
    ):
        assert np.array_equal(trained(**changes)[1], buffers), changes
    attacker = trained(simulate={"attack": {"name": "scaled_update", "fraction": 1.0, "factor": -3}})
    np.testing.assert_allclose(attacker[1], before - 3 * (buffers - before), rtol=1e-5, atol=1e-6)


def test_a_batch_holds_its_clients_buffers_to_the_bit(federation: Federation) -> None:
    """As the aggregator would have folded them one by one."""
    federation.start("--pool", "cpu")
    spec = digits(model=MODEL, strategy={"name": "fednova"}, rounds={"count": 3, "clients_per_task": 2})
    base = federation.given(spec)
    model = federation.blobs.get(base)
    layout = weights.read_layout(model)
    (batch,) = federation.trained(1, "client-1", "client-2", base=base, spec=spec)
    single = digits(model=MODEL, strategy={"name": "fednova"})
    grid = grid_of(spec, 2)
    fold = Fold(layout.size, grid, Buffers.of(layout.flat(model), layout.of_updates(), grid.max_abs))
    for update in federation.trained(1, "client-1", "client-2", base=base, spec=single, attempt=2):
        values = layout.of_updates().flat(federation.file(update))
        fold.add(values, strategy_of(spec.strategy, 1).weight(Counted(update.client, update.examples)))

    partial = weights.layout_of({"sums": ("I64", (layout.size,))})
    assert np.array_equal(partial.views(federation.file(batch))["sums"], fold.sums)
