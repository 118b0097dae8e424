"""The data sets that torchvision reads: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100.

Nothing imports torchvision before one of them is asked for: it takes more than a second and 160 MB in every slot.
MNIST's files are plain bytes; CIFAR's are pickles, which torchvision opens after it has checked their MD5 sums. Nothing
else is unpickled.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from services.trainer.data import download
from services.trainer.data.source import Labels, Source, Stored, normalised
from shared.errors import BadInput


class Known(NamedTuple):
    """How torchvision calls a data set, and the mean and deviation of its training images by channel, in [0, 1]."""

    kind: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


KNOWN = {
    "mnist": Known("MNIST", (0.1307,), (0.3081,)),
    "fashion_mnist": Known("FashionMNIST", (0.2860,), (0.3530,)),
    "cifar10": Known("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Known("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

Examples = tuple[Stored, Labels]


class Absent(Exception):
    """The files are not there, or not as they should be; the text says which."""


def read(name: str, folder: Path, may_download: bool, fetch: Callable[[str, Path], str] = download.fetch) -> Source:
    """The data set `name` from `folder`, downloaded to it first where it is not there and that is allowed.

    Images are kept as bytes and become float32 (n, channels, height, width), normalised by channel. `BadInput` where
    there are none and they cannot be downloaded within `download.LONGEST` seconds.
    """
    known = KNOWN[name]
    kind = getattr(importlib.import_module("torchvision.datasets"), known.kind)
    tried = ""
    try:
        try:
            training, test, names = _files(kind, folder)
        except Absent:
            if not may_download:
                raise
            reason = fetch(known.kind, folder)  # or waits until another slot has
            tried = f"; it could not be downloaded: {reason}" if reason else ""
            training, test, names = _files(kind, folder)
    except Absent as absent:
        raise BadInput(
            f"data.name is {name}: {absent}{tried}; put torchvision's {known.kind} there, or say by FEDQ_DATA_DIR "
            "below which folder this trainer's data are"
        ) from absent
    return Source(
        x=training[0],
        y=training[1],
        shape=training[0].shape[1:],
        names=names,
        prepare=normalised(known.mean, known.deviation),
        test=test,
        files=tuple(_wanted(kind, folder)),
    )


def _files(kind: Any, folder: Path) -> tuple[Examples, Examples, tuple[str, ...]]:
    """The training examples, the test examples and the names of the classes, or `Absent`."""
    is_cifar = hasattr(kind, "base_folder")
    wanted = _wanted(kind, folder)
    place = wanted[0].parent
    if missing := [file for file in wanted if not file.is_file()]:
        raise Absent(f"this trainer has no {missing[0]}")
    try:
        return _fitting(*(_pickled(kind, folder) if is_cifar else _plain(kind, wanted)))
    except (RuntimeError, ValueError, TypeError, AssertionError, OSError) as error:
        words = " ".join(str(error).split()) or type(error).__name__  # an assertion of torchvision's has none
        raise Absent(f"{place} is damaged ({words}), delete it") from error


def _wanted(kind: Any, folder: Path) -> list[Path]:
    """The files of a data set."""
    if hasattr(kind, "base_folder"):
        return [folder.absolute() / kind.base_folder / name for name, _ in [*kind.train_list, *kind.test_list]]
    return [folder.absolute() / kind.__name__ / "raw" / Path(name).stem for name, _ in kind.resources]


def _plain(kind: Any, files: list[Path]) -> tuple[Examples, Examples, tuple[str, ...]]:
    """MNIST's files, by torchvision's functions: its class would prefer a file of torch's, if there is an old one."""
    mnist = importlib.import_module("torchvision.datasets.mnist")
    x, y, test_x, test_y = (
        (mnist.read_image_file if "images" in file.name else mnist.read_label_file)(str(file)).numpy() for file in files
    )
    return _paired(x[:, None], y), _paired(test_x[:, None], test_y), tuple(kind.classes)


def _pickled(kind: Any, folder: Path) -> tuple[Examples, Examples, tuple[str, ...]]:
    """CIFAR's files, by torchvision's class, which raises RuntimeError before it opens one that has another sum."""
    training, test = kind(folder, train=True), kind(folder, train=False)
    found, tested = (_paired(each.data.transpose(0, 3, 1, 2), np.array(each.targets)) for each in (training, test))
    return found, tested, tuple(training.classes)


def _fitting(training: Examples, test: Examples, names: tuple[str, ...]) -> tuple[Examples, Examples, tuple[str, ...]]:
    """The examples and names as read, or `ValueError` where they are not of one data set."""
    (x, y), (test_x, test_y) = training, test
    if x.shape[1:] != test_x.shape[1:]:
        raise ValueError(f"images of {list(x.shape[1:])} to train on and of {list(test_x.shape[1:])} to test on")
    if (most := max(int(y.max()), int(test_y.max()))) >= len(names):
        raise ValueError(f"a label {most} of {len(names)} classes")
    return training, test, names


def _paired(x: Stored, y: Stored) -> Examples:
    if len(x) != len(y) or not len(x):
        raise ValueError(f"{len(x)} images and {len(y)} labels")
    return np.ascontiguousarray(x), y.astype(np.int64)
