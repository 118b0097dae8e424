"""Buffers, such as batch norm's statistics, are averaged: whatever the strategy, the encoding and the server's rate."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.aggregation import weights
from shared.aggregation.aggregate import Aggregation, Plan
from shared.aggregation.compression.encoding import encode_with_feedback, rebuild
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.fold import Buffers, Fold, Grid, check
from shared.aggregation.strategies.strategy import Counted, Stacked
from shared.aggregation.weights import File, Flat, Layout
from shared.errors import BadInput, Refused
from shared.job import user_code

GRID = Grid(max_abs=256.0, max_weight=2**20, updates=8)
CLIENTS = 7  # Bulyan needs them
LARGEST = 2.0**20  # of a constant

FOLDED: list[dict[str, Any]] = [
    {"name": "fedavg"},
    {"name": "fedavg", "lr": 1.7, "weights": "equal"},
    {"name": "fedavgm"},
    {"name": "fedavgm", "lr": 3.0, "momentum": 0.99},
    {"name": "fedadam"},
    {"name": "fedyogi", "lr": 0.5},
    {"name": "fedadagrad", "lr": 1.0},
    {"name": "fednova", "lr": 0.3},
    {"name": "qfedavg", "q": 2.0},
    {"name": "norm_clip", "max_norm": 0.01, "lr": 2.0},
    {"name": "fedbuff", "lr": 0.5},
    {"name": f"{__name__}:away", "args": {"far": 5.0}},
]
SCAFFOLD: list[dict[str, Any]] = [{"name": "scaffold", "lr": 0.7}]
COMPARED: list[dict[str, Any]] = [
    {"name": "median", "lr": 1.5},
    {"name": "trimmed_mean", "beta": 0.2, "lr": 0.1},
    {"name": "krum", "lr": 2.0},
    {"name": "multikrum", "lr": 0.5},
    {"name": "bulyan", "lr": 0.5},
]
ENCODINGS: list[dict[str, Any] | None] = [
    None, {"name": "bf16"}, {"name": "int8", "block": 16}, {"name": "int4", "block": 16},
    {"name": "topk", "ratio": 0.1}, {"name": "topk", "ratio": 0.3, "error_feedback": False},
]  # fmt: skip


class Away:
    """A user's own strategy that runs off with whatever it is given."""

    state = ("speed",)

    def __init__(self, far: float) -> None:
        self._far = far

    def weight(self, update: Counted) -> int:
        return 3 * update.examples

    def scale(self, _update: Counted) -> float:
        return 0.25

    def factor(self, _updates: Any) -> float:
        return -2.0

    def step(self, model: npt.NDArray[Any], mean: npt.NDArray[Any], state: dict[str, npt.NDArray[Any]]) -> Any:
        state["speed"] += mean
        return model - self._far * np.sign(state["speed"])


def away(far: float) -> Away:
    return Away(far)


@dataclass
class Client:
    """What one has after each round's training: parameters that differ by `delta` of the base, and `buffers`."""

    name: str
    examples: int
    residual: Flat
    staleness: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Of models with parameters, float buffers before and behind them in the alphabet, and integers."""
    sides = st.integers(1, 9)
    parameters = draw(st.dictionaries(st.sampled_from("bdfhj"), sides, min_size=1))
    buffers = draw(st.dictionaries(st.sampled_from("acegi"), sides, min_size=1))
    tensors = {name: ("F32", (side,)) for name, side in (parameters | buffers).items()}
    return weights.layout_of(tensors | {"seen": ("I64", ())}, buffers)


@pytest.fixture(scope="module", autouse=True)
def _own_strategy() -> Iterator[None]:
    """Of this module: it may run here."""
    user_code.permit([f"{__name__}:away"], "this test")
    yield
    user_code.permit([], "this process")


# --- any model, any strategy, any encoding --------------------------------------------------------


@pytest.mark.parametrize("strategy", FOLDED + SCAFFOLD + COMPARED, ids=lambda spec: str(spec["name"]).split(":")[-1])
@given(data=st.data())
@settings(deadline=None, max_examples=8)
def test_buffers_are_the_clients_mean_round_after_round(strategy: dict[str, Any], data: st.DataObject) -> None:
    """Computed apart, in float64, of what clients have; statistics stay in their range, however wild the weights."""
    layout = data.draw(layouts())
    plain = strategy in SCAFFOLD + COMPARED
    update = None if plain else data.draw(st.sampled_from(ENCODINGS))
    down = data.draw(st.sampled_from(ENCODINGS))
    plan = Plan.model_validate({"strategy": strategy, "compress": {"update": update, "model": down}, "population": 9})
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    model = random.normal(0, 1, layout.size).astype(np.float32)
    model[layout.parameters :] = random.choice([0.0, 1.0, -1e-3, 500.0, -LARGEST], layout.size - layout.parameters)
    clients = [Client(f"c{number}", 1 + 3 * number, np.zeros(layout.size, np.float32)) for number in range(CLIENTS)]
    aggregation = Aggregation(plan, layout)
    received = model.copy()
    for number in range(15):
        base = model.copy()
        trained = [trained_on(base, layout.parameters, random) for _ in clients]
        left = one_round(aggregation, model, clients, trained, random)
        expected = averaged(strategy, clients, [one[layout.parameters :] for one in trained])

        np.testing.assert_allclose(model[layout.parameters :], expected, rtol=1e-6, atol=1e-8, err_msg=f"{number}")
        assert_in_range(model[layout.parameters :], [one[layout.parameters :] for one in trained])
        assert np.isfinite(model).all()
        if left is not None:  # what another trainer builds of the difference
            rebuild(received, left, encoding_of(plan.compress.model, layout.of_updates()))
            assert np.array_equal(received, model)


def trained_on(base: Flat, parameters: int, random: np.random.Generator) -> Flat:
    """Wild parameters; of buffers, exponential averages of something positive, zeros, and constants that stay."""
    found = base + random.standard_cauchy(base.size).clip(-200, 200).astype(np.float32) * np.float32(0.1)
    buffers = base[parameters:]
    fresh = np.abs(buffers * np.float32(0.9)) + random.exponential(0.1, buffers.size).astype(np.float32)
    vanishing = (np.abs(buffers) * np.float32(random.choice([0.0, 0.5]))).astype(np.float32)
    chosen = np.where(np.arange(buffers.size) % 2 == 0, fresh, vanishing)
    found[parameters:] = np.where(np.abs(buffers) > 300, buffers, chosen)
    return found


def one_round(
    aggregation: Aggregation, model: Flat, clients: list[Client], trained: list[Flat], random: np.random.Generator
) -> File | None:
    """Takes the updates in, each as its file, and steps; the difference that the model travels as, if there is one."""
    parameters = aggregation._layout.parameters
    aggregation.begin(GRID, model)
    counted, rows = [], []
    for client, values in zip(clients, trained, strict=True):
        told = {"client_loss": float(random.uniform(0, 3)), "local_norm": float(random.integers(1, 9))}
        file = packed(aggregation, sent(aggregation._plan, values, model, parameters, told), client)
        about = Counted(client.name, client.examples, 0.0, int(random.integers(0, 3)), told)
        norm = aggregation.measure(file, [about], GRID).norm
        about = Counted(client.name, client.examples, norm, about.staleness, told)
        aggregation.add(file, [about])
        counted.append(about)
        rows.append(aggregation.update_layout.flat(file))
    stacked = Stacked(np.stack(rows)) if aggregation.fold is None else None
    return aggregation.advance(model, counted, stacked).delta


def sent(plan: Plan, values: Flat, base: Flat, parameters: int, told: dict[str, float]) -> Flat:
    """An update's values: as a trainer shapes them."""
    delta = values[:parameters] - base[:parameters]
    if plan.strategy.name == "fednova":
        delta /= np.float32(told["local_norm"])
    if plan.strategy.name == "qfedavg":
        delta *= np.float32(told["client_loss"] ** 2)
    delta = delta.clip(-250, 250)
    control = [delta] if plan.strategy.name == "scaffold" else []
    return np.concatenate([*control, delta, values[parameters:]])


def packed(aggregation: Aggregation, values: Flat, client: Client) -> File:
    file = aggregation.update_layout.empty_file()
    spec = aggregation._plan.compress.update
    encode_with_feedback(aggregation._encoding, values, client.residual if spec and spec.error_feedback else None, file)
    return file


def averaged(strategy: dict[str, Any], clients: list[Client], values: list[Flat]) -> npt.NDArray[np.float64]:
    """What the buffers must be."""
    stacked = np.stack(values).astype(np.float64)
    if strategy["name"] == "trimmed_mean":
        return np.sort(stacked, axis=0)[1:-1].mean(axis=0)
    if strategy in COMPARED:
        return np.median(stacked, axis=0)
    equal = strategy.get("weights") == "equal" or strategy["name"] in ("qfedavg", "fedbuff", "scaffold")
    return np.average(stacked, axis=0, weights=[1 if equal else client.examples for client in clients])


def assert_in_range(found: Flat, values: list[Flat]) -> None:
    """No variance below zero; none beyond what the clients have, but for the grid's rounding."""
    stacked = np.stack(values)
    low, high = stacked.min(axis=0), stacked.max(axis=0)
    assert (found[low >= 0] >= 0).all()
    slack = 1e-6 * np.maximum(np.abs(low), np.abs(high)) + 1e-8
    assert (found >= low - slack).all()
    assert (found <= high + slack).all()


# --- parts of a round -----------------------------------------------------------------------------

NORM = weights.layout_of({"w": ("F32", (6,)), "mean": ("F32", (2,)), "variance": ("F32", (2,))}, {"mean", "variance"})


def of_norm(parameters: float, *buffers: float) -> Flat:
    return np.array([parameters] * 6 + list(buffers), np.float32)


def taken_in(aggregation: Aggregation, model: Flat, updates: list[Flat]) -> Flat:
    aggregation.begin(GRID, model)
    counted, rows = [], []
    for number, values in enumerate(updates):
        file = packed(aggregation, values, Client("c", 1, np.zeros(0, np.float32)))
        about = Counted(f"c{number}", 1 + number)
        norm = aggregation.measure(file, [about], GRID).norm
        counted.append(Counted(f"c{number}", 1 + number, norm))
        aggregation.add(file, [counted[-1]])
        rows.append(values)
    after = model.copy()
    aggregation.advance(after, counted, Stacked(np.stack(rows)) if aggregation.fold is None else None)
    return after


def made(**strategy: Any) -> Aggregation:
    return Aggregation(Plan.model_validate({"strategy": strategy}), NORM)


@given(cut=st.integers(1, 4), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_a_partial_fold_has_the_buffers_of_its_clients_bit_by_bit(cut: int, seed: int) -> None:
    """A trainer that folds several clients holds their buffers as distances from what the aggregator does."""
    random = np.random.default_rng(seed)
    model = of_norm(0.5, *random.choice([-1e6, 0.3, 200.0, 0.0], 4)).astype(np.float32)
    updates = [
        np.concatenate([random.normal(0, 1, 6), model[6:] + random.normal(0, 1, 4)]).astype(np.float32)
        for _ in range(5)
    ]
    one_by_one = taken_in(made(name="fedavgm"), model, updates)

    aggregation = made(name="fedavgm")
    aggregation.begin(GRID, model)
    clients = [Counted(f"c{number}", 1 + number) for number in range(5)]
    for part in (slice(0, cut), slice(cut, 5)):
        fold = Fold(10, GRID, Buffers.of(model, NORM.of_updates(), GRID.max_abs))
        for values, client in zip(updates[part], clients[part], strict=True):
            fold.add(values, client.examples)
        file = aggregation.partial_layout.empty_file()
        aggregation.partial_layout.views(file)["sums"][:] = fold.sums
        aggregation.measure(file, clients[part], GRID, partial=True)
        aggregation.add(file, clients[part], partial=True)
    together = model.copy()
    aggregation.advance(together, clients)

    assert np.array_equal(together, one_by_one)


def test_statistics_of_an_older_model_stay_in_their_range() -> None:
    """Two clients that began with a variance of 1, one after the other: what changed, added twice, would be below 0."""
    aggregation, model = made(name="fedbuff"), of_norm(0, 0, 0, 1, 1)
    for _ in range(2):
        model = taken_in(aggregation, model, [of_norm(0.1, 0, 0, 0.1, 0.1)])

    assert model[8:].tolist() == pytest.approx([0.1, 0.1])


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=5, max_size=5),
    weights_=st.lists(st.integers(1, 1000), min_size=1, max_size=5),
    cohort=st.sampled_from([5, 100_000]),
)
def test_what_no_client_changes_stays_to_the_bit(values: list[float], weights_: list[int], cohort: int) -> None:
    """A frozen weight, or the 1e-12 that a model adds to what it divides by, which the grid would make 0."""
    model = of_norm(*values)
    model[-1] = 1e-12
    fold = Fold(model.size, Grid(256.0, 1 << 20, cohort), Buffers.of(model, NORM.of_updates(), 256.0))
    update = model.copy()
    update[: NORM.parameters] = 0
    for weight in weights_:
        fold.add(update, weight)
    found = model.copy()
    fold.apply(found, lambda tile, mean, _: tile + mean)

    assert np.array_equal(found, model)


# --- limits and norms -----------------------------------------------------------------------------


def test_buffers_count_in_no_norm() -> None:
    """Neither in the limit of updates nor in what norm_clip divides by."""
    update = of_norm(0.1, 50.0, -50.0, 200.0, 1.0)
    buffers = Buffers.of(of_norm(0, 0, 0, 1, 1), NORM.of_updates(), 256.0)
    found = check(update, 1, GRID, 0.25, buffers=buffers)

    assert found.norm == pytest.approx(0.1 * 6**0.5)
    assert found.max_abs == 200
    model = taken_in(made(name="norm_clip", max_norm=1.0), of_norm(0, 0, 0, 1, 1), [update])
    assert model.tolist() == pytest.approx(update.tolist())


def test_buffers_are_held_to_the_largest_value_that_an_update_may_have() -> None:
    """From zero, or from the round's own where that is large already: a constant breaks no limit."""
    buffers = Buffers.of(of_norm(0, -1e9, 0, 1, 200), NORM.of_updates(), 256.0)
    assert check(of_norm(0, -1e9, 0, 1, 456), 1, GRID, buffers=buffers).max_abs == 256
    with pytest.raises(Refused, match=r"a buffer, such as batch norm's statistics, with a value of 257 exceeds"):
        check(of_norm(0, -1e9, 257, 1, 0), 1, GRID, buffers=buffers)
    with pytest.raises(Refused, match="holds NaN or Inf"):
        check(of_norm(0, -1e9, np.inf, 1, 0), 1, GRID, buffers=buffers)


# --- attackers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", COMPARED, ids=lambda spec: spec["name"])
def test_nobody_hides_in_buffers(strategy: dict[str, Any]) -> None:
    """Whose parameters are in the midst of all is trusted with no statistics of its own."""
    honest = [of_norm(0.1 + 0.01 * number, 0.0, 0.1, 1.0, 1.0 + 0.1 * number) for number in range(6)]
    attacker = of_norm(0.125, 250.0, -250.0, -250.0, 0.0)
    model = taken_in(made(**strategy), of_norm(0, 0, 0, 1, 1), [*honest[:3], attacker, *honest[3:]])

    stacked = np.stack(honest)[:, 6:]
    assert (model[6:] >= stacked.min(axis=0)).all()
    assert (model[6:] <= stacked.max(axis=0)).all()


@pytest.mark.parametrize("name", ["krum", "multikrum", "bulyan"])
def test_statistics_that_differ_by_much_cover_no_attack_on_the_parameters(name: str) -> None:
    """An attacker whose buffers are the most usual ones is not chosen for them."""
    honest = [of_norm(0.1, *(100.0 * np.sin(number + np.arange(4)))) for number in range(1, 7)]
    attacker = of_norm(-5.0, *np.mean([one[6:] for one in honest], axis=0))
    model = taken_in(made(name=name), of_norm(0, 0, 0, 1, 1), [*honest[:2], attacker, *honest[2:]])

    np.testing.assert_allclose(model[:6], 0.1, rtol=1e-5)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ({"name": "fedavg", "lr": 1e38}, r"strategy fedavg made inf of a value of w: a lower strategy\.lr or"),
        ({"name": "median", "lr": 1e38}, "strategy median made inf of a value of w"),
        ({"name": "fedadagrad", "lr": 1e300}, "strategy fedadagrad made inf of a value of w"),
        ({"name": "fedavgm", "lr": 1e-30, "momentum": 0.9}, None),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_step_to_no_number_is_an_error(strategy: dict[str, Any], reason: str | None) -> None:
    """Not a model; a small step is one."""
    updates = [of_norm(200.0, 0, 0, 1, 1)]
    if reason is None:
        assert np.isfinite(taken_in(made(**strategy), of_norm(0, 0, 0, 1, 1), updates)).all()
        return
    with pytest.raises(BadInput, match=reason):
        taken_in(made(**strategy), of_norm(0, 0, 0, 1, 1), updates)


def test_what_a_strategy_keeps_is_numbers_too() -> None:
    """An infinite second moment would stop all learning in silence."""
    grid = Grid(max_abs=2.0**70, max_weight=4, updates=1)
    aggregation = made(name="fedadam")
    aggregation.begin(grid, of_norm(0, 0, 0, 1, 1))
    about = [Counted("c", 1)]
    aggregation.add(packed(aggregation, of_norm(2.0**69, 0, 0, 1, 1), Client("c", 1, np.zeros(0, np.float32))), about)
    with pytest.raises(BadInput, match="made inf of a value of second_moment, which it keeps of w"):
        aggregation.advance(of_norm(0, 0, 0, 1, 1), about)
