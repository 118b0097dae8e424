"""A federation that learns nothing: its local step adds noise seeded by client and round, its model has any size.

So a round costs only what fedq itself costs, and what the folded model must be can be computed apart.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TENSORS = 16
BLOCK = 65_536  #: parameters; a block of noise is repeated, so that drawing it is not what is measured


def parameters(mb: float) -> int:
    """P of a model of `mb` MB (10⁶ bytes), a multiple of its number of tensors."""
    return max(1, int(mb * 1e6 / 4 / TENSORS)) * TENSORS


def model(mb: float) -> Any:
    """A module of float32 parameters that computes nothing."""
    import torch  # noqa: PLC0415 - the benchmark itself has no use for it

    size = parameters(mb) // TENSORS
    module = torch.nn.Module()
    for index in range(TENSORS):
        module.register_parameter(f"block{index:02d}", torch.nn.Parameter(torch.empty(size).uniform_(-1, 1)))
    return module


def examples(client: str) -> int:
    """Unequal weights: client-3 has 4 examples."""
    return int(client.rpartition("-")[2]) + 1


@dataclass(frozen=True)
class Data:
    """As many empty examples as a client weighs."""

    shape: tuple[int, ...] = (1,)
    classes: int = 2

    def client(self, name: str, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:  # noqa: ARG002
        count = examples(name)
        return np.zeros((count, 1), np.float32), np.zeros(count, np.int64)

    def test(self) -> None:
        return None


def data() -> Data:
    return Data()


def block(client: str, number: int, seed: int) -> npt.NDArray[np.float32]:
    """The noise that a client adds in a round, shape (BLOCK,), over and over along its parameters."""
    lot = hashlib.sha256(f"{seed}/{client}/{number}".encode()).digest()
    return np.random.default_rng(int.from_bytes(lot[:8])).normal(0, 0.01, BLOCK).astype(np.float32)


def pieces(size: int) -> Iterator[slice]:
    """The runs of one tensor's parameters that a block covers."""
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))


def step(model: Any, x: Any, y: Any, *, client: str, round: int, seed: int) -> dict[str, float]:  # noqa: A002, ARG001
    """The local step: adds the client's noise to every tensor, in place."""
    import torch  # noqa: PLC0415

    noise = torch.from_numpy(block(client, round, seed))
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for piece in pieces(flat.numel()):
                flat[piece] += noise[: piece.stop - piece.start]
    return {}
