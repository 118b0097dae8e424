"""What a file of examples holds, before anybody shares it out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import BadInput

Stored = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def as_floats(x: Stored) -> Floats:
    """The numbers as they are."""
    return x.astype(np.float32)


def pixels(x: Stored) -> Floats:
    """Bytes 0 to 255 as float32 in [0, 1]."""
    return x.astype(np.float32) / np.float32(255)


def normalised(mean: Sequence[float], deviation: Sequence[float]) -> Callable[[Stored], Floats]:
    """Makes of bytes (n, channels, height, width) what `pixels` does, less `mean` and over `deviation` by channel."""
    less, over = (np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1) for values in (mean, deviation))

    def prepare(x: Stored) -> Floats:
        found = pixels(x)
        found -= less
        found /= over
        return found

    return prepare


@dataclass(frozen=True, eq=False)
class Source:
    """Examples as they are kept: once in a process, and no wider than their file has them (pixels are bytes)."""

    x: Stored  # (n, *stored)
    y: Labels  # (n,)
    shape: tuple[int, ...]  # of one example as models see it
    names: tuple[str, ...]  # of the classes 0, 1, …
    prepare: Callable[[Stored], Floats] = as_floats  # of some examples, to float32 (m, *shape)
    owners: npt.NDArray[Any] | None = None  # (n,): whose each example is
    test: tuple[Stored, Labels] | None = None  # a test set of its own

    def examples(self, places: npt.NDArray[np.int64]) -> tuple[Floats, Labels]:
        """Some of the examples as models see them."""
        return self.prepare(self.x[places]), self.y[places]

    def of_test(self) -> tuple[Floats, Labels] | None:
        """Its own test set as models see it."""
        return None if self.test is None else (self.prepare(self.test[0]), self.test[1])


def numbered(classes: int) -> tuple[str, ...]:
    """The names of classes that have none."""
    return tuple(map(str, range(classes)))


def existing(path: Path, name: str, what: str) -> Path:
    """`path`, or `BadInput` that says where the data set `name` was looked for; `what` is what belongs there."""
    if not path.exists():
        raise BadInput(
            f"data.name is {name}: this trainer has no {path.absolute()}; put {what} there, or say by FEDQ_DATA_DIR "
            "below which folder its data are"
        )
    return path
