"""The gradient of a batch: computed in mixed precision if the job asks for it, and changed before the optimizer's step.

It is changed in this order: FedProx's term, which belongs to the client's objective; the clipping of that objective's
gradient; the correction of SCAFFOLD, unclipped, so that the mean step of a client is that of its own clipped gradients
plus the correction, which is what `strategy_steps.renewed_control` takes it to be.

Mixed precision takes half the memory of a GPU's full float32, and is several times as fast (Micikevicius et al. 2017).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from services.trainer.training.optimizers import Gradients
from shared.job.catalog.training import TrainSpec

#: Gives new tensors: two parameters' gradients may share their memory. Called without autograd.
Change = Callable[[Gradients], Gradients]


def changes_of(
    spec: TrainSpec, parameters: Sequence[nn.Parameter], correction: Sequence[Tensor] | None = None
) -> list[Change]:
    """The changes that a job asks for, in their order; the parameters must still be those of the round's model."""
    changes: list[Change] = []
    if spec.fedprox is not None:
        changes.append(_proximal(parameters, spec.fedprox.mu))
    if spec.clip_norm is not None:
        changes.append(_clipped(spec.clip_norm))
    if correction is not None:
        changes.append(_corrected(correction))
    return changes


def corrections(parameters: Mapping[str, nn.Parameter], given: Mapping[str, Tensor]) -> list[Tensor]:
    """The correction of each parameter, on its device; zeros for one that none is given for."""
    return [
        given[name].to(parameter) if name in given else torch.zeros_like(parameter)
        for name, parameter in parameters.items()
    ]


def _proximal(parameters: Sequence[nn.Parameter], mu: float) -> Change:
    """The gradient of mu/2 · ‖w − w_round‖², which is mu · (w − w_round) (Li et al. 2018)."""
    begin = [parameter.detach().clone() for parameter in parameters]

    def change(gradients: Gradients) -> Gradients:
        return [
            None if gradient is None else gradient.add(parameter - first, alpha=mu)
            for gradient, parameter, first in zip(gradients, parameters, begin, strict=True)
        ]

    return change


def _clipped(limit: float) -> Change:
    """Scales the gradient of all parameters together to an L2 norm of at most `limit` (Pascanu et al. 2013)."""

    def change(gradients: Gradients) -> Gradients:
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients if gradient is not None]
        if not norms:
            return gradients
        # Stays a tensor: reading it would make the CPU wait for the GPU.
        factor = (limit / torch.linalg.vector_norm(torch.stack(norms))).clamp(max=1)
        return [None if gradient is None else gradient * factor for gradient in gradients]

    return change


def _corrected(correction: Sequence[Tensor]) -> Change:
    """Adds c − c_i (Karimireddy et al. 2019); if the loss does not reach a parameter, its gradient is zero."""

    def change(gradients: Gradients) -> Gradients:
        return [
            term if gradient is None else gradient + term for gradient, term in zip(gradients, correction, strict=True)
        ]

    return change


def lower_precision(spec: TrainSpec, device: torch.device) -> torch.dtype | None:
    """The dtype of a job's mixed precision on this device; None, which is float32, unless it is CUDA.

    It is bfloat16 if the GPU has that, which needs no scaling, otherwise float16.
    """
    if spec.precision == "full" or device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the loss is computed, batch after batch."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class ScaledLoss:
    """Steps by a scaled loss, whose gradient does not vanish in float16; the parameters stay float32.

    The scale begins at torch's 2^16 with each client. A step whose gradient overflows is left out and halves it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type)
        self._parameters = parameters
        #: The only attribute of an optimizer that the scaler looks at.
        self.param_groups = [{"params": parameters}]
        self._take: Callable[[Gradients], None] | None = None

    def __call__(self, loss: Tensor, take: Callable[[Gradients], None]) -> None:
        """Takes a step with the gradient of `loss` if that is finite."""
        found = torch.autograd.grad(self._scaler.scale(loss), self._parameters, allow_unused=True)
        optimizer, self._take = cast(Optimizer, self), take
        for parameter, gradient in zip(self._parameters, found, strict=True):
            parameter.grad = gradient
        self._scaler.step(optimizer)  # unscales the gradients first
        self._scaler.update()
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Takes the step; the scaler calls this with gradients that are unscaled and finite."""
        assert self._take is not None  # noqa: S101
        self._take([parameter.grad for parameter in self._parameters])
