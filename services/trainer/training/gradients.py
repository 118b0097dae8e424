"""What is done to a batch's gradient before the optimizer sees it.

In this order: FedProx's term, which belongs to the client's objective; the clipping of that objective's gradient; the
correction of SCAFFOLD, unclipped, so that the mean step of a client is that of its own clipped gradients plus the
correction, which is what `control.renewed` takes it to be.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from services.trainer.training.optimizers import Gradients
from shared.job.catalog.training import TrainSpec

#: Gives new tensors: two parameters' gradients may share their memory. Called without autograd.
Change = Callable[[Gradients], Gradients]


def changes_of(
    spec: TrainSpec, parameters: Sequence[nn.Parameter], correction: Sequence[Tensor] | None = None
) -> list[Change]:
    """What a job asks for, in the order in which it is done; the parameters are those of the round's model still."""
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
        factor = (limit / torch.linalg.vector_norm(torch.stack(norms))).clamp(max=1)  # no number leaves the device
        return [None if gradient is None else gradient * factor for gradient in gradients]

    return change


def _corrected(correction: Sequence[Tensor]) -> Change:
    """Adds c − c_i (Karimireddy et al. 2019); where the loss does not reach, the gradient is zero."""

    def change(gradients: Gradients) -> Gradients:
        return [
            term if gradient is None else gradient + term for gradient, term in zip(gradients, correction, strict=True)
        ]

    return change
