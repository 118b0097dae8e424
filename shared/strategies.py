"""Server steps: how the mean of a round's updates becomes the next model.

Pure, element by element in float64. A strategy is a function of a tile of the model and the same tile of the mean.
"""

import numpy as np
import numpy.typing as npt

from shared.fold import ServerStep
from shared.jobs import FedAvg

Tile = npt.NDArray[np.float64]


def fedavg(model: Tile, mean: Tile) -> Tile:
    """Federated averaging, x ← x + Δ (McMahan et al. 2017, algorithm 1)."""
    return model + mean


def server_step(strategy: FedAvg) -> ServerStep:
    """The step that a job's `strategy` names."""
    return {"fedavg": fedavg}[strategy.name]
