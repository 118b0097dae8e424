"""Handwritten digits, small enough to come with a library: 1,797 grey images of 8×8 pixels.

Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits" (UCI), as scikit-learn carries them.
"""

import gzip
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from services.trainer.data.source import Source, as_floats, numbered
from shared.errors import BadInput


def read() -> Source:
    """Images (1797, 1, 8, 8) with values in [0, 1], and their labels."""
    # The file that `sklearn.datasets.load_digits` reads: importing sklearn takes a second and 80 MB in every slot.
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise BadInput("data.name is digits: this trainer has no scikit-learn, which carries them")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.float32)
    images = np.ascontiguousarray((table[:, :-1] / 16).reshape(-1, 1, 8, 8))
    return Source(
        x=images,
        y=table[:, -1].astype(np.int64),
        shape=(1, 8, 8),
        names=numbered(10),
        prepare=replace(as_floats, scale=(16.0,)),
    )
