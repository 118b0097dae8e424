"""Strategies whose server step adds the mean."""

from shared.catalog.strategies import FedAvg
from shared.strategies.strategy import Counted, State, Strategy, Tile


class Averaged(Strategy):
    """x ← x + lr · Δ, the mean weighted by examples or equally (McMahan et al. 2017, algorithm 1)."""

    def __init__(self, spec: FedAvg) -> None:
        self._spec = spec

    def weight(self, update: Counted) -> int:
        return update.examples if self._spec.weights == "examples" else 1

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        return model + self._spec.lr * mean
