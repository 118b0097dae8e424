"""The last example of a pass, where it would be a batch by itself and batch norm cannot normalise one value.

It joins the batch before it. Nothing changes for models that can take it alone: those without batch norm, and those
whose batch norm sees images of more than a pixel.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shared.errors import BadInput


def is_normalised_alone(model: nn.Module, x: Tensor) -> bool:
    """True where a batch norm layer of a model in training gets one value a channel of one example x, (1, *shape)."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    found: list[bool] = []

    def look(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].numel() == inputs[0].shape[1])

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        model.eval()  # or statistics would learn of the example, and layers draw
        if layers:
            with torch.no_grad(), suppress(ValueError):  # of a layer without running statistics, once it was looked at
                model(x)
    finally:
        model.train()
        for hook in hooks:
            hook.remove()
    return any(found)


def check(client: str, examples: int, batch_size: int) -> None:
    """`BadInput` where there is no batch that the example could join."""
    if examples == 1:
        raise BadInput(
            f"{client} has one example to train on, and the model's batch norm cannot normalise one by itself; give it "
            "more, or take a model without batch norm"
        )
    if batch_size == 1:
        raise BadInput("train.batch_size is 1, and the model's batch norm cannot normalise one example; take 2 or more")


def split(order: Tensor, batch_size: int, *, joined: bool) -> list[Tensor]:
    """The batches of a pass, of the examples' places in `order`, shape (n,)."""
    batches = list(torch.split(order, batch_size))
    if joined:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
