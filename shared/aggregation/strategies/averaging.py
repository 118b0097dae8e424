"""Strategies whose server step adds the mean; they differ in what is averaged, and how it weighs.

Server optimizers take the mean of the updates, Δ, for a gradient of the opposite sign. They make no bias correction, as
in the papers. Their state is float32 between rounds, which moves a step by some 1e-7 of itself.
"""

import math
from collections.abc import Sequence

import numpy as np

from shared.aggregation.strategies.strategy import CONTROL, DELTA, Counted, State, Strategy, Tile
from shared.errors import BadInput, Refused
from shared.job.catalog.strategies import (
    Adaptive,
    Averaging,
    FedAdagrad,
    FedAdam,
    FedAvgM,
    FedBuff,
    FedYogi,
    NormClip,
    QFedAvg,
    Scaffold,
)

TAU = "local_norm"  #: the metric of a client that says what it divided its update by, ‖a‖₁ of FedNova
LOSS = "client_loss"  #: the metric that says its loss before training

_STEPS = 2.0**32  # more than any client takes
_CLEAR = 8.0  # how many times as long as its rounding an update is, for an error of some 7 % at most
_TINY, _HUGE = 2.0**-126, 2.0**127  # what a float32 update can be multiplied by and still be one


class Averaged(Strategy):
    """x ← x + lr · Δ, the mean weighted by examples or equally (McMahan et al. 2017, algorithm 1)."""

    def __init__(self, spec: Averaging) -> None:
        self._spec = spec

    def weight(self, update: Counted) -> int:
        return update.examples if self._spec.weights == "examples" else 1

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        return model + self._spec.lr * mean


class Normalised(Averaged):
    """x ← x + lr · (Σ pᵢ‖aᵢ‖₁) · Σ pᵢdᵢ with dᵢ = uᵢ/‖aᵢ‖₁, which clients send (Wang et al. 2020, eq. 8 and 9).

    ‖aᵢ‖₁, in steps, is how often client i's gradients went into its update: its number of steps for plain SGD, more
    with momentum. pᵢ is its share of the weights.
    """

    def check(self, update: Counted) -> None:
        _metric(update, TAU, "fednova", 1 / _STEPS, _STEPS)

    def factor(self, updates: Sequence[Counted]) -> float:
        weights = [self.weight(update) for update in updates]
        steps = (weight * update.metrics[TAU] for weight, update in zip(weights, updates, strict=True))
        return math.fsum(steps) / sum(weights)


class Fair(Strategy):
    """q-FedAvg (Li et al. 2019, algorithm 2): x ← x − Σ Fᵢ^q·Δwᵢ / Σ hᵢ, hᵢ = q·Fᵢ^(q−1)·‖Δwᵢ‖² + L·Fᵢ^q.

    Fᵢ is client i's loss at x, Δwᵢ = L·(x − xᵢ) = −L·uᵢ, and it sends Fᵢ^q·uᵢ, of norm nᵢ. With L divided out:

        x ← x + Σ Fᵢ^q·uᵢ / Σ hᵢ/L,    hᵢ/L = Fᵢ^q · (1 + q·L·‖uᵢ‖²/Fᵢ),    ‖uᵢ‖ = nᵢ/Fᵢ^q

    The sum above is K times the equal mean of what was sent, so `factor` is K / Σ hᵢ/L. A client whose loss is 0 has
    no gradient and nothing to say: it counts neither above nor below, and where all are like that the model stays.
    """

    def __init__(self, spec: QFedAvg, lr: float) -> None:
        self._q = spec.q
        self._lipschitz = spec.lipschitz or 1 / lr
        self._most = _HUGE ** (1 / max(spec.q, 1.0))  # the largest loss whose q-th power is a float32

    def check(self, update: Counted) -> None:
        _metric(update, LOSS, "qfedavg", 0.0, self._most)

    def weight(self, update: Counted) -> int:
        return 1

    def check_fold(self, updates: Sequence[Counted], rounding: float) -> None:
        """Small losses, to a high power, are below what the fold resolves: the model would stand still, or wander."""
        least = _CLEAR * rounding
        if max(update.norm for update in updates) >= least:
            return
        for update in updates:
            loss = update.metrics[LOSS]
            weight = math.pow(loss, self._q)
            if loss > 0 and (weight < _TINY or update.norm / weight >= least):
                raise BadInput(
                    f"strategy.q is {self._q:g}, and losses such as {loss:.4g} of {update.client} to that power are "
                    "lost in the sum's rounding; a lower strategy.q, limits.max_abs or limits.max_examples may help"
                )

    def factor(self, updates: Sequence[Counted]) -> float:
        total = math.fsum(map(self._curvature, updates))
        return len(updates) / total if total else 0.0

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        return model + mean

    def _curvature(self, update: Counted) -> float:
        """hᵢ/L."""
        loss = update.metrics[LOSS]
        weight = math.pow(loss, self._q)
        if weight < _TINY:
            return 0.0
        length = update.norm / weight
        return weight * (1 + (self._q * self._lipschitz * length * (length / loss) if self._q else 0.0))


class Clipped(Averaged):
    """The mean of uᵢ · min(1, max_norm/‖uᵢ‖) (Sun et al. 2019, section 4, without its noise)."""

    def __init__(self, spec: NormClip) -> None:
        super().__init__(spec)
        self._max_norm = spec.max_norm

    def scale(self, update: Counted) -> float:
        return self._max_norm / update.norm if update.norm > self._max_norm else 1.0


class Buffered(Strategy):
    """x ← x + lr · (1/K) Σ uᵢ/√(1 + τᵢ), τᵢ the staleness in rounds (Nguyen et al. 2021, algorithm 1).

    K is how many updates the buffer holds when the round closes.
    """

    def __init__(self, spec: FedBuff) -> None:
        self._lr = spec.lr

    def weight(self, update: Counted) -> int:
        return 1

    def scale(self, update: Counted) -> float:
        return 1 / math.sqrt(1 + update.staleness)

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        return model + self._lr * mean


class Controlled(Strategy):
    """SCAFFOLD (Karimireddy et al. 2019, algorithm 1): x ← x + lr · mean Δyᵢ and c ← c + |S|/N · mean Δcᵢ.

    |S| clients of N sent what training changed, Δyᵢ, and how their control variates changed, Δcᵢ. c goes to every
    client with the model. Both means are of equal weights, as in the paper, or weighted by examples, where what is to
    be minimised is the loss over all examples.
    """

    channels = (CONTROL, DELTA)
    broadcast = True

    def __init__(self, spec: Scaffold, population: int) -> None:
        self._lr, self._weights = spec.lr, spec.weights
        self._population = population
        self.state = {CONTROL: 0.0}

    def weight(self, update: Counted) -> int:
        return update.examples if self._weights == "examples" else 1

    def factor(self, updates: Sequence[Counted]) -> tuple[float, ...]:
        return len(updates) / self._population, 1.0

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        delta: Tile = mean[1]
        state[CONTROL][...] += mean[0]
        return model + self._lr * delta


def _metric(update: Counted, name: str, strategy: str, least: float, most: float) -> None:
    """`Refused` where a metric is missing or out of bounds."""
    value = update.metrics.get(name, math.nan)
    if not least <= value <= most:  # nor is NaN
        raise Refused(f"its metric {name} is {value:g}; strategy {strategy} needs {least:g} to {most:g}")


MOMENTUM = "momentum"
FIRST = "first_moment"
SECOND = "second_moment"


class MomentumStrategy(Averaged):
    """m ← momentum · m + Δ, x ← x + lr · m (Hsu et al. 2019, section 4.3, FedAvgM)."""

    def __init__(self, spec: FedAvgM) -> None:
        super().__init__(spec)
        self._momentum = spec.momentum
        self.state = {MOMENTUM: 0.0}

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        momentum = state[MOMENTUM]
        momentum *= self._momentum
        momentum += mean
        return model + self._spec.lr * momentum


class Adapted(Averaged):
    """m ← β₁·m + (1 − β₁)·Δ, then v, then x ← x + lr · m/(√v + τ) (Reddi et al. 2020, algorithm 2).

    m starts at 0 and v at τ², the least that the algorithm allows. Subclasses say how v moves.
    """

    def __init__(self, spec: Adaptive) -> None:
        super().__init__(spec)
        self._beta_1, self._tau = spec.beta_1, spec.tau
        self.state = {FIRST: 0.0, SECOND: spec.tau**2}

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        first, second = state[FIRST], state[SECOND]
        first *= self._beta_1
        first += (1 - self._beta_1) * mean
        self._move(second, np.square(mean))
        return model + self._spec.lr * first / (np.sqrt(second) + self._tau)

    def _move(self, second: Tile, square: Tile) -> None:
        """Changes v, in place, by Δ²."""
        raise NotImplementedError


class AdamStrategy(Adapted):
    """v ← β₂·v + (1 − β₂)·Δ²."""

    def __init__(self, spec: FedAdam) -> None:
        super().__init__(spec)
        self._beta_2 = spec.beta_2

    def _move(self, second: Tile, square: Tile) -> None:
        second *= self._beta_2
        second += (1 - self._beta_2) * square


class YogiStrategy(Adapted):
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²)."""

    def __init__(self, spec: FedYogi) -> None:
        super().__init__(spec)
        self._beta_2 = spec.beta_2

    def _move(self, second: Tile, square: Tile) -> None:
        second -= (1 - self._beta_2) * square * np.sign(second - square)


class AdagradStrategy(Adapted):
    """v ← v + Δ²."""

    def __init__(self, spec: FedAdagrad) -> None:
        super().__init__(spec)

    def _move(self, second: Tile, square: Tile) -> None:
        second += square
