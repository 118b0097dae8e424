"""From what a job file names to the strategy that does it."""

from shared.catalog.strategies import FedAvg, StrategySpec
from shared.strategies.averaging import Averaged
from shared.strategies.strategy import Strategy


def strategy_of(spec: StrategySpec, population: int) -> Strategy:
    """The strategy of a job that has so many clients; `BadInput` where the user's own cannot be had."""
    match spec:
        case FedAvg():
            return Averaged(spec)
    raise NotImplementedError(f"{spec.name} for {population} clients")
