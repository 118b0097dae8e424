"""Example of a hospital's data for a silo: it returns the patients' records as arrays.

Here the records are those of the Wisconsin breast cancer study (569 biopsies, 30 measures of each; Street, Wolberg
and Mangasarian 1993), which scikit-learn carries, shared out between two hospitals. Yours would be read from your disk.
"""

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer

Examples = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]

HOSPITALS = ("hospital-a", "hospital-b")


class Biopsies:
    """Data set with the four members that training needs."""

    shape = (1, 1, 30)  # of one example: channels, height, width
    classes = 2  # malignant, benign

    def __init__(self, test_fraction: float, seed: int) -> None:
        x, y = load_breast_cancer(return_X_y=True)
        # Both scale by the mean and deviation published with the study: neither has to reveal its own.
        x = ((x - x.mean(0)) / x.std(0)).astype(np.float32).reshape(-1, *self.shape)
        order = np.random.default_rng(seed).permutation(len(y))
        self._x, self._y = x[order], y[order].astype(np.int64)
        self._tested = round(test_fraction * len(y))

    def client(self, name: str, index: int) -> Examples:  # noqa: ARG002 - a silo goes by its name
        """Returns the examples of one hospital; a real one has only its own."""
        mine = slice(self._tested + HOSPITALS.index(name), None, len(HOSPITALS))
        return self._x[mine], self._y[mine]

    def test(self) -> Examples | None:
        """Held-out examples for the test; None if there are none."""
        return (self._x[: self._tested], self._y[: self._tested]) if self._tested else None


def data(test_fraction: float = 0.0, seed: int = 0) -> Biopsies:
    """Returns the data set: `data.name` in the job file names this function; it takes `seed`, so it gets the job's."""
    return Biopsies(test_fraction, seed)
