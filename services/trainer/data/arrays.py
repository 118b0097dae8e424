"""Arrays in a NumPy archive, as `numpy.savez` writes it; nothing in it is unpickled."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import (
    StoredExamples,
    as_floats,
    existing,
    floats,
    labels,
    numbered,
    pixels,
    refuse_undeclared,
    refuse_unfit,
)
from shared.errors import BadInput
from shared.job.catalog.data import Npz

FEW = 1000  #: limit of labels if there are fewer examples; larger ones are identities, or measurements

Array = npt.NDArray[Any]


def read(file: Path, spec: Npz, key: str | None) -> StoredExamples:
    """The arrays `spec.x` (n, …) and `spec.y` (n,) or (n, 1); `key` is the array (n,) of owners, if any.

    Bytes are taken for pixels and become float32 in [0, 1]; other numbers become float32 as they are. There are as
    many classes as `spec.classes` declares, else as the largest label says.
    """
    existing(file, "npz", "the archive")
    wanted = [spec.x, spec.y, *([] if key is None else [key])]
    x, y, *owners = _arrays(file, wanted)
    x = _numbers(x, f"{file}: {spec.x}")
    y = labels(y, len(x), None, f"{file}: {spec.y} is an array")
    if spec.classes is None and y.max() >= max(len(y), FEW):
        raise BadInput(
            f"{file}: {spec.y} has labels up to {y.max()} for {len(y)} examples; number the classes from 0 without "
            "gaps, or declare data.classes"
        )
    if spec.classes is not None:
        refuse_undeclared(file, map(str, np.unique(y).tolist()), numbered(len(spec.classes)))
    return StoredExamples(
        x=x,
        y=y,
        shape=x.shape[1:],
        names=spec.classes or numbered(int(y.max()) + 1),
        prepare=pixels if x.dtype == np.uint8 else as_floats,
        files=(file,),
        owners=_names(owners[0], len(x), f"{file}: {key}") if owners else None,
    )


def _numbers(x: Array, what: str) -> Array:
    """The numbers in the machine's byte order and C order, none of them wider than four bytes."""
    if x.dtype.kind not in "fiub" or x.ndim < 2 or not x.size:
        more = ": give x[:, None], where an example is one number" if x.ndim == 1 else ""
        raise BadInput(f"{what} has shape {list(x.shape)} and {x.dtype}; it is numbers (n, …){more}")
    if x.dtype.itemsize > 4:
        return floats(x, f"{what} is an array")
    x = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))
    if x.dtype.kind == "f":
        refuse_unfit(x, f"{what} is an array")
    return x


def _names(owners: Array, examples: int, what: str) -> Array:
    """The owner of each example, as whole numbers or words."""
    if owners.ndim == 2 and owners.shape[1] == 1:
        owners = owners[:, 0]
    if owners.dtype.kind == "S" and owners.tobytes().isascii():
        owners = owners.astype(np.str_)
    if owners.shape != (examples,) or owners.dtype.kind not in "iubU":
        raise BadInput(
            f"{what} has shape {list(owners.shape)} and {owners.dtype}; it is one owner, a whole number or a word, for "
            f"each of {examples} examples"
        )
    if owners.dtype.kind == "U" and (empty := np.flatnonzero(np.strings.strip(owners) == "")).size:
        raise BadInput(f"{what} names no owner at [{empty[0]}] ({empty.size} such places)")
    return owners


def _arrays(file: Path, names: list[str]) -> list[Array]:
    if not file.is_file():
        raise BadInput(f"{file} is no file")
    name = ""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            if missing := [name for name in names if name not in archive.files]:
                raise BadInput(f"{file} has no array {', '.join(missing)} among its {len(archive.files)}")
            found = []
            for name in names:
                found.append(archive[name])
                if not isinstance(found[-1], np.ndarray):  # the archive holds another kind of file under that name
                    raise BadInput(f"{file}: {name} is no array")
            return found
    except BadInput:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each raise their own kinds
        raise BadInput(f"{file} is no NumPy archive of plain arrays: {_words(error, name)}") from error


def _words(error: Exception, name: str) -> str:
    """The reason why an archive cannot be read, in words that quote nothing of it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return f"{name} is larger than this machine's memory"
    if "Object arrays" in str(error):
        return f"{name} holds objects, which would have to be unpickled; save numbers or words"
    if isinstance(error, zipfile.BadZipFile) or not name:
        return "it was written otherwise than by numpy.savez, or it is cut off"
    return f"{name} is damaged ({type(error).__name__})"
