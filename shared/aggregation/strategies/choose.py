"""From what a job file names to the strategy that does it."""

from typing import assert_never

from shared.aggregation.strategies import adaptive, averaging, robust
from shared.aggregation.strategies.bulyan import Bulyan
from shared.aggregation.strategies.krum import Krum, MultiKrum
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
            return adaptive.Momentum(spec)
        case catalog.FedAdam():
            return adaptive.Adam(spec)
        case catalog.FedYogi():
            return adaptive.Yogi(spec)
        case catalog.FedAdagrad():
            return adaptive.Adagrad(spec)
        case catalog.Median():
            return robust.Median(spec.lr)
        case catalog.TrimmedMean():
            return robust.TrimmedMean(spec)
        case catalog.Krum():
            return Krum(spec)
        case catalog.MultiKrum():
            return MultiKrum(spec)
        case catalog.Bulyan():
            return Bulyan(spec)
        case catalog.CustomStrategy():
            return own(spec, population)
    assert_never(spec)
