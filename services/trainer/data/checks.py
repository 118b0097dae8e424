"""Numbers that a model can be trained on, or the sentence that says which of them are none."""

from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import Floats, Labels
from shared.errors import BadInput

LARGEST = int(np.iinfo(np.int64).max)  #: a −1 that was made unsigned lies beyond it, and would become −1 again

Array = npt.NDArray[Any]


def floats(x: Array, what: str) -> Floats:
    """A copy of x (n, …) as float32, in C order; `BadInput` where a value is NaN, infinite or beyond float32.

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
    """A copy of y (n,), or (n, 1), as int64; `BadInput` where these are no classes of `examples` examples.

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
