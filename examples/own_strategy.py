"""Example of your own strategy: any object with a `step`; this one is Nesterov momentum on the server."""

import numpy as np
import numpy.typing as npt

Tile = npt.NDArray[np.float64]


class Nesterov:
    """m ← momentum · m + Δ, x ← x + lr · (Δ + momentum · m), with Δ the mean update (Sutskever et al. 2013)."""

    #: Vectors kept from round to round, one value per model parameter, and their initial value.
    state = {"momentum": 0.0}  # noqa: RUF012

    def __init__(self, lr: float = 1.0, momentum: float = 0.9) -> None:
        self.lr = lr
        self.momentum = momentum

    def step(self, model: Tile, mean: Tile, state: dict[str, Tile]) -> Tile:
        """Returns the next model. All are tiles (n,) of the same positions; a result depends only on its position."""
        state["momentum"] = self.momentum * state["momentum"] + mean
        return model + self.lr * (mean + self.momentum * state["momentum"])
