"""The end of a round, the evaluation of its model, and the bounds that updates are held to."""

from typing import Literal

from pydantic import Field, StrictInt

from shared.job.catalog.choice import Seconds, Strict

MEASURED = ("loss", "accuracy")  #: figures of a model on the held-out test set
#: Its figures on the examples that clients hold out: means over examples, over clients, and over their worst tenth.
OF_CLIENTS = (
    *(f"local_{name}" for name in MEASURED),
    *(f"local_{name}_mean" for name in MEASURED),
    "local_accuracy_worst_decile",
)


class RoundsSpec(Strict):
    """Number and end of rounds; `target` and `minimum` default to every client that is expected to answer."""

    count: StrictInt = Field(ge=1, le=100_000)
    target: StrictInt | None = Field(default=None, ge=1)
    minimum: StrictInt | None = Field(default=None, ge=1)
    deadline: Seconds = 60.0
    below_minimum: Literal["fail", "retry"] = "fail"
    attempts: StrictInt = Field(default=3, ge=1, le=100)  # of one round, if below_minimum is retry
    wait: Seconds = 3600.0  # the longest wait for enough live trainers; then the job fails
    clients_per_task: StrictInt = Field(default=1, ge=1, le=250)  # trained one after the other, their updates folded


class LimitsSpec(Strict):
    """Bounds that every update is held to; the grid of the exact fold follows from the first two."""

    max_abs: float = Field(default=256.0, gt=0, le=2**20)
    max_examples: StrictInt = Field(default=2**20, ge=1, le=2**28)
    max_norm: float | None = Field(default=None, gt=0)
    max_model_mb: StrictInt = Field(default=1024, ge=1, le=2**20)


class StopSpec(Strict):
    """Early end of a job, before its last round: at a `target`, or on a plateau of `patience` evaluations."""

    metric: str = Field(default="accuracy", max_length=64)
    mode: Literal["max", "min"] = "max"  # whether more is better
    target: float | None = None
    patience: StrictInt | None = Field(default=None, ge=1)  # evaluations in a row without an improvement
    min_delta: float = Field(default=0.0, ge=0)  # a smaller change is no improvement


class EvaluateSpec(Strict):
    """Evaluation of the model after every `every`-th round and the last; 0 turns it off."""

    every: StrictInt = Field(default=1, ge=0)
    deadline: Seconds = 60.0
    where: Literal["server", "clients", "both"] = "server"  # the held-out test set, or the clients' held-out examples
    clients: StrictInt | None = Field(default=None, ge=1)  # number of a pool's that evaluate; all if left out
    stop: StopSpec | None = None

    @property
    def measured(self) -> tuple[str, ...]:
        """The figures that an evaluation gives, by name."""
        return (*(MEASURED if self.where != "clients" else ()), *(OF_CLIENTS if self.where != "server" else ()))
