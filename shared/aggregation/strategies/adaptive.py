"""Server optimizers: the mean of the updates, Δ, is taken for a gradient (of the opposite sign).

No bias correction, as in the papers. The state is float32 between rounds, which moves a step by some 1e-7 of itself.
"""

import numpy as np

from shared.aggregation.strategies.averaging import Averaged
from shared.aggregation.strategies.strategy import State, Tile
from shared.job.catalog.strategies import Adaptive, FedAdagrad, FedAdam, FedAvgM, FedYogi

MOMENTUM = "momentum"
FIRST = "first_moment"
SECOND = "second_moment"


class Momentum(Averaged):
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


class Adam(Adapted):
    """v ← β₂·v + (1 − β₂)·Δ²."""

    def __init__(self, spec: FedAdam) -> None:
        super().__init__(spec)
        self._beta_2 = spec.beta_2

    def _move(self, second: Tile, square: Tile) -> None:
        second *= self._beta_2
        second += (1 - self._beta_2) * square


class Yogi(Adapted):
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²)."""

    def __init__(self, spec: FedYogi) -> None:
        super().__init__(spec)
        self._beta_2 = spec.beta_2

    def _move(self, second: Tile, square: Tile) -> None:
        second -= (1 - self._beta_2) * square * np.sign(second - square)


class Adagrad(Adapted):
    """v ← v + Δ²."""

    def __init__(self, spec: FedAdagrad) -> None:
        super().__init__(spec)

    def _move(self, second: Tile, square: Tile) -> None:
        second += square
