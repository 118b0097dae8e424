"""The user's own data set: its members are looked at once, and whatever it gives before anything is trained on it."""

from collections.abc import Iterable
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from services.trainer.data.source import Floats, Labels, floats, labels
from shared.errors import BadInput

Array = npt.NDArray[Any]

MOST_CLASSES = 1_000_000  #: limit of classes: a model's last layer has an output for each

_ABSENT = object()


class OwnData:
    """Data set of the user's code, as `dataset.Dataset` has it; `BadInput` names a member that is not as it must be.

    All examples are copies: what a local step does to them in place is gone with the step.
    """

    def __init__(self, given: Any, name: str) -> None:
        found = {member: _member(given, member, name) for member in ("client", "test", "shape", "classes")}
        missing = [member for member in ("client", "test") if not callable(found[member])]
        missing += [member for member in ("shape", "classes") if found[member] is _ABSENT]
        if missing:
            raise BadInput(
                f"data.name: {name} gave a {type(given).__name__} without {', '.join(missing)}; "
                "a data set has client(name, index), test(), shape and classes"
            )
        self._given = given
        self.shape = _shape(found["shape"], name)
        self.classes = _classes(found["classes"], name)

    def client(self, name: str, index: int) -> tuple[Floats, Labels]:
        """One client's examples: x (n, *shape) and y (n,)."""
        return self._checked(self._asked(f"client({name!r}, {index})", name, index), f"client({name!r}, {index})")

    def test(self) -> tuple[Floats, Labels] | None:
        """The held-out test set, or None if there is none."""
        found = self._asked("test()")
        return None if found is None else self._checked(found, "test()")

    def _asked(self, call: str, *arguments: Any) -> Any:
        try:
            return (self._given.client if arguments else self._given.test)(*arguments)
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(f"data: {call} failed: {type(error).__name__}: {error}") from error

    def _checked(self, found: Any, call: str) -> tuple[Floats, Labels]:
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise BadInput(f"data: {call} gave a {type(found).__name__}; it gives a pair (x, y)")
        x, y = (_array(part, f"data: {call} gave {name}") for part, name in zip(found, "xy", strict=True))
        if not x.size and not y.size:
            return np.empty((0, *self.shape), np.float32), np.empty(0, np.int64)
        if x.ndim == 0 or x.shape[1:] != self.shape:
            raise BadInput(
                f"data: {call} gave x of shape {list(x.shape)}; its member shape says "
                f"(n, {str(list(self.shape))[1:-1]})"
            )
        return floats(x, f"data: {call} gave x"), labels(y, len(x), self.classes, f"data: {call} gave y")


def _member(given: Any, member: str, name: str) -> Any:
    """A member as it is, or `_ABSENT`; `BadInput` if it is a property that fails."""
    try:
        return getattr(given, member, _ABSENT)
    except Exception as error:
        raise BadInput(
            f"data.name: the member {member} of what {name} gave failed: {type(error).__name__}: {error}"
        ) from error


def _array(value: Any, what: str) -> Array:
    """An array of numbers, whatever it came in: NumPy's, torch's, pandas' or lists."""
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().resolve_conj().resolve_neg()
            if value.is_floating_point() and value.dtype != torch.float64:
                value = value.to(torch.float32)  # NumPy lacks some of torch's dtypes, such as bfloat16
            value = value.numpy()
        if np.ma.is_masked(value):
            raise BadInput(f"{what} with values that are masked; leave these examples out, or fill them in")
        found = np.asarray(value)
        if found.dtype.kind == "O" and found.ndim:  # a pandas table whose columns have numbers of several kinds
            found = np.asarray(found.tolist())
            # Missing values become NaN, which `floats` refuses.
            found = found.astype(np.float64) if found.dtype.kind == "O" else found
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BadInput(f"{what}, which is no array of numbers: {error}") from error
    if found.dtype.kind not in "fiub":
        raise BadInput(f"{what} of {found.dtype}, which is no array of numbers")
    return found


def _shape(given: Any, name: str) -> tuple[int, ...]:
    found = _sizes(given)
    if found is None or any(size < 1 for size in found):
        raise BadInput(
            f"data.name: the member shape of what {name} gave is {str(given)[:80]!r} ({type(given).__name__}); it is "
            "the shape of one example, such as (5,) or (1, 28, 28)"
        )
    return found


def _sizes(given: Any) -> tuple[int, ...] | None:
    try:
        return (index(given),)
    except TypeError:
        try:
            return tuple(map(index, given)) if isinstance(given, Iterable) else None
        except TypeError:
            return None


def _classes(given: Any, name: str) -> int:
    try:
        found = index(given)
    except TypeError:
        found = 0
    if not 1 <= found <= MOST_CLASSES:
        raise BadInput(
            f"data.name: the member classes of what {name} gave is {str(given)[:80]!r} ({type(given).__name__}); it is "
            f"how many classes there are, such as 10, at most {MOST_CLASSES}"
        )
    return found
