"""FEMNIST and Shakespeare in the JSON files of LEAF, which name the writer or the speaking role of each example.

Caldas et al. 2018, "LEAF: A benchmark for federated settings". A folder holds what its scripts write: `train/*.json`,
with or without `test/*.json`, or `all_data*.json`, or `all_data/*.json`. A file is an object of `users` and
`user_data`, where `user_data[user]` is `{"x": […], "y": […]}`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import (
    Labels,
    Preparation,
    Stored,
    StoredExamples,
    as_floats,
    existing,
    is_litter,
    pixels,
)
from shared.errors import BadInput

SIDE = 28  #: pixels
CHARACTERS = 80  #: length of an example of Shakespeare

#: Shakespeare's characters, in LEAF's order.
VOCABULARY = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
UNKNOWN = VOCABULARY.index(" ")  #: token of every character that is not in the vocabulary

#: FEMNIST's classes, in LEAF's order.
SIGNS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

Reader = Callable[[Any, Any], tuple[Stored, Labels]]  # reads one user's x and y


def femnist(folder: Path) -> StoredExamples:
    """Images (1, 28, 28) with values in [0, 1], dark on white, and 62 classes: digits, capitals, small letters.

    LEAF writes a byte over 255 for each pixel, and the byte is what is kept.
    """
    return _source(folder, "femnist", _images, (1, SIDE, SIDE), SIGNS, pixels)


def shakespeare(folder: Path) -> StoredExamples:
    """Eighty characters as float32 (80,) of their places in `VOCABULARY`, and the place of the one that follows."""
    return _source(folder, "shakespeare", _lines, (CHARACTERS,), VOCABULARY, as_floats)


def _source(
    folder: Path, name: str, read: Reader, shape: tuple[int, ...], names: str, prepare: Preparation
) -> StoredExamples:
    existing(folder, name, "LEAF's JSON files")
    training = _found(folder, "train/*.json") or _found(folder, "all_data*.json") or _found(folder, "all_data/*.json")
    if not training:
        raise BadInput(
            f"data.name is {name}: {folder.absolute()} holds none of LEAF's files: train/*.json, or all_data*.json"
        )
    x, y, owners = _examples(training, read)
    tested = _found(folder, "test/*.json") if training[0].parent.name == "train" else []
    test = _examples(tested, read)[:2] if tested else None
    for labels in (y, y if test is None else test[1]):
        if labels.min() < 0 or labels.max() >= len(names):
            raise BadInput(
                f"data.name is {name}: {folder.absolute()} has labels from {labels.min()} to {labels.max()}; there are "
                f"{len(names)} classes"
            )
    return StoredExamples(x, y, shape, tuple(names), prepare, owners, test, files=(*training, *tested))


def _found(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if not is_litter(file.name) and file.is_file())


class _Wrong(ValueError):
    """Mistake in a file, in words that quote nothing of it."""


def _examples(files: list[Path], read: Reader) -> tuple[Stored, Labels, npt.NDArray[np.str_]]:
    """The examples of some files, one file after the other: a whole one, as Python's floats, may take gigabytes."""
    xs, ys, owners, sizes = [], [], [], []
    places: dict[str, Path] = {}  # the file that each user is in
    for file in files:
        try:
            content = _content(file)
            for number, user in enumerate(content["users"], 1):
                if (other := places.setdefault(str(user), file)) is not file:
                    raise _Wrong(
                        f"user {number} is in {other.name} too, whose examples would count twice; where the files are "
                        "of two runs of its scripts, remove those of one"
                    )
                try:
                    x, y = _of_user(content["user_data"][user], read)
                except _Wrong as wrong:
                    raise _Wrong(f"user {number}: {wrong}") from None
                xs.append(x)
                ys.append(y)
                owners.append(str(user))
                sizes.append(len(y))
        except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError, OverflowError) as error:
            words = error if isinstance(error, _Wrong) else type(error).__name__
            raise BadInput(f"{file} is no file of LEAF's: {words}") from error
    if not sum(sizes):
        raise BadInput(f"{files[0].parent.absolute()}: LEAF's files have no examples in them")
    return np.concatenate(xs), np.concatenate(ys), np.repeat(np.array(owners), sizes)


def _content(file: Path) -> Any:
    """The object in a file; `_Wrong` if its users are not those that it has examples of, each once."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        raise _Wrong("it is no JSON, or it is cut off") from None
    if not isinstance(content, dict) or not {"users", "user_data"} <= content.keys():
        raise _Wrong("it is an object of users and user_data")
    users, there = content["users"], content["user_data"]
    first: dict[str, int] = {}
    if twice := [number for number, user in enumerate(users, 1) if first.setdefault(user, number) != number]:
        raise _Wrong(f"users names user {twice[0]} twice, whose examples would count twice")
    if missing := [number for number, user in enumerate(users, 1) if user not in there]:
        raise _Wrong(f"user_data lacks user {missing[0]} of users")
    if len(there) > len(users):
        raise _Wrong(f"user_data has {len(there)} users, and users names {len(users)} of them")
    return content


def _of_user(data: Any, read: Reader) -> tuple[Stored, Labels]:
    try:
        x, y = read(data["x"], data["y"])
    except _Wrong:
        raise
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise _Wrong(type(error).__name__) from error
    if len(x) != len(y):
        raise _Wrong(f"{len(x)} x and {len(y)} y")
    return x, y


def _images(x: Any, y: Any) -> tuple[Stored, Labels]:
    if any(len(image) != SIDE * SIDE for image in x):
        raise _Wrong(f"x are images of {SIDE * SIDE} numbers each")
    values = np.asarray(x, dtype=np.float32).reshape(-1, 1, SIDE, SIDE)
    if len(values) and not (values.min() >= 0 and values.max() <= 1):
        raise _Wrong("pixels are numbers from 0 to 1")
    labels = np.asarray(y)
    if len(labels) and labels.dtype.kind not in "iu":
        raise _Wrong("y are whole numbers")
    return np.rint(values * 255).astype(np.uint8), labels.astype(np.int64)


def _lines(x: Any, y: Any) -> tuple[Stored, Labels]:
    if any(not isinstance(text, str) for text in (*x, *y)):
        raise _Wrong("x and y are strings")
    if any(len(line) != CHARACTERS for line in x) or any(len(following) != 1 for following in y):
        raise _Wrong(f"x are strings of {CHARACTERS} characters and y of one")
    return _tokens(x).reshape(-1, CHARACTERS), _tokens(y).astype(np.int64)


_TOKENS = np.full(129, UNKNOWN, dtype=np.uint8)
_TOKENS[[ord(character) for character in VOCABULARY]] = range(len(VOCABULARY))


def _tokens(text: list[str]) -> npt.NDArray[np.uint8]:
    points = np.frombuffer("".join(text).encode("utf-32-le", "replace"), dtype="<u4")
    tokens: npt.NDArray[np.uint8] = _TOKENS[np.minimum(points, 128)]
    return tokens
