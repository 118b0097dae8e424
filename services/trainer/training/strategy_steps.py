"""What a strategy wants of a client besides plain training."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from services.trainer.models.flat import FlatModel
from services.trainer.training import scaffold
from services.trainer.training.fednova import normaliser
from services.trainer.training.schedules import rate
from shared.aggregation import weights
from shared.aggregation.strategies.strategy import CONTROL
from shared.aggregation.weights import File, Flat, Layout
from shared.errors import Refused
from shared.job.catalog.strategies import FedNova, QFedAvg, Scaffold
from shared.job.catalog.training import TrainSpec
from shared.job.job_spec import JobSpec


def shape(delta: Flat, spec: JobSpec, number: int, metrics: dict[str, float]) -> None:
    """Makes of what training changed of the parameters what the strategy folds; in place, as `metrics` tells of it.

    FedNova's is divided by how many gradients it is worth, q-FedAvg's times the q-th power of the client's loss.
    """
    match spec.strategy:
        case FedNova():
            metrics["local_norm"] = _worth(spec, number, metrics)
            delta /= np.float32(metrics["local_norm"])
        case QFedAvg(q=q):
            delta *= np.float32(metrics["client_loss"] ** q)


@dataclass(frozen=True)
class Drift:
    """SCAFFOLD's correction of where a client's training drifts to, by the server's control variate and its own."""

    spec: JobSpec
    number: int
    server: Flat  # shape (parameters,)
    model: FlatModel

    @classmethod
    def of(cls, spec: JobSpec, number: int, server: File | None, model: FlatModel) -> "Drift | None":
        """The round's, given the server state's file; None under another strategy."""
        if not isinstance(spec.strategy, Scaffold):
            return None
        return cls(spec, number, _vector(server, model.layout), model)

    def correction(self, own: Flat | None) -> Mapping[str, Tensor]:
        """What is added to the gradient of each parameter."""
        return scaffold.correction(self.server, self._known(own), self.model.layout)

    def renewed(self, delta: Flat, own: Flat | None, metrics: Mapping[str, float]) -> tuple[Flat, Flat]:
        """The client's next control variate, and what changed of it, after training gave this difference."""
        lr, steps = _rate(self.spec, self.number), _worth(self.spec, self.number, metrics)
        return scaffold.renewed(self.server, self._known(own), delta, lr=lr, steps=steps)

    def _known(self, own: Flat | None) -> Flat:
        return np.zeros(self.model.layout.parameters, np.float32) if own is None else own


def _vector(file: File | None, layout: Layout) -> Flat:
    """The server's control variate, zeros before it has one."""
    if file is None:
        return np.zeros(layout.parameters, np.float32)
    found: Flat | None = weights.read_layout(file).views(file).get(CONTROL)
    if found is None or found.dtype != np.float32 or found.shape != (layout.parameters,):
        raise Refused(f"the server state holds no {CONTROL} for this model")
    return found


def _worth(spec: JobSpec, number: int, metrics: Mapping[str, float]) -> float:
    """How many gradients the client's training was worth."""
    assert isinstance(spec.train, TrainSpec)  # noqa: S101 - the strategy needs the built-in step
    return normaliser(spec.train, _rate(spec, number), int(metrics["steps"]))


def _rate(spec: JobSpec, number: int) -> float:
    assert isinstance(spec.train, TrainSpec)  # noqa: S101 - the strategy needs the built-in step
    return rate(spec.train.schedule, spec.train.optimizer.lr, number, spec.rounds.count)
