"""Data sets that come with a library: scikit-learn's digits, and those that torchvision reads and downloads.

Nothing imports torchvision before one of them is asked for: it takes more than a second and 160 MB in every slot.
MNIST's files are plain bytes; CIFAR's are pickles, which torchvision opens after it has checked their MD5 sums. Nothing
else is unpickled.

Each download of torchvision runs in a process by itself, `python -m services.trainer.data.library KIND FOLDER`, KIND a
class of `torchvision.datasets`: it can be ended, and its limits are no other's.
"""

import fcntl
import gzip
import importlib
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from services.trainer.data.source import Labels, Stored, StoredExamples, as_floats, normalised, numbered
from shared.errors import BadInput


def read_digits() -> StoredExamples:
    """Images (1797, 1, 8, 8) with values in [0, 1], and their labels."""
    # The file that `sklearn.datasets.load_digits` reads: importing sklearn takes a second and 80 MB in every slot.
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise BadInput("data.name is digits: this trainer has no scikit-learn, which carries them")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.float32)
    images = np.ascontiguousarray((table[:, :-1] / 16).reshape(-1, 1, 8, 8))
    return StoredExamples(
        x=images,
        y=table[:, -1].astype(np.int64),
        shape=(1, 8, 8),
        names=numbered(10),
        prepare=replace(as_floats, scale=(16.0,)),
    )


LONGEST = 600.0  #: seconds that a download may take, with the wait for one that another slot has begun
SILENCE = 15.0  #: seconds without a byte from a server, or without its answer to a call
COMMAND = (sys.executable, "-m", "services.trainer.data.library")


def fetch(kind: str, folder: Path, command: tuple[str, ...] = COMMAND, longest: float = LONGEST) -> str:
    """Downloads a data set to `folder`; returns the reason of a failure in a few words, or an empty string."""
    try:
        found = subprocess.run(
            [*command, kind, str(folder)], capture_output=True, text=True, timeout=longest, check=False
        )
    except subprocess.TimeoutExpired:  # `run` has killed the process
        return f"not done after {longest:g} s"
    if found.returncode == 0:
        return ""
    lines = found.stderr.strip().splitlines()
    return lines[-1] if lines else f"its process ended with {found.returncode}"


def main(kind: str, folder: Path) -> None:
    """Downloads what is not there, one process of a machine at a time; ends with one line that says why not."""
    socket.setdefaulttimeout(SILENCE)  # urllib would wait for ever
    make = getattr(importlib.import_module("torchvision.datasets"), kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Torchvision shows a progress bar, which no one sees here.
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                make(folder, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise SystemExit(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The words of the last line that is not empty: torchvision tells of each mirror, and urllib wraps its reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"^(<urlopen error )?(\[Errno -?\d+\] )?(.*?)>?$", r"\3", lines[-1])


class TorchvisionSet(NamedTuple):
    """The class of torchvision for a data set, and its training images' mean and deviation by channel, in [0, 1]."""

    kind: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


TORCHVISION_SETS = {
    "mnist": TorchvisionSet("MNIST", (0.1307,), (0.3081,)),
    "fashion_mnist": TorchvisionSet("FashionMNIST", (0.2860,), (0.3530,)),
    "cifar10": TorchvisionSet("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": TorchvisionSet("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

Examples = tuple[Stored, Labels]


class FilesAbsent(Exception):
    """The files are not there, or not as they should be; the text says which."""


def read_torchvision(
    name: str, folder: Path, may_download: bool, fetch: Callable[[str, Path], str] = fetch
) -> StoredExamples:
    """The data set `name` from `folder`, downloaded to it first if it is not there and that is allowed.

    Images are kept as bytes and become float32 (n, channels, height, width), normalised by channel. `BadInput` if
    there are none and they cannot be downloaded within `download.LONGEST` seconds.
    """
    known = TORCHVISION_SETS[name]
    kind = getattr(importlib.import_module("torchvision.datasets"), known.kind)
    tried = ""
    try:
        try:
            training, test, names = _files(kind, folder)
        except FilesAbsent:
            if not may_download:
                raise
            reason = fetch(known.kind, folder)  # another slot may hold the lock and download it meanwhile
            tried = f"; it could not be downloaded: {reason}" if reason else ""
            training, test, names = _files(kind, folder)
    except FilesAbsent as absent:
        raise BadInput(
            f"data.name is {name}: {absent}{tried}; put torchvision's {known.kind} there, or say by FEDQ_DATA_DIR "
            "below which folder this trainer's data are"
        ) from absent
    return StoredExamples(
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
        raise FilesAbsent(f"this trainer has no {missing[0]}")
    try:
        return _fitting(*(_pickled(kind, folder) if is_cifar else _plain(kind, wanted)))
    except (RuntimeError, ValueError, TypeError, AssertionError, OSError) as error:
        words = " ".join(str(error).split()) or type(error).__name__  # torchvision's assertions have no text
        raise FilesAbsent(f"{place} is damaged ({words}), delete it") from error


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
    """The examples and names as read, or `ValueError` if they are not of one data set."""
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


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
