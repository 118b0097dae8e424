"""When a round is done, how its model is judged, and the bounds that updates are held to."""

from typing import Literal

from pydantic import Field, StrictInt

from shared.job.catalog.choice import Seconds, Strict

MEASURED = ("loss", "accuracy")  #: of a model, on the held-out test set
#: Of it on what the clients hold out: the means over examples, over clients, and over the worst tenth of the clients.
OF_CLIENTS = (
    *(f"local_{name}" for name in MEASURED),
    *(f"local_{name}_mean" for name in MEASURED),
    "local_accuracy_worst_decile",
)


class RoundsSpec(Strict):
    """When a round is done. `target` and `minimum` default to every client that was meant to answer."""

    count: StrictInt = Field(ge=1, le=100_000)
    target: StrictInt | None = Field(default=None, ge=1)
    minimum: StrictInt | None = Field(default=None, ge=1)
    deadline: Seconds = 60.0
    below_minimum: Literal["fail", "retry"] = "fail"
    attempts: StrictInt = Field(default=3, ge=1, le=100)  # of one round, where below_minimum is retry
    wait: Seconds = 3600.0  # for enough trainers to be alive; then the job fails
    clients_per_task: StrictInt = Field(default=1, ge=1, le=250)  # trained one after the other, their updates folded


class LimitsSpec(Strict):
    """Bounds that every update is held to; the grid of the exact fold follows from the first two."""

    max_abs: float = Field(default=256.0, gt=0, le=2**20)
    max_examples: StrictInt = Field(default=2**20, ge=1, le=2**28)
    max_norm: float | None = Field(default=None, gt=0)
    max_model_mb: StrictInt = Field(default=1024, ge=1, le=2**20)


class StopSpec(Strict):
    """Ends a job before its last round: at a `target`, or on a plateau of `patience` evaluations."""

    metric: str = Field(default="accuracy", max_length=64)
    mode: Literal["max", "min"] = "max"  # whether more is better
    target: float | None = None
    patience: StrictInt | None = Field(default=None, ge=1)  # evaluations in a row without an improvement
    min_delta: float = Field(default=0.0, ge=0)  # less than that is no improvement


class EvaluateSpec(Strict):
    """Evaluation of the model after every `every`-th round and the last; 0 turns it off."""

    every: StrictInt = Field(default=1, ge=0)
    deadline: Seconds = 60.0
    where: Literal["server", "clients", "both"] = "server"  # the held-out test set; the clients' own held-out examples
    clients: StrictInt | None = Field(default=None, ge=1)  # how many of a pool's evaluate; all where left out
    stop: StopSpec | None = None

    @property
    def measured(self) -> tuple[str, ...]:
        """The figures that an evaluation gives, by name."""
        return (*(MEASURED if self.where != "clients" else ()), *(OF_CLIENTS if self.where != "server" else ()))
