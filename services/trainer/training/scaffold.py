"""SCAFFOLD on the client: control variates against its drift (Karimireddy et al. 2019, algorithm 1, option II).

All vectors are float32 and have a value for each parameter, in the order of the model file. `server` is c, `own` c_i,
both zero before a client's first round. Buffers, such as a running mean, have no gradient, and no control.
"""

import math

import numpy as np
import torch
from torch import Tensor

from shared.aggregation.weights import Flat, Layout


def correction(server: Flat, own: Flat, layout: Layout) -> dict[str, Tensor]:
    """c − c_i by tensor name: what `learning.train` adds to the gradient of each batch."""
    difference, start, found = server - own, 0, {}
    for tensor in layout.trained:
        if tensor.name not in layout.buffers:
            stop = start + math.prod(tensor.shape)
            found[tensor.name] = torch.from_numpy(difference[start:stop].reshape(tensor.shape))
            start = stop
    return found


def renewed(server: Flat, own: Flat, update: Flat, *, lr: float, steps: float) -> tuple[Flat, Flat]:
    """The client's new control c_i⁺ = c_i − c + (x − y_i) / (K · lr), and what changed, c_i⁺ − c_i.

    `update` is y_i − x, what training changed, and `lr` the round's learning rate: with 0 nothing is learnt of the
    gradient, and the control stays. `steps` is K for plain SGD. With momentum or FedProx a gradient moves the client
    further or less than lr, and K is `normaliser.normaliser` of its steps, so that c_i⁺ is a mean of gradients still.
    """
    if lr == 0:
        return own.copy(), np.zeros_like(own)
    change: Flat = np.multiply(update, -1 / (lr * steps), dtype=np.float32)
    change -= server
    return own + change, change
