"""A strategy of one's own: any object with a `step`; this one is momentum on the server that looks ahead."""

import numpy as np
import numpy.typing as npt

Tile = npt.NDArray[np.float64]


class Nesterov:
    """m ← momentum · m + Δ, x ← x + lr · (Δ + momentum · m), with Δ the mean update (Sutskever et al. 2013)."""

    #: What is kept from round to round, a value for each of the model's, and what it is filled with at first.
    state = {"momentum": 0.0}  # noqa: RUF012

    def __init__(self, lr: float = 1.0, momentum: float = 0.9) -> None:
        self.lr = lr
        self.momentum = momentum

    def step(self, model: Tile, mean: Tile, state: dict[str, Tile]) -> Tile:
        """The next model. All are tiles (n,) of the same places, and a value may depend on its own place only."""
        state["momentum"] = self.momentum * state["momentum"] + mean
        return model + self.lr * (mean + self.momentum * state["momentum"])
