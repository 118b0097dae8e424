"""Protocols of the code that a job file may name by `module:attribute`: data set, model, local step and strategy.

Type your own code against them; nothing has to inherit from them. `docs/guide/own_code.md` says what each must do. A
policy that selects clients is part of fedq and not of a job: its protocol is `SelectionPolicy` in
`services.aggregator.selection.policy`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from shared.aggregation.strategies.strategy import Counted, Tile

if TYPE_CHECKING:  # torch takes a second to import, and only trainers have it
    from torch import Tensor, nn

__all__ = [
    "Counted",
    "DataFactory",
    "DataSet",
    "LocalStep",
    "ModelFactory",
    "ServerStrategy",
    "StrategyFactory",
    "Tile",
]


class DataSet(Protocol):
    """Examples of a job's clients. Arrays of any number type, tensors and lists are accepted."""

    @property
    def shape(self) -> int | Sequence[int]:
        """Shape of one example, without the number of examples."""

    @property
    def classes(self) -> int:
        """Number of labels, which are 0 to `classes` − 1."""

    def client(self, name: str, index: int, /) -> tuple[Any, Any]:
        """Returns one client's examples: x (n, *shape) and y (n,) or (n, 1)."""

    def test(self) -> tuple[Any, Any] | None:
        """Returns the held-out test set like a client's examples, or None if there is none."""


class LocalStep(Protocol):
    """Training of one client for one round; `args` of the job file come as further keyword arguments."""

    def __call__(
        self,
        model: "nn.Module",
        x: "Tensor",
        y: "Tensor",
        *,
        client: str,
        round: int,  # noqa: A002 - the name that a step is called with
        seed: int,
    ) -> Mapping[str, float]:
        """Trains `model` in place on x (n, *shape) and y (n,); returns at most 64 metrics by name."""


class ServerStrategy(Protocol):
    """Server step: makes the next model of the last one and of the weighted mean of the updates.

    An object may also have `state`, `weight(update)`, `scale(update)` and `factor(updates)`, where an update is a
    `Counted`.
    """

    def step(self, model: Tile, mean: Tile, state: dict[str, Tile], /) -> Tile:
        """Returns the next model at some positions: all are tiles (n,) of the same ones; changes `state` in place."""


#: Functions that a job file names; `args` come as keyword arguments.
DataFactory = Callable[..., DataSet]
ModelFactory = Callable[..., "nn.Module"]
StrategyFactory = Callable[..., ServerStrategy]
