"""Local training of a client: optimizers, schedules over the rounds, and the parts of a model that stay with it."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, StrictInt, Tag

from shared.job.catalog.choice import Choice, Custom, Strict

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]

# --- optimizers -----------------------------------------------------------------------------


class Sgd(Strict):
    """Stochastic gradient descent, with classical momentum."""

    name: Literal["sgd"] = "sgd"
    lr: Rate = 0.05
    momentum: Beta = 0.0
    weight_decay: Decay = 0.0


class Adam(Strict):
    """Adam (Kingma and Ba 2014); its moments start at zero in each round."""

    name: Literal["adam"] = "adam"
    lr: Rate = 0.001
    beta_1: Beta = 0.9
    beta_2: Beta = 0.999
    eps: Rate = 1e-8
    weight_decay: Decay = 0.0


class AdamW(Strict):
    """Adam with weight decay that is separate from the gradient (Loshchilov and Hutter 2017)."""

    name: Literal["adamw"] = "adamw"
    lr: Rate = 0.001
    beta_1: Beta = 0.9
    beta_2: Beta = 0.999
    eps: Rate = 1e-8
    weight_decay: Decay = 0.01


OptimizerSpec = Annotated[Sgd | Adam | AdamW, Choice("train.optimizer", default="sgd")]

# --- schedules ------------------------------------------------------------------------------


class Schedule(Strict):
    """Learning rate from round to round: a warm-up, then the schedule."""

    warmup: StrictInt = Field(default=0, ge=0)  # first rounds, with a linear rise to the optimizer's rate


class Constant(Schedule):
    """The same learning rate in every round."""

    name: Literal["constant"] = "constant"


class StepDecay(Schedule):
    """Learning rate × gamma after every `every` rounds, but never below `floor` (FLTK's MinCapableStepLR)."""

    name: Literal["step"] = "step"
    every: StrictInt = Field(default=50, ge=1)
    gamma: float = Field(default=0.5, gt=0, le=1)
    floor: float = Field(default=1e-10, ge=0)


class Exponential(Schedule):
    """Learning rate × gamma after each round, but never below `floor`."""

    name: Literal["exponential"] = "exponential"
    gamma: float = Field(default=0.98, gt=0, le=1)
    floor: float = Field(default=5e-5, ge=0)


class Cosine(Schedule):
    """Half a cosine from the optimizer's learning rate, at the end of the warm-up, to `floor` in the last round."""

    name: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0)


ScheduleSpec = Annotated[Constant | StepDecay | Exponential | Cosine, Choice("train.schedule")]

# --- training -------------------------------------------------------------------------------


class FedProx(Strict):
    """Adds mu/2 · ‖w − w_round‖² to the loss (Li et al. 2018), so that a client stays near the model it received."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.01, gt=0)


class Kept(Strict):
    """Parts of a model that stay with a client."""

    #: Batch norm's running statistics: averaged like weights, kept by each client, or not taken from clients at all.
    buffers: Literal["averaged", "local", "left_out"] = "averaged"
    #: Layers that each client keeps: patterns of tensor names such as "head.*" (FedPer, Arivazhagan et al. 2019), or
    #: batch_norm for all batch norm layers (FedBN, Li et al. 2021).
    personal: tuple[str, ...] = ()


class TrainSpec(Kept):
    """The given number of `epochs`, or of `steps` on one batch each, of an optimizer on cross-entropy."""

    epochs: StrictInt = Field(default=1, ge=1, le=10_000)
    steps: StrictInt | None = Field(default=None, ge=1, le=10_000_000)  # batches, instead of epochs
    batch_size: StrictInt = Field(default=32, ge=1)
    optimizer: OptimizerSpec = Sgd()
    schedule: ScheduleSpec = Constant()
    fedprox: FedProx | None = None
    clip_norm: float | None = Field(default=None, gt=0)  # L2, of each batch's gradient with FedProx's term
    precision: Literal["full", "mixed"] = "full"  # mixed: bfloat16 or float16 if the device is CUDA


class CustomTrain(Custom, Kept):
    """The user's own local step; see `services.trainer.training.custom_step`."""


def _tag(value: object) -> str:
    """The tag of a `train` section: `custom` if it has a name, for the built-in step has none."""
    return "custom" if (isinstance(value, Mapping) and "name" in value) or isinstance(value, Custom) else "builtin"


TrainChoice = Annotated[
    Annotated[TrainSpec, Tag("builtin")] | Annotated[CustomTrain, Tag("custom")], Discriminator(_tag)
]
