"""What a file of examples holds, before anybody shares it out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import BadInput

SHOWN = 8  #: names in a sentence
TOLD = 32  #: labels that are not declared, at most, where any of them is named

Stored = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Preparation:
    """Makes of examples as they are kept what models see, float32 (n, *shape).

    `offset` and `scale` say what became of the values in the file, on reading it and here: (value − offset) / scale,
    a number for each feature or channel, or one for all of them; None is 0 and 1.
    """

    make: Callable[[Stored], Floats]
    offset: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    def __call__(self, x: Stored) -> Floats:
        return self.make(x)


def _floats(x: Stored) -> Floats:
    return x.astype(np.float32)


def _pixels(x: Stored) -> Floats:
    return x.astype(np.float32) / np.float32(255)


as_floats = Preparation(_floats)  #: The numbers as they are.
pixels = Preparation(_pixels, scale=(255.0,))  #: Bytes 0 to 255 as float32 in [0, 1].


def normalised(mean: Sequence[float], deviation: Sequence[float]) -> Preparation:
    """Makes of bytes (n, channels, height, width) what `pixels` does, less `mean` and over `deviation` by channel."""
    less, over = (np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1) for values in (mean, deviation))

    def make(x: Stored) -> Floats:
        found = pixels(x)
        found -= less
        found /= over
        return found

    return Preparation(make, tuple(255 * value for value in mean), tuple(255 * value for value in deviation))


@dataclass(frozen=True, eq=False)
class Source:
    """Examples as they are kept: once in a process, and no wider than their file has them (pixels are bytes)."""

    x: Stored  # (n, *stored)
    y: Labels  # (n,)
    shape: tuple[int, ...]  # of one example as models see it
    names: tuple[str, ...]  # of the classes 0, 1, …
    prepare: Preparation = as_floats  # of some examples, to float32 (m, *shape)
    owners: npt.NDArray[Any] | None = None  # (n,): whose each example is
    test: tuple[Stored, Labels] | None = None  # a test set of its own
    features: tuple[str, ...] = ()  # their names, where they have some
    files: tuple[Path, ...] = ()  # that all this was read from
    digest: str | None = None  # of these files; see `place.contents`

    def examples(self, places: npt.NDArray[np.int64]) -> tuple[Floats, Labels]:
        """Some of the examples as models see them."""
        return self.prepare(self.x[places]), self.y[places]

    def of_test(self) -> tuple[Floats, Labels] | None:
        """Its own test set as models see it."""
        return None if self.test is None else (self.prepare(self.test[0]), self.test[1])


def numbered(classes: int) -> tuple[str, ...]:
    """The names of classes that have none."""
    return tuple(map(str, range(classes)))


def refuse_undeclared(place: Path, found: Iterable[str], classes: Sequence[str]) -> None:
    """`BadInput` that names the labels which are `found` and which `data.classes` lacks.

    The sentence leaves the machine: a column that holds another value in each row is no column of labels, and is not
    told by them, nor how many examples have one.
    """
    strange = sorted({label for label in found if label not in classes})
    if len(strange) > TOLD:
        raise BadInput(
            f"{place.absolute()} has {len(strange)} labels that data.classes does not declare; is data.label the "
            "column of labels? `fedq data FILE`, run there, shows them"
        )
    if strange:
        near = set(map(alike, classes)) & set(map(alike, strange))
        hint = "; one of them differs in capitals or blanks alone" if near else ""
        raise BadInput(
            f"{place.absolute()} has labels that data.classes does not declare: {some(list(map(repr, strange)))}; "
            f"declared: {some(list(map(repr, classes)))}{hint}; spell them as there, or declare them"
        )


def alike(name: str) -> str:
    """A form of a name that is the same for names which differ only in capitals or in the number of blanks.

    A sentence shows several blanks as one, so two such names may look the same in it.
    """
    return " ".join(name.casefold().split())


def some(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def existing(path: Path, name: str, what: str) -> Path:
    """`path`, or `BadInput` that says where the data set `name` was looked for; `what` is what belongs there."""
    if not path.exists():
        raise BadInput(
            f"data.name is {name}: this trainer has no {path.absolute()}; put {what} there, or say by FEDQ_DATA_DIR "
            "below which folder its data are"
        )
    return path
