"""Strategies that a job file may name: each makes the next model from a round's updates."""

from typing import Annotated, Literal

from pydantic import Field, StrictInt

from shared.job.catalog.choice import Choice, Custom, Strict

Rate = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Faulty = Annotated[StrictInt, Field(ge=0)]


class Averaging(Strict):
    """Base of the strategies that take a mean."""

    lr: Rate = 1.0  # of the server
    weights: Literal["examples", "equal"] = "examples"


class FedAvg(Averaging):
    """The mean of the updates, weighted by examples (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"


class FedAvgM(Averaging):
    """Momentum on the server (Hsu et al. 2019)."""

    name: Literal["fedavgm"] = "fedavgm"
    momentum: Beta = 0.9


class Adaptive(Averaging):
    """Base of the adaptive server optimizers (Reddi et al. 2020)."""

    beta_1: Beta = 0.9
    tau: Rate = 1e-3  # degree of adaptivity: added to √v


class FedAdam(Adaptive):
    """Adam on the server, without bias correction (Reddi et al. 2020, algorithm 2)."""

    name: Literal["fedadam"] = "fedadam"
    lr: Rate = 0.1
    beta_2: Beta = 0.99


class FedYogi(Adaptive):
    """Yogi on the server: its second moment moves by the sign of the change (Reddi et al. 2020, algorithm 2)."""

    name: Literal["fedyogi"] = "fedyogi"
    lr: Rate = 0.01
    beta_2: Beta = 0.99


class FedAdagrad(Adaptive):
    """Adagrad on the server (Reddi et al. 2020, algorithm 2)."""

    name: Literal["fedadagrad"] = "fedadagrad"
    lr: Rate = 0.1
    beta_1: Beta = 0.0


class FedNova(Averaging):
    """Updates normalized by the number of steps that each client took (Wang et al. 2020)."""

    name: Literal["fednova"] = "fednova"


class QFedAvg(Strict):
    """Fairness: clients with a higher loss weigh more, by its q-th power (Li et al. 2019, q-FFL)."""

    name: Literal["qfedavg"] = "qfedavg"
    q: float = Field(default=1.0, ge=0, le=20)
    lipschitz: Rate | None = None  # L; 1 / the clients' learning rate if left out


class Scaffold(Averaging):
    """Control variates against the drift of clients (Karimireddy et al. 2019, option II)."""

    name: Literal["scaffold"] = "scaffold"
    weights: Literal["examples", "equal"] = "equal"  # as in the paper


class FedBuff(Strict):
    """Asynchronous rounds: `buffer_size` updates end one, in whichever round they began (Nguyen et al. 2021)."""

    name: Literal["fedbuff"] = "fedbuff"
    lr: Rate = 1.0
    buffer_size: StrictInt = Field(default=10, ge=1)
    max_staleness: StrictInt = Field(default=5, ge=0, le=1000)  # rounds; an update older than that is refused
    # An update weighs 1 / √(1 + its staleness).


class Median(Strict):
    """The median of each coordinate (Yin et al. 2018)."""

    name: Literal["median"] = "median"
    lr: Rate = 1.0


class TrimmedMean(Strict):
    """The mean of each coordinate without the `beta` smallest and largest shares (Yin et al. 2018)."""

    name: Literal["trimmed_mean"] = "trimmed_mean"
    lr: Rate = 1.0
    beta: float = Field(default=0.2, ge=0, lt=0.5)


class Krum(Strict):
    """The one update that is nearest to its neighbors (Blanchard et al. 2017); needs 2 · byzantine + 3 updates."""

    name: Literal["krum"] = "krum"
    lr: Rate = 1.0
    byzantine: Faulty = 1


class MultiKrum(Strict):
    """The mean of the `keep` updates nearest to their neighbors (Blanchard et al. 2017)."""

    name: Literal["multikrum"] = "multikrum"
    lr: Rate = 1.0
    byzantine: Faulty = 1
    keep: StrictInt | None = Field(default=None, ge=1)  # all but the byzantine ones if left out


class Bulyan(Strict):
    """Repeated Krum, then the mean of the values nearest to the median (El Mhamdi et al. 2018); needs 4 f + 3."""

    name: Literal["bulyan"] = "bulyan"
    lr: Rate = 1.0
    byzantine: Faulty = 1


class NormClip(Averaging):
    """The mean of updates, each clipped to the length `max_norm` (Sun et al. 2019)."""

    name: Literal["norm_clip"] = "norm_clip"
    max_norm: Rate = 1.0


class CustomStrategy(Custom):
    """The user's own server step in NumPy, on the aggregator; see `shared.aggregation.strategies.own`."""


StrategySpec = Annotated[
    FedAvg
    | FedAvgM
    | FedAdam
    | FedYogi
    | FedAdagrad
    | FedNova
    | QFedAvg
    | Scaffold
    | FedBuff
    | Median
    | TrimmedMean
    | Krum
    | MultiKrum
    | Bulyan
    | NormClip
    | CustomStrategy,
    Choice("strategy"),
]

ROBUST = (Median, TrimmedMean, Krum, MultiKrum, Bulyan)  #: the strategies that compare single updates
