"""Update files under a plan: folded as they travel, in any order and in parts, into the next model."""

from typing import Any

import numpy as np
import pytest

from shared.aggregation import weights
from shared.aggregation.aggregate import Aggregation, Plan
from shared.aggregation.compression.encoding import rebuild
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.fold import Fold, Grid
from shared.aggregation.strategies.strategy import Counted, Stacked
from shared.aggregation.weights import File, Flat
from shared.errors import BadInput, Refused

LAYOUT = weights.layout_of({"w": ("F32", (70, 30)), "b": ("F32", (30,)), "seen": ("I64", ())})
P = LAYOUT.size
GRID = Grid(max_abs=4.0, max_weight=1000, updates=8)
CLIENTS = [Counted(f"c{number}", 10 + 7 * number, 1.0, 0, {"client_loss": 1.0}) for number in range(5)]


def plan(strategy: dict[str, Any], **compress: Any) -> Plan:
    return Plan.model_validate({"strategy": strategy, "compress": compress, "population": 20, "lr": 0.1})


def deltas(count: int = 5, channels: int = 1, seed: int = 0) -> list[Flat]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 0.1, channels * P).astype(np.float32) for _ in range(count)]


def plain(aggregation: Aggregation, values: Flat) -> File:
    file = aggregation.update_layout.empty_file()
    aggregation.update_layout.flat(file)[:] = values
    return file


def model(seed: int = 9) -> Flat:
    return np.random.default_rng(seed).normal(0, 1, P).astype(np.float32)


def advanced(aggregation: Aggregation, files: list[File], base: Flat, order: list[int] | None = None) -> Flat:
    aggregation.begin(GRID, model())
    for index in order or range(len(files)):
        aggregation.measure(files[index], [CLIENTS[index]], GRID)
        aggregation.add(files[index], [CLIENTS[index]])
    result = base.copy()
    aggregation.advance(result, CLIENTS[: len(files)])
    return result


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "norm_clip", "fedbuff", "fedavgm"])
def test_the_order_of_arrival_changes_no_bit(name: str) -> None:
    """Whatever the strategy makes of the mean."""
    found = []
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2]):
        aggregation = Aggregation(plan({"name": name}), LAYOUT)
        files = [plain(aggregation, values) for values in deltas()]
        found.append(advanced(aggregation, files, model(), order))

    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("weights_of", ["examples", "equal"])
def test_a_partial_fold_is_worth_its_updates_bit_by_bit(weights_of: str) -> None:
    """Two clients in one file and three in another give the model that five files give."""
    aggregation = Aggregation(plan({"name": "fedavg", "weights": weights_of}), LAYOUT)
    values = deltas()
    alone = advanced(aggregation, [plain(aggregation, one) for one in values], model())

    aggregation.begin(GRID, model())
    for part in (slice(0, 2), slice(2, 5)):
        fold = Fold(P, GRID)
        for one, client in zip(values[part], CLIENTS[part], strict=True):
            fold.add(one, aggregation.strategy.weight(client))
        file = aggregation.partial_layout.empty_file()
        aggregation.partial_layout.views(file)["sums"][:] = fold.sums
        aggregation.measure(file, CLIENTS[part], GRID, partial=True)
        aggregation.add(file, CLIENTS[part], partial=True)
    together = model()
    aggregation.advance(together, CLIENTS)

    assert np.array_equal(alone, together)


def test_a_partial_fold_beyond_its_clients_is_refused() -> None:
    """No client could have sent so much, or weigh so much."""
    aggregation = Aggregation(plan({"name": "fedavg"}), LAYOUT)
    file = aggregation.partial_layout.empty_file()
    sums = aggregation.partial_layout.views(file)["sums"]
    sums[:] = 0
    sums[3] = 2**62
    with pytest.raises(Refused, match=r"limits\.max_abs"):
        aggregation.measure(file, CLIENTS[:2], GRID, partial=True)
    sums[3] = 0
    with pytest.raises(Refused, match="examples is 5000"):
        aggregation.measure(file, [CLIENTS[0], Counted("c9", 5000)], GRID, partial=True)


def test_what_the_strategy_keeps_goes_on_from_its_file() -> None:
    """Another process that reads it takes the same second step."""
    first = Aggregation(plan({"name": "fedadam"}), LAYOUT)
    base = advanced(first, [plain(first, one) for one in deltas(seed=1)], model())
    again = Aggregation(plan({"name": "fedadam"}), LAYOUT, first._server.copy())
    fresh = Aggregation(plan({"name": "fedadam"}), LAYOUT)
    files = [plain(first, one) for one in deltas(seed=2)]

    expected = advanced(first, files, base)
    assert np.array_equal(advanced(again, files, base), expected)
    assert not np.array_equal(advanced(fresh, files, base), expected)


def test_state_of_another_strategy_is_begun_anew() -> None:
    """A job may be resumed under another one."""
    momentum = Aggregation(plan({"name": "fedavgm"}), LAYOUT)
    files = [plain(momentum, one) for one in deltas()]
    advanced(momentum, files, model())
    adam = Aggregation(plan({"name": "fedadam"}), LAYOUT, momentum._server)

    assert np.array_equal(
        advanced(adam, files, model()), advanced(Aggregation(plan({"name": "fedadam"}), LAYOUT), files, model())
    )


def test_control_variates_travel_beside_their_updates() -> None:
    """SCAFFOLD's update has two channels, the mean of one moves the model and that of the other the server's state."""
    aggregation = Aggregation(plan({"name": "scaffold"}), LAYOUT)
    values = deltas(channels=2)
    result = advanced(aggregation, [plain(aggregation, one) for one in values], model())
    stacked = np.stack(values).astype(np.float64)

    assert np.allclose(result, model() + stacked[:, P:].mean(0), atol=1e-6)
    control = weights.read_layout(aggregation._server).views(aggregation._server)["control"]
    assert np.allclose(control, 5 / 20 * stacked[:, :P].mean(0), atol=1e-7)


def test_strategies_that_compare_updates_read_them_again() -> None:
    """They are checked as they come in, folded not at all, and read in slices."""
    aggregation = Aggregation(plan({"name": "median"}), LAYOUT)
    values = deltas()
    aggregation.begin(GRID, model())
    for one, client in zip(values, CLIENTS, strict=True):
        aggregation.add(plain(aggregation, one), [client])
    result = model()
    aggregation.advance(result, CLIENTS, Stacked(np.stack(values)))

    assert aggregation.fold is None
    assert np.allclose(result, model() + np.median(np.stack(values), 0), atol=1e-6)


def test_a_compressed_model_is_what_a_trainer_builds() -> None:
    """The committed model has the bits of the one before and the difference; what was left out comes later."""
    aggregation = Aggregation(plan({"name": "fedavg"}, model={"name": "int4"}), LAYOUT)
    exact, kept, mine = model(), model(), model()
    for number in range(20):
        values = deltas(seed=number)
        aggregation.begin(GRID, model())
        for one, client in zip(values, CLIENTS, strict=True):
            aggregation.add(plain(aggregation, one), [client])
        extra = aggregation.advance(kept, CLIENTS)
        assert extra.delta is not None
        assert extra.delta.nbytes < 4 * P / 5
        rebuild(mine, extra.delta, encoding_of(aggregation._plan.compress.model, LAYOUT.of_updates()))
        assert np.array_equal(mine, kept)
        exact += np.average(np.stack(values), axis=0, weights=[client.examples for client in CLIENTS])

    assert np.abs(exact - kept).max() < 0.03  # one round's error, not twenty


@pytest.mark.parametrize("name", ["bf16", "int8", "int4", "topk"])
def test_a_compressed_update_is_folded_as_it_decodes(name: str) -> None:
    """To the bit, and its file has one size that is known before it comes."""
    aggregation = Aggregation(plan({"name": "fedavg"}, update={"name": name}), LAYOUT)
    encoding = encoding_of(aggregation._plan.compress.update, LAYOUT.of_updates())
    files, decoded = [], []
    for values in deltas():
        file = aggregation.update_layout.empty_file()
        encoding.encode(values, file)
        out = np.empty(P, np.float32)
        encoding.decode_into(file, out)
        files.append(file)
        decoded.append(out)
    expected = Aggregation(plan({"name": "fedavg"}), LAYOUT)

    assert np.array_equal(
        advanced(aggregation, files, model()),
        advanced(expected, [plain(expected, one) for one in decoded], model()),
    )


@pytest.mark.parametrize(
    ("q", "loss", "length", "lost"),
    [
        (10, 0.05, 0.1, True),  # 1e-13 of each value
        (20, 1e-3, 0.1, True),  # 1e-60, which is no float32
        (2, 0.05, 0.1, False),
        (10, 0.0, 0.1, False),  # it has nothing to say
        (10, 0.05, 1e-13, False),  # nothing was learnt
    ],
)
def test_small_losses_to_a_high_power_are_not_lost_in_silence(q: float, loss: float, length: float, lost: bool) -> None:
    """Rounded to nothing, they would leave the model as it is, or a little beside."""
    aggregation = Aggregation(plan({"name": "qfedavg", "q": q}), LAYOUT)
    base = model()
    aggregation.begin(GRID, base)
    sent = (deltas(1)[0] * 10 * length * loss**q).astype(np.float32)
    update = Counted("a", 10, 0.0, 0, {"client_loss": loss})
    measures = aggregation.measure(plain(aggregation, sent), [update], GRID)
    aggregation.add(plain(aggregation, sent), [update])
    counted = [Counted("a", 10, measures.norm, 0, update.metrics)]
    if lost:
        with pytest.raises(BadInput, match=r"losses such as .* to that power are lost in the sum's rounding"):
            aggregation.advance(base, counted)
    else:
        aggregation.advance(base, counted)
