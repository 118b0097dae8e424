"""Handwritten digits, small enough to come with a library: 1,797 grey images of 8×8 pixels.

Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits" (UCI), as scikit-learn carries them.
"""

import gzip
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.trainer.data import partitions
from shared.catalog.data import Digits as DigitsSpec
from shared.catalog.data import Dirichlet
from shared.errors import BadInput

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Digits:
    """The digits, shared out among clients after a held-out test set was taken."""

    shape: tuple[int, ...] = (1, 8, 8)
    classes = 10

    def __init__(self, spec: DigitsSpec, seed: int) -> None:
        self._x, self._y = _images()
        # A stream of its own, so that another partition does not change the test set.
        order = np.random.default_rng([seed, 1]).permutation(self._y.size)
        held_out = round(spec.test_fraction * self._y.size)
        self._test, training = np.sort(order[:held_out]), np.sort(order[held_out:])
        labels = self._y[training]
        if isinstance(spec.partition, Dirichlet):
            alpha, min_size = spec.partition.alpha, spec.partition.min_size
            shares = partitions.dirichlet(labels, spec.clients, alpha, min_size, seed)
        else:
            shares = partitions.iid(labels.size, spec.clients, seed)
        self._shares = [training[share] for share in shares]

    def client(self, name: str, index: int) -> tuple[Images, Labels]:
        """Images (n, 1, 8, 8) with values in [0, 1], and labels (n,)."""
        if index >= len(self._shares):
            raise BadInput(f"the digits are shared out among {len(self._shares)} clients; {name} would be one more")
        share = self._shares[index]
        return self._x[share], self._y[share]

    def test(self) -> tuple[Images, Labels] | None:
        """The held-out images and labels, where there are any."""
        if not self._test.size:
            return None
        return self._x[self._test], self._y[self._test]


@lru_cache(maxsize=1)
def _images() -> tuple[Images, Labels]:
    # The file that `sklearn.datasets.load_digits` reads: importing sklearn takes a second and 80 MB in every slot.
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise BadInput("data.name is digits: this trainer has no scikit-learn, which carries them")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.float32)
    images = (table[:, :-1] / 16).reshape(-1, 1, 8, 8)
    return np.ascontiguousarray(images), table[:, -1].astype(np.int64)
