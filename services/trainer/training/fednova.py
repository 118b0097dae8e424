"""FedNova on the client: how far its solver goes (Wang et al. 2020)."""

import numpy as np

from shared.errors import BadInput
from shared.job.catalog.training import Sgd, TrainSpec


def normaliser(spec: TrainSpec, lr: float, steps: int) -> float:
    """‖a‖₁ of τ = `steps` local steps at the learning rate `lr`: how many gradients a client's update is worth.

    An update is −lr · Σ_k a_k g_k of the gradients g_1 … g_τ, and with ρ the momentum and α = lr · mu of FedProx

    - τ for plain SGD,
    - (τ − ρ (1 − ρ^τ) / (1 − ρ)) / (1 − ρ) with momentum,
    - (1 − (1 − α)^τ) / α with FedProx,
    - with both, Σ_k a_k. There an early gradient's share may turn negative, as the pull swings the client back: we
      divide by how far equal gradients would have carried it, not by how long a way that was.

    `BadInput` for another optimizer than sgd, and where α is 1 or more: a pull beyond the round's model.
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
