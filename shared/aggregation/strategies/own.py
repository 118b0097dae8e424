"""The user's own strategy, by `module:attribute`: called through checks that say what is wrong with it."""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.aggregation.strategies.strategy import Counted, State, Strategy, Tile
from shared.errors import BadInput
from shared.job import user_code
from shared.job.catalog.strategies import CustomStrategy

_MOST = float(np.finfo(np.float32).max)  # models and states are float32 in the store
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")  # of a vector: a part of a key in the store


def own(spec: CustomStrategy, population: int) -> Strategy:
    """The strategy that the user's factory makes of `args`, and of `clients`, how many there are, if it takes that."""
    where = f"strategy.name: {spec.name}"
    user_code.check_unchanged("strategy")
    factory = _asked(f"{where}: importing it", user_code.find, spec.name, "strategy")
    return Own(_asked(where, user_code.call, factory, spec.args, {"clients": population}), where)


class Own(Strategy):
    """An object with `step`, and where it wants them `state`, `weight`, `scale` and `factor`, as `Strategy` has them.

    `state` may be names alone, of vectors that are zero at first, or names with what they are filled with.
    """

    def __init__(self, made: Any, where: str) -> None:
        self._where = where
        step = getattr(made, "step", None)
        if not callable(step):
            raise BadInput(f"{where} made a {type(made).__name__} that has no step(model, mean, state)")
        self._step: Callable[..., Any] = step
        self._weight, self._scale, self._factor = (getattr(made, name, None) for name in ("weight", "scale", "factor"))
        self.state = self._starts(getattr(made, "state", ()))

    def weight(self, update: Counted) -> int:
        if self._weight is None:
            return super().weight(update)
        found = self._told("weight", self._weight, update)
        try:
            weight = operator.index(found)
        except TypeError:
            weight = 0
        if weight < 1:
            raise BadInput(f"{self._where}: weight gave {found!r} for {update.client}; it gives an integer from 1")
        return weight

    def scale(self, update: Counted) -> float:
        if self._scale is None:
            return super().scale(update)
        found = self._told("scale", self._scale, update)
        if not 0 < _number(found) <= 1:
            raise BadInput(f"{self._where}: scale gave {found!r} for {update.client}; it is above 0 and at most 1")
        return _number(found)

    def factor(self, updates: Sequence[Counted]) -> float | tuple[float, ...]:
        if self._factor is None:
            return super().factor(updates)
        found = self._told("factor", self._factor, updates)
        if not math.isfinite(_number(found)):
            raise BadInput(f"{self._where}: factor gave {found!r}; it gives a number")
        return _number(found)

    def step(self, model: Tile, mean: Tile, state: State) -> Tile:
        held = dict(state)  # one of its own: it may put new arrays into it
        shape = model.shape
        stepped = self._told("step", self._step, model, mean, held)
        if held.keys() != state.keys():
            raise BadInput(f"{self._where}: step left the state {sorted(held)}; it declares {sorted(state)}")
        for name, vector in state.items():
            vector[...] = self._checked(held[name], shape, f"the state {name}")
        return self._checked(stepped, shape, "the model")

    def _checked(self, found: Any, shape: tuple[int, ...], what: str) -> npt.NDArray[Any]:
        if not (isinstance(found, np.ndarray) and found.shape == shape and found.dtype.kind in "fiu"):
            shown = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
            raise BadInput(f"{self._where}: step made {shown} of {what}; it makes a float array {list(shape)}")
        if not np.abs(found).max(initial=0) <= _MOST:  # nor is NaN
            raise BadInput(f"{self._where}: step made NaN, Inf or what is beyond float32 of {what}")
        return found

    def _starts(self, declared: Any) -> Mapping[str, float]:
        isnt = f"{self._where}: its state is {declared!r}; it is names, or a mapping from names to numbers"
        if isinstance(declared, str | bytes) or not isinstance(declared, Iterable):
            raise BadInput(isnt)
        starts = dict(declared) if isinstance(declared, Mapping) else dict.fromkeys(declared, 0.0)
        for name, start in starts.items():
            if not (isinstance(name, str) and _NAME.fullmatch(name) and abs(_number(start)) <= _MOST):
                raise BadInput(isnt)
        return {name: _number(start) for name, start in starts.items()}

    def _told(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return _asked(f"{self._where}: {what}", function, *arguments)


def _asked(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the user's function gives; whatever it raises is their mistake, and not the aggregator's."""
    try:
        return function(*arguments)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{what} raised {type(error).__name__}: {error}") from error


def _number(found: Any) -> float:
    """As a float, or NaN where it is none."""
    try:
        return float(found)
    except (TypeError, ValueError, OverflowError):
        return math.nan
