"""Files of examples: the places where they may lie, what they hold, and the checks that their values pass.

They lie only below `FEDQ_DATA_DIR`, and are told apart from what lay there before. A number that no model can be
trained on is refused by a sentence that says where it is.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import BadInput

SHOWN = 8  #: most names that a sentence lists
TOLD = 32  #: most undeclared labels that a sentence may name; with more, it names none

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
class StoredExamples:
    """Examples as they are kept: once in a process, and no wider than their file has them (pixels are bytes)."""

    x: Stored  # (n, *stored)
    y: Labels  # (n,)
    shape: tuple[int, ...]  # one example's, as models see it
    names: tuple[str, ...]  # the classes' names, for labels 0, 1, …
    prepare: Preparation = as_floats  # makes float32 (m, *shape) of stored examples
    owners: npt.NDArray[Any] | None = None  # (n,): the owner of each example
    test: tuple[Stored, Labels] | None = None  # the test set, if the files have one
    features: tuple[str, ...] = ()  # the features' names, if they have any
    files: tuple[Path, ...] = ()  # the files that were read
    digest: str | None = None  # the files' digest; see `contents`

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


def inside(base: Path, path: str | Path, setting: str) -> Path:
    """`path` below the folder `base`, all links followed; `BadInput` if that leads out of it.

    `setting` is the key of the job file that gave the path. A job comes over the wire: of the files of a trainer's
    owner it may name those that `FEDQ_DATA_DIR` gives it, and no others.
    """
    try:
        root, found = base.resolve(), (base / path).resolve()
    except (OSError, ValueError, RuntimeError):  # the path has a NUL, a name that is too long, or a circle of links
        raise BadInput(
            f"{setting}: {str(path)!r} is no path that can be followed; give one below FEDQ_DATA_DIR"
        ) from None
    if not found.is_relative_to(root):
        raise BadInput(
            f"{setting}: {path} leads out of this trainer's FEDQ_DATA_DIR; put the data below that folder, or let the "
            "setting name another"
        )
    return found


def files_in(folder: Path, base: Path) -> list[Path]:
    """All files in a folder and below, sorted, without those that are hidden or in a hidden folder.

    Links are followed. `BadInput` if one leads out of `base` or in a circle, and if a folder may not be read: its
    files would be missed in silence.
    """
    return sorted(_walk(folder, base))


def _walk(folder: Path, base: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise BadInput(f"{error.filename} cannot be read: {error.strerror}")

    followed = {folder.resolve()}
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not is_litter(name)]
        for name in folders:
            if (link := Path(place, name)).is_symlink():
                target = inside(base, link, "data")
                if target in followed:
                    raise BadInput(f"{link} is a link to a folder that is read already; remove it")
                followed.add(target)
        for name in names:
            if not is_litter(name):
                if (file := Path(place, name)).is_symlink():
                    inside(base, file, "data")
                yield file


def is_litter(name: str) -> bool:
    """True for the name of a file or folder that programs leave behind, and that holds no data."""
    return name.startswith(".") or name.lower() in {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}


def contents(files: Sequence[Path], folder: Path) -> str:
    """The SHA-256 digest of files and of their names below `folder`: the same on all machines that have the same."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def stamp(path: Path, base: Path) -> str:
    """A string for the files of `path`: another one once a file is changed, added, removed or replaced."""
    files = files_in(path, base) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        try:
            found = file.stat()
        except OSError:
            digest.update(f"{file}\0absent\0".encode(errors="surrogateescape"))
        else:
            # A copy may have the time of its original, but not the time of its last change in this place.
            about = f"{file}\0{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0"
            digest.update(about.encode(errors="surrogateescape"))
    return digest.hexdigest()


LARGEST = int(np.iinfo(np.int64).max)  #: a −1 that was made unsigned lies beyond it, and would become −1 again

Array = npt.NDArray[Any]


def floats(x: Array, what: str) -> Floats:
    """A copy of x (n, …) as float32, in C order; `BadInput` if a value is NaN, infinite or beyond float32.

    `what` begins the sentence, such as "data: test() gave x".
    """
    with np.errstate(over="ignore"):
        found = np.array(x, dtype=np.float32, order="C")
    refuse_unfit(found, what)
    return found


def refuse_unfit(x: Array, what: str) -> None:
    """`BadInput` with the place of the first value of x (n, …) that is NaN or infinite, and how many there are."""
    finite = np.isfinite(x)
    if not finite.all():
        places = np.argwhere(~finite)
        first = ", ".join(map(str, places[0]))
        count = "1 value that is" if len(places) == 1 else f"{len(places)} values that are"
        raise BadInput(
            f"{what} with {count} NaN, infinite or beyond float32 (3.4e38), the first at [{first}]: mend "
            "what is wrong, or leave these examples out"
        )


def labels(y: Array, examples: int, classes: int | None, what: str) -> Labels:
    """A copy of y (n,), or (n, 1), as int64; `BadInput` if these are no classes of `examples` examples.

    Without `classes` there are as many as the largest label says.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (examples,) or y.dtype.kind not in "iub":
        raise BadInput(f"{what} of shape {list(y.shape)} and {y.dtype}; {_wanted(y, examples)}")
    least, most = (int(y.min()), int(y.max())) if examples else (0, 0)
    if least < 0 or most > LARGEST or (classes is not None and most >= classes):
        counted = "they are counted from 0" if classes is None else f"there are {classes} classes, counted from 0"
        raise BadInput(f"{what} with labels from {least} to {most}; {counted}")
    return y.astype(np.int64)


def _wanted(y: Array, examples: int) -> str:
    wanted = f"it is one integer for each of {examples} examples"
    if y.ndim == 2 and len(y) == examples and y.dtype.kind in "fiub":
        return f"{wanted}: of one column for each class, give y.argmax(1)"
    if y.dtype.kind == "f" and y.shape == (examples,):
        return f"{wanted}: where they are whole numbers, give y.astype(int)"
    return wanted
