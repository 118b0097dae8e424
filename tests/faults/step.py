"""A local step that takes as long as it is told: long enough to be hit, and with the same result every time."""

import os
import signal
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

_never = threading.Event()
GLANCE = 0.02  #: seconds between two looks at whether the round is over


def train(
    model: nn.Module, x: Tensor, y: Tensor, *, client: str, round: int, seed: int,  # noqa: A002 - the interface
    stopped: Callable[[], bool], seconds: float = 0.2,
) -> dict[str, float]:  # fmt: skip
    """One gradient step on all of the client's examples, then the rest of `seconds`."""
    loss = functional.cross_entropy(model(x), y)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(0.1 * gradient)
    left = seconds
    while left > 0 and not stopped():
        _never.wait(min(GLANCE, left))
        left -= GLANCE
    return {"train_loss": float(loss)}


def poison(
    model: nn.Module, x: Tensor, y: Tensor, *, client: str, round: int, seed: int, victim: str  # noqa: A002
) -> dict[str, float]:  # fmt: skip
    """A client whose data ends the process, as one that exhausts its memory does."""
    if client == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}
