"""Arrays in a NumPy archive, as `numpy.savez` writes it; nothing in it is unpickled."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import Source, as_floats, existing, numbered, pixels, refuse_undeclared
from shared.catalog.data import Npz
from shared.errors import BadInput


def read(file: Path, spec: Npz, key: str | None) -> Source:
    """The arrays `spec.x` (n, …) and `spec.y` (n,); `key` is the array (n,) of owners, if any.

    Bytes are taken for pixels and become float32 in [0, 1]; other numbers become float32 as they are. There are as
    many classes as `spec.classes` declares, else as the largest label says.
    """
    existing(file, "npz", "the archive")
    wanted = [spec.x, spec.y, *([] if key is None else [key])]
    x, y, *owners = _arrays(file, wanted)
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        raise BadInput(f"{file.absolute()}: {spec.x} has shape {list(x.shape)} and {x.dtype}; it is numbers (n, …)")
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not y.size or y.min() < 0:
        raise BadInput(
            f"{file.absolute()}: {spec.y} has shape {list(y.shape)} and {y.dtype}; it is a class, from 0, for each "
            f"of {len(x)} examples"
        )
    if owners and owners[0].shape != y.shape:
        raise BadInput(f"{file.absolute()}: {key} has shape {list(owners[0].shape)}; it is one owner for each example")
    if spec.classes is not None:
        labels, counts = np.unique(y, return_counts=True)
        found = dict(zip(map(str, labels.tolist()), counts.tolist(), strict=True))
        refuse_undeclared(file, found, numbered(len(spec.classes)))
    return Source(
        x=x.astype(np.float32) if x.dtype.itemsize > 4 else x,
        y=y.astype(np.int64),
        shape=x.shape[1:],
        names=spec.classes or numbered(int(y.max()) + 1),
        prepare=pixels if x.dtype == np.uint8 else as_floats,
        owners=owners[0] if owners else None,
    )


def _arrays(file: Path, names: list[str]) -> list[npt.NDArray[Any]]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            if missing := [name for name in names if name not in archive.files]:
                raise BadInput(
                    f"{file.absolute()} has no array {', '.join(missing)}; it has {', '.join(archive.files)}"
                )
            return [archive[name] for name in names]
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        # A file of one array is no context manager, and an array of objects would have to be unpickled.
        raise BadInput(f"{file.absolute()} is no NumPy archive of plain arrays: {error}") from error
