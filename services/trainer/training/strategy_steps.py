"""The part of a strategy that runs on the client, in addition to plain training: SCAFFOLD, FedNova and q-FedAvg.

All vectors of SCAFFOLD are float32 and have a value for each parameter, in the order of the model file. `server` is c,
`own` c_i, both zero before a client's first round. Buffers, such as a running mean, have no gradient, and no control.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.trainer.models.flat import FlatModel
from services.trainer.training.optimizers import rate
from shared.aggregation import weights
from shared.aggregation.strategies.strategy import CONTROL
from shared.aggregation.weights import File, Flat, Layout
from shared.errors import BadInput, Refused
from shared.job.catalog.strategies import FedNova, QFedAvg, Scaffold
from shared.job.catalog.training import Sgd, TrainSpec
from shared.job.job_spec import JobSpec


def shape(delta: Flat, spec: JobSpec, number: int, metrics: dict[str, float]) -> None:
    """Turns the change of the parameters, in place, into what the strategy folds, and notes in `metrics` how.

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
    """SCAFFOLD's correction of the drift of a client's training, by the server's control variate and its own."""

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
        """The correction to add to the gradient of each parameter."""
        return control_correction(self.server, self._known(own), self.model.layout)

    def renewed(self, delta: Flat, own: Flat | None, metrics: Mapping[str, float]) -> tuple[Flat, Flat]:
        """The client's next control variate, and its change, after training gave this difference."""
        lr, steps = _rate(self.spec, self.number), _worth(self.spec, self.number, metrics)
        return renewed_control(self.server, self._known(own), delta, lr=lr, steps=steps)

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
    """The number of gradients that the client's training was worth."""
    assert isinstance(spec.train, TrainSpec)  # noqa: S101 - the strategy needs the built-in step
    return normaliser(spec.train, _rate(spec, number), int(metrics["steps"]))


def _rate(spec: JobSpec, number: int) -> float:
    assert isinstance(spec.train, TrainSpec)  # noqa: S101 - the strategy needs the built-in step
    return rate(spec.train.schedule, spec.train.optimizer.lr, number, spec.rounds.count)


def control_correction(server: Flat, own: Flat, layout: Layout) -> dict[str, Tensor]:
    """c − c_i by tensor name: what `loop.train` adds to the gradient of each batch."""
    difference, start, found = server - own, 0, {}
    for tensor in layout.trained:
        if tensor.name not in layout.buffers:
            stop = start + math.prod(tensor.shape)
            found[tensor.name] = torch.from_numpy(difference[start:stop].reshape(tensor.shape))
            start = stop
    return found


def renewed_control(server: Flat, own: Flat, update: Flat, *, lr: float, steps: float) -> tuple[Flat, Flat]:
    """The client's new control c_i⁺ = c_i − c + (x − y_i) / (K · lr), and what changed, c_i⁺ − c_i.

    `update` is y_i − x, what training changed, and `lr` the round's learning rate: with 0 nothing is learnt of the
    gradient, and the control stays. `steps` is K for plain SGD. With momentum or FedProx a gradient moves the client
    further or less than lr, and K is `normaliser` of its steps, so that c_i⁺ is a mean of gradients still.
    """
    if lr == 0:
        return own.copy(), np.zeros_like(own)
    change: Flat = np.multiply(update, -1 / (lr * steps), dtype=np.float32)
    change -= server
    return own + change, change


def normaliser(spec: TrainSpec, lr: float, steps: int) -> float:
    """‖a‖₁ of τ = `steps` local steps at the learning rate `lr`: how many gradients a client's update is worth.

    An update is −lr · Σ_k a_k g_k of the gradients g_1 … g_τ, and with ρ the momentum and α = lr · mu of FedProx

    - τ for plain SGD,
    - (τ − ρ (1 − ρ^τ) / (1 − ρ)) / (1 − ρ) with momentum,
    - (1 − (1 − α)^τ) / α with FedProx,
    - with both, Σ_k a_k. There an early gradient's share may turn negative, as the pull swings the client back: we
      divide by how far equal gradients would have carried it, not by how long a way that was.

    `BadInput` for another optimizer than sgd, and if α is 1 or more: a pull beyond the round's model.
    """
    if not isinstance(spec.optimizer, Sgd):
        raise BadInput(f"train.optimizer is {spec.optimizer.name}; updates are normalised for sgd alone")
    rho = spec.optimizer.momentum
    alpha = lr * spec.fedprox.mu if spec.fedprox is not None else 0.0
    if alpha >= 1:
        raise BadInput(f"train.fedprox.mu times the learning rate is {alpha:g}; keep it below 1")
    # Gradients of 1: velocity v ← ρ v − α d + 1, and distance d ← d + v; all cases in one, without a division.
    step = np.array([[rho, -alpha, 1.0], [rho, 1.0 - alpha, 1.0], [0.0, 0.0, 1.0]])
    return float(np.linalg.matrix_power(step, steps)[1, 2])
