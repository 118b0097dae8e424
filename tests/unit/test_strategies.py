"""Strategies do what their papers say, through the exact fold and with float32 between rounds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import pytest

from shared.aggregation import fold
from shared.aggregation.fold import Fold, Grid
from shared.aggregation.strategies.choose import strategy_of
from shared.aggregation.strategies.own import Own
from shared.aggregation.strategies.strategy import Counted, Robust, Strategy
from shared.errors import BadInput, Refused
from shared.job.catalog.strategies import (
    ROBUST,
    CustomStrategy,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedNova,
    FedYogi,
    NormClip,
    QFedAvg,
    Scaffold,
    StrategySpec,
)

SIZE = 40
POPULATION = 20
LR = 0.05  # of the clients
ROUNDS = 6
GRID = Grid(max_abs=64.0, max_weight=200, updates=8)


@pytest.fixture(autouse=True)
def allowed(allow: Callable[..., None]) -> None:
    """The code that the tests of this file name."""
    allow("examples.")


@dataclass
class Trained:
    """What training gave, before any strategy asks for it in a form of its own."""

    client: str
    examples: int
    delta: np.ndarray  # (P,)
    control: np.ndarray  # (P,)
    steps: float
    loss: float
    staleness: int


def trained_rounds() -> list[list[Trained]]:
    """Rounds of different sizes, of clients with different amounts of data, losses, steps and ages."""
    random = np.random.default_rng(5)
    return [
        [
            Trained(
                client=f"client-{client:02d}",
                examples=int(random.integers(1, 200)),
                delta=random.normal(0.3, random.uniform(0.05, 2.0), SIZE).astype(np.float32),
                control=random.normal(0, 1, SIZE).astype(np.float32),
                steps=float(random.integers(1, 30)),
                loss=float(random.uniform(0.2, 3.0)),
                staleness=int(random.integers(0, 5)),
            )
            for client in sorted(random.choice(POPULATION, int(random.integers(3, 9)), replace=False))
        ]
        for _ in range(ROUNDS)
    ]


BEGIN = np.linspace(-1, 1, SIZE, dtype=np.float32)

Sent = Callable[[Trained], np.ndarray]


def sent_whole(one: Trained) -> np.ndarray:
    return one.delta


def normalised(one: Trained) -> np.ndarray:
    return one.delta / np.float32(one.steps)


def raised(q: float) -> Sent:
    return lambda one: one.delta * np.float32(one.loss**q)


def with_control(one: Trained) -> np.ndarray:
    return np.concatenate([one.control, one.delta])


def played(strategy: Strategy, rounds: Sequence[Sequence[Trained]], sent: Sent = sent_whole) -> np.ndarray:
    """The last model, as an aggregator makes it: updates folded on a grid, model and state float32 between rounds."""
    model = BEGIN.copy()
    state = {name: np.full(SIZE, start, np.float32) for name, start in strategy.state.items()}
    for updates in rounds:
        model = one_round(strategy, model, state, updates, sent)
    return model


def one_round(
    strategy: Strategy,
    model: np.ndarray,
    state: dict[str, np.ndarray],
    updates: Sequence[Trained],
    sent: Sent = sent_whole,
) -> np.ndarray:
    running = Fold(SIZE * len(strategy.channels), GRID)
    counted = []
    for one in updates:
        values = sent(one)
        norm = fold.check(values, one.examples, GRID).norm
        metrics = {"local_norm": one.steps, "client_loss": one.loss}
        update = Counted(one.client, one.examples, norm, one.staleness, metrics)
        strategy.check(update)
        running.add(values, strategy.weight(update), strategy.scale(update))
        counted.append(update)
    counted.sort(key=lambda update: update.client)
    following = model.copy()
    running.apply(following, strategy.step, state, factor=strategy.factor(counted), channels=len(strategy.channels))
    return following


# --- the papers' formulas, in float64 ------------------------------------------------------------

Formula = Callable[[Sequence[Sequence[Trained]]], np.ndarray]


def weighted(updates: Sequence[Trained]) -> np.ndarray:
    """Σ nᵢ uᵢ / n."""
    deltas = np.array([one.delta for one in updates], np.float64)
    return np.average(deltas, axis=0, weights=[one.examples for one in updates])


def fedavg(lr: float) -> Formula:
    return lambda rounds: BEGIN + lr * sum(weighted(updates) for updates in rounds)


def equal(rounds: Sequence[Sequence[Trained]]) -> np.ndarray:
    return BEGIN + sum(np.mean([one.delta for one in updates], axis=0, dtype=np.float64) for updates in rounds)


def fedavgm(lr: float, beta: float) -> Formula:
    """Hsu et al. 2019: v ← βv + Δw, w ← w − v, with Δw the other way round."""

    def formula(rounds: Sequence[Sequence[Trained]]) -> np.ndarray:
        w, v = BEGIN.astype(np.float64), np.zeros(SIZE)
        for updates in rounds:
            v = beta * v - weighted(updates)
            w = w - lr * v
        return w

    return formula


def adaptive(second: Callable[[np.ndarray, np.ndarray], np.ndarray], lr: float, beta_1: float, tau: float) -> Formula:
    """Reddi et al. 2020, algorithm 2, lines 10 to 15."""

    def formula(rounds: Sequence[Sequence[Trained]]) -> np.ndarray:
        x, m, v = BEGIN.astype(np.float64), np.zeros(SIZE), np.full(SIZE, tau**2)
        for updates in rounds:
            delta = weighted(updates)
            m = beta_1 * m + (1 - beta_1) * delta
            v = second(v, delta**2)
            x = x + lr * m / (np.sqrt(v) + tau)
        return x

    return formula


def fednova(lr: float) -> Formula:
    """Wang et al. 2020, eq. 8: Δ = τ_eff Σ pᵢ Δᵢ/‖aᵢ‖₁, τ_eff = Σ pᵢ ‖aᵢ‖₁."""

    def formula(rounds: Sequence[Sequence[Trained]]) -> np.ndarray:
        x = BEGIN.astype(np.float64)
        for updates in rounds:
            p = np.array([one.examples for one in updates]) / sum(one.examples for one in updates)
            effective = sum(share * one.steps for share, one in zip(p, updates, strict=True))
            x = x + lr * effective * sum(
                share * one.delta.astype(np.float64) / one.steps for share, one in zip(p, updates, strict=True)
            )
        return x

    return formula


def qfedavg(q: float, lipschitz: float) -> Formula:
    """Li et al. 2019, algorithm 2, as it is printed there: Δw = L(w − w̄), Δ = F^q Δw, h = qF^(q−1)‖Δw‖² + LF^q."""

    def formula(rounds: Sequence[Sequence[Trained]]) -> np.ndarray:
        w = BEGIN.astype(np.float64)
        for updates in rounds:
            above, below = np.zeros(SIZE), 0.0
            for one in updates:
                gradient = lipschitz * (w - (w + one.delta.astype(np.float64)))
                above += one.loss**q * gradient
                below += q * one.loss ** (q - 1) * float(gradient @ gradient) + lipschitz * one.loss**q
            w = w - above / below
        return w

    return formula


def norm_clip(bound: float) -> Formula:
    """Sun et al. 2019: Σ pᵢ Δᵢ / max(1, ‖Δᵢ‖/M)."""

    def formula(rounds: Sequence[Sequence[Trained]]) -> np.ndarray:
        w = BEGIN.astype(np.float64)
        for updates in rounds:
            total = sum(one.examples for one in updates)
            for one in updates:
                delta = one.delta.astype(np.float64)
                w = w + one.examples / total * delta / max(1.0, float(np.linalg.norm(delta)) / bound)
        return w

    return formula


def fedbuff(lr: float) -> Formula:
    """Nguyen et al. 2021: w ← w + η/K Σ Δᵢ/√(1 + τᵢ)."""

    def formula(rounds: Sequence[Sequence[Trained]]) -> np.ndarray:
        w = BEGIN.astype(np.float64)
        for updates in rounds:
            buffered = sum(one.delta.astype(np.float64) / math.sqrt(1 + one.staleness) for one in updates)
            w = w + lr * buffered / len(updates)
        return w

    return formula


CASES: dict[str, tuple[StrategySpec, Formula, Sent]] = {
    "fedavg": (FedAvg(lr=0.7), fedavg(0.7), sent_whole),
    "fedavg, equal weights": (FedAvg(weights="equal"), equal, sent_whole),
    "fedavgm": (FedAvgM(lr=0.5, momentum=0.8), fedavgm(0.5, 0.8), sent_whole),
    "fedadam": (
        FedAdam(lr=0.1, beta_1=0.9, beta_2=0.95, tau=1e-2),
        adaptive(lambda v, square: 0.95 * v + 0.05 * square, 0.1, 0.9, 1e-2),
        sent_whole,
    ),
    "fedyogi": (
        FedYogi(lr=0.1, beta_1=0.9, beta_2=0.95, tau=0.5),  # v starts in the middle of Δ², so that it goes both ways
        adaptive(lambda v, square: v - 0.05 * square * np.sign(v - square), 0.1, 0.9, 0.5),
        sent_whole,
    ),
    "fedadagrad": (
        FedAdagrad(lr=0.1, beta_1=0.3, tau=1e-3),
        adaptive(lambda v, square: v + square, 0.1, 0.3, 1e-3),
        sent_whole,
    ),
    "fednova": (FedNova(lr=0.9), fednova(0.9), normalised),
    "qfedavg": (QFedAvg(q=1.5, lipschitz=3.0), qfedavg(1.5, 3.0), raised(1.5)),
    "qfedavg, below 1": (QFedAvg(q=0.3), qfedavg(0.3, 1 / LR), raised(0.3)),
    "norm_clip": (NormClip(max_norm=3.0), norm_clip(3.0), sent_whole),
    "fedbuff": (FedBuff(lr=0.4, buffer_size=8), fedbuff(0.4), sent_whole),
}


@pytest.mark.parametrize("case", CASES)
def test_a_strategy_is_its_papers_formula(case: str) -> None:
    """After six rounds of unequal clients it is within 1e-6 of the formula in float64."""
    spec, formula, sent = CASES[case]
    rounds = trained_rounds()
    found, expected = played(strategy_of(spec, POPULATION, LR), rounds, sent), formula(rounds)

    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("weights_of", ["equal", "examples"])
def test_scaffold_moves_the_model_and_the_control_variate(weights_of: Literal["equal", "examples"]) -> None:
    """Karimireddy et al. 2019, algorithm 1, lines 16 and 17, and the same with both means weighted by examples."""
    strategy = strategy_of(Scaffold(lr=0.6, weights=weights_of), POPULATION)
    x, c = BEGIN.astype(np.float64), np.zeros(SIZE)
    model, state = BEGIN, {"control": np.zeros(SIZE, np.float32)}
    for updates in trained_rounds():
        share = np.array([one.examples if weights_of == "examples" else 1 for one in updates], np.float64)
        share /= share.sum()
        x = x + 0.6 * share @ np.stack([one.delta for one in updates]).astype(np.float64)
        c = c + len(updates) / POPULATION * share @ np.stack([one.control for one in updates]).astype(np.float64)
        model = one_round(strategy, model, state, updates, with_control)

    assert np.linalg.norm(model - x) <= 1e-6 * np.linalg.norm(x)
    assert np.linalg.norm(state["control"] - c) <= 1e-6 * np.linalg.norm(c)


@pytest.mark.parametrize("spec", [FedBuff(), NormClip(max_norm=2.0), Scaffold(), FedAdam(), FedNova(), QFedAvg()])
def test_arrival_order_changes_no_bit(spec: StrategySpec) -> None:
    """Whatever is done to an update before it is folded, and to the mean after."""
    sent = with_control if isinstance(spec, Scaffold) else sent_whole
    rounds = trained_rounds()
    backwards = [list(reversed(updates)) for updates in rounds]
    strategy = strategy_of(spec, POPULATION)

    assert played(strategy, rounds, sent).tobytes() == played(strategy, backwards, sent).tobytes()


@pytest.mark.parametrize("entry", get_args(get_args(StrategySpec)[0]))
def test_every_entry_of_the_catalog_has_its_strategy(entry: type) -> None:
    """The robust ones compare single updates and all others are folded; channels and broadcast are as they travel."""
    name = {"name": "examples.own_strategy:Nesterov"} if entry is CustomStrategy else {}
    strategy = strategy_of(entry(**name), POPULATION)

    assert isinstance(strategy, Robust) == (entry in ROBUST)
    assert strategy.channels == tuple(sorted(strategy.channels))
    assert not strategy.broadcast or len(strategy.state) == 1


# --- fednova and qfedavg need what clients measured -----------------------------------------------


@pytest.mark.parametrize(
    ("spec", "metric", "value"),
    [
        (FedNova(), "local_norm", None),
        (FedNova(), "local_norm", 0.0),
        (FedNova(), "local_norm", -3.0),
        (FedNova(), "local_norm", math.inf),
        (QFedAvg(), "client_loss", None),
        (QFedAvg(), "client_loss", -0.1),
        (QFedAvg(), "client_loss", math.nan),
        (QFedAvg(q=20), "client_loss", 1e3),  # 1e60 is no float32
    ],
)
def test_an_update_without_what_its_strategy_needs_is_refused(
    spec: StrategySpec, metric: str, value: float | None
) -> None:
    """The reason names the metric."""
    metrics = {} if value is None else {metric: value}

    with pytest.raises(Refused, match=metric):
        strategy_of(spec, POPULATION).check(Counted("a", 1, metrics=metrics))


@pytest.mark.parametrize("q", [0, 0.5, 20])
def test_the_largest_loss_that_is_let_in_can_be_computed_with(q: float) -> None:
    """Its power is finite, whatever q is."""
    strategy = strategy_of(QFedAvg(q=q), POPULATION)
    update = Counted("a", 1, norm=1.0, metrics={"client_loss": 80.0})
    strategy.check(update)

    assert math.isfinite(strategy.factor([update]))


def test_qfedavg_with_q_0_is_the_equal_mean() -> None:
    """Li et al. 2019: q = 0 is FedAvg, even where a client's loss is 0."""
    rounds = trained_rounds()
    rounds[0][0].loss = 0.0
    found = played(strategy_of(QFedAvg(q=0), POPULATION), rounds)

    assert np.linalg.norm(found - equal(rounds)) <= 1e-6 * np.linalg.norm(found)


def test_qfedavg_passes_over_a_client_without_a_loss() -> None:
    """It has sent zeros; the others' step is as it would be without it."""
    (updates, *_) = trained_rounds()
    done = Trained("client-99", 10, np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32), 1.0, 0.0, 0)
    strategy = strategy_of(QFedAvg(q=2.0), POPULATION)
    with_it = played(strategy, [[*updates, done]], raised(2.0))

    np.testing.assert_allclose(with_it, played(strategy, [updates], raised(2.0)), rtol=1e-6)
    assert played(strategy, [[done]], raised(2.0)).tobytes() == BEGIN.tobytes()


def test_norm_clip_leaves_short_updates_as_they_are() -> None:
    """The scale is 1 up to the bound, and the bound over the norm beyond."""
    strategy = strategy_of(NormClip(max_norm=2.0), POPULATION)

    assert [strategy.scale(Counted("a", 1, norm=norm)) for norm in (0.0, 2.0, 8.0)] == [1.0, 1.0, 0.25]


# --- the user's own ------------------------------------------------------------------------------


def test_the_example_is_nesterov_momentum() -> None:
    """By its name in a job file, with its arguments, through the fold."""
    spec = CustomStrategy(name="examples.own_strategy:Nesterov", args={"lr": 0.5, "momentum": 0.8})
    rounds = trained_rounds()
    x, m = BEGIN.astype(np.float64), np.zeros(SIZE)
    for updates in rounds:
        m = 0.8 * m + weighted(updates)
        x = x + 0.5 * (weighted(updates) + 0.8 * m)

    assert np.linalg.norm(played(strategy_of(spec, POPULATION), rounds) - x) <= 1e-6 * np.linalg.norm(x)


def plain(model: np.ndarray, mean: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    return model + mean


def test_all_that_an_own_strategy_may_define_is_used() -> None:
    """State with a start, weight, scale and factor, as a strategy of the catalog has them."""

    def step(model: np.ndarray, mean: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
        state["rounds"] += 1  # in place; the example puts a new array
        return model + mean / state["rounds"]

    own = Own(
        SimpleNamespace(
            step=step,
            state={"rounds": 1},
            weight=lambda update: update.examples // 2 + 1,
            scale=lambda _: 0.5,
            factor=len,
        ),
        "own",
    )
    rounds = trained_rounds()
    x = BEGIN.astype(np.float64)
    for number, updates in enumerate(rounds, 2):
        deltas = np.array([one.delta for one in updates], np.float64)
        mean = np.average(deltas, axis=0, weights=[one.examples // 2 + 1 for one in updates])
        x += mean * 0.5 * len(updates) / number

    assert np.linalg.norm(played(own, rounds) - x) <= 1e-6 * np.linalg.norm(x)


def test_names_alone_are_state_that_is_zero_at_first() -> None:
    """As a tuple or a list of them."""
    assert Own(SimpleNamespace(step=plain, state=["a", "b"]), "own").state == {"a": 0.0, "b": 0.0}


def after(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[..., np.ndarray]:
    """A step that does something to its state."""

    def step(model: np.ndarray, mean: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
        change(state)
        return model

    return step


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({}, "has no step"),
        ({"step": plain, "state": "momentum"}, "names, or a mapping"),
        ({"step": plain, "state": ["a/b"]}, "names, or a mapping"),
        ({"step": plain, "state": {"a": math.nan}}, "names, or a mapping"),
        ({"step": plain, "state": 3}, "names, or a mapping"),
        ({"step": plain, "weight": lambda _: 0}, "weight gave 0 for client-"),
        ({"step": plain, "weight": lambda _: 1.5}, "weight gave 1.5"),
        ({"step": plain, "scale": lambda _: 1.5}, "scale gave 1.5"),
        ({"step": plain, "scale": lambda _: "x"}, "scale gave 'x'"),
        ({"step": plain, "factor": lambda _: math.inf}, "factor gave inf"),
        ({"step": plain, "factor": lambda _: 1 / 0}, "factor raised ZeroDivisionError: division by zero"),
        ({"step": lambda *_: None}, "step made NoneType of the model"),
        ({"step": lambda model, *_: model[:-1]}, r"step made float64 \[39\] of the model"),
        ({"step": lambda model, *_: model * math.nan}, "NaN, Inf or what is beyond float32 of the model"),
        ({"step": lambda model, *_: model * 1e300}, "NaN, Inf or what is beyond float32 of the model"),
        ({"step": lambda model: model}, "step raised TypeError"),
        ({"step": after(lambda state: state.update(b=state["a"])), "state": ["a"]}, "left the state"),
        ({"step": after(lambda state: state.update(a=0.0)), "state": ["a"]}, "step made float of the state a"),
    ],
)
def test_what_is_wrong_with_an_own_strategy_is_said_in_a_sentence(made: dict[str, Any], words: str) -> None:
    """It names the strategy and what it gave; nothing of it reaches the model."""
    with pytest.raises(BadInput, match=f"^mine:? .*{words}"):
        played(Own(SimpleNamespace(**made), "mine"), trained_rounds())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "examples.nowhere:Nesterov"}, "examples.nowhere"),
        ({"name": "examples.own_strategy:Nowhere"}, "has no Nowhere"),
        ({"name": "examples.own_strategy:Nesterov", "args": {"beta": 1}}, "raised TypeError: .*beta"),
    ],
)
def test_an_own_strategy_that_cannot_be_had_is_a_mistake_in_the_job_file(spec: dict[str, Any], words: str) -> None:
    """The sentence begins with strategy.name."""
    with pytest.raises(BadInput, match=f"^strategy.name: .*{words}"):
        strategy_of(CustomStrategy(**spec), POPULATION)
