"""SCAFFOLD on the client: control variates against its drift (Karimireddy et al. 2019, algorithm 1, option II).

All vectors are float32 of shape (P,), in the order of the model file's float32 tensors. `server` is c, `own` c_i, both
zero before a client's first round. What is no trained parameter, such as a running mean, has no gradient: its control
stays zero.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shared.weights import Flat, Layout

Mask = npt.NDArray[np.bool_]


def correction(server: Flat, own: Flat, layout: Layout) -> dict[str, Tensor]:
    """c − c_i by tensor name: what `learning.train` adds to the gradient of each batch."""
    difference = server - own
    return {name: torch.from_numpy(difference[part].reshape(shape)) for name, part, shape in _parts(layout)}


def trained(model: nn.Module, layout: Layout) -> Mask:
    """Which of the P values training has a gradient for, shape (P,)."""
    # A parameter that two modules share lies in the file under both names.
    names = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    mask = np.zeros(layout.size, np.bool_)
    for name, part, _ in _parts(layout):
        mask[part] = name in names
    return mask


def renewed(server: Flat, own: Flat, update: Flat, mask: Mask, *, lr: float, steps: float) -> tuple[Flat, Flat]:
    """The client's new control c_i⁺ = c_i − c + (x − y_i) / (K · lr), and what changed, c_i⁺ − c_i.

    `update` is y_i − x, what training changed, and `lr` the round's learning rate: with 0 nothing is learnt of the
    gradient, and the control stays. `steps` is K for plain SGD. With momentum or FedProx a gradient moves the client
    further or less than lr, and K is `normaliser.normaliser` of its steps, so that c_i⁺ is a mean of gradients still.
    """
    if lr == 0:
        return own.copy(), np.zeros_like(own)
    change: Flat = np.multiply(update, -1 / (lr * steps), dtype=np.float32)
    change -= server
    change[~mask] = 0
    return own + change, change


def _parts(layout: Layout) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
    start = 0
    for tensor in layout.trained:
        stop = start + math.prod(tensor.shape)
        yield tensor.name, slice(start, stop), tensor.shape
        start = stop
