"""From what a job file names to the strategy that does it."""

from typing import assert_never

from shared.aggregation.strategies import averaging, robust
from shared.aggregation.strategies.distances import BulyanStrategy, KrumStrategy, MultiKrumStrategy
from shared.aggregation.strategies.own import own
from shared.aggregation.strategies.strategy import Strategy
from shared.job.catalog import strategies as catalog


def strategy_of(spec: catalog.StrategySpec, population: int, lr: float = 1.0) -> Strategy:  # noqa: C901, PLR0911, PLR0912
    """The strategy of a job of so many clients, whose learning rate is `lr`; `BadInput` where it is not to be had."""
    match spec:
        case catalog.FedAvg():
            return averaging.Averaged(spec)
        case catalog.FedNova():
            return averaging.Normalised(spec)
        case catalog.QFedAvg():
            return averaging.Fair(spec, lr)
        case catalog.NormClip():
            return averaging.Clipped(spec)
        case catalog.FedBuff():
            return averaging.Buffered(spec)
        case catalog.Scaffold():
            return averaging.Controlled(spec, population)
        case catalog.FedAvgM():
            return averaging.MomentumStrategy(spec)
        case catalog.FedAdam():
            return averaging.AdamStrategy(spec)
        case catalog.FedYogi():
            return averaging.YogiStrategy(spec)
        case catalog.FedAdagrad():
            return averaging.AdagradStrategy(spec)
        case catalog.Median():
            return robust.MedianStrategy(spec.lr)
        case catalog.TrimmedMean():
            return robust.TrimmedMeanStrategy(spec)
        case catalog.Krum():
            return KrumStrategy(spec)
        case catalog.MultiKrum():
            return MultiKrumStrategy(spec)
        case catalog.Bulyan():
            return BulyanStrategy(spec)
        case catalog.CustomStrategy():
            return own(spec, population)
    assert_never(spec)
