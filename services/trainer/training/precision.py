"""Mixed precision: half the memory and several times the speed of a GPU's full float32 (Micikevicius et al. 2017)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from services.trainer.training.optimizers import Gradients
from shared.job.catalog.training import TrainSpec


def lower(spec: TrainSpec, device: torch.device) -> torch.dtype | None:
    """What a job's mixed precision computes with on this device: nothing lower than float32 where it is not CUDA.

    bfloat16 where the GPU has it, which needs no scaling, float16 elsewhere.
    """
    if spec.precision == "full" or device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """In which the loss is computed, batch after batch."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class Scaled:
    """Steps by a scaled loss, whose gradient does not vanish in float16; the parameters stay float32.

    The scale begins anew with each client, at torch's 2^16. A step whose gradient overflows is left out and halves it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type)
        self._parameters = parameters
        #: All that the scaler looks at in an optimizer.
        self.param_groups = [{"params": parameters}]
        self._take: Callable[[Gradients], None] | None = None

    def __call__(self, loss: Tensor, take: Callable[[Gradients], None]) -> None:
        """Takes a step with the gradient of `loss` where that is finite."""
        found = torch.autograd.grad(self._scaler.scale(loss), self._parameters, allow_unused=True)
        optimizer, self._take = cast(Optimizer, self), take
        for parameter, gradient in zip(self._parameters, found, strict=True):
            parameter.grad = gradient
        self._scaler.step(optimizer)  # unscales first
        self._scaler.update()
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """The scaler calls it, with gradients that are unscaled and finite."""
        assert self._take is not None  # noqa: S101
        self._take([parameter.grad for parameter in self._parameters])
