"""torchvision's classification models, by their names there."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

from services.trainer.models.feed_forward import Shape, image
from shared.errors import BadInput


def by_name(arch: str, shape: Shape, classes: int) -> nn.Module:
    """torchvision's `arch` with random weights and that many classes, for images of `shape`.

    Grey images are repeated to three channels, so that the network and the names and shapes of its tensors are those
    of its paper, and published weights fit as a start file. `BadInput` for a name that torchvision does not have as a
    classification model, and for images that the network has no way to take.
    """
    known = models.list_models(module=models)
    if arch not in known:
        close = difflib.get_close_matches(arch, known, 3) or ["resnet18", "mobilenet_v3_small"]
        raise BadInput(f"model.arch: torchvision has no classification model {arch}; it has {', '.join(close)}")
    channels, height, width = image(f"torchvision ({arch})", shape)
    if channels not in (1, 3):
        raise BadInput(f"model.arch: {arch} takes images of 1 or 3 channels, not {channels}")
    try:
        model: nn.Module = models.get_model(arch, weights=None, num_classes=classes, **_options(arch, height, width))
        if channels == 1:
            model.register_forward_pre_hook(_repeated)
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *shape))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"model.arch: {arch} does not take images of {height}×{width}: {reason}") from error
    return model.train()


def _options(arch: str, height: int, width: int) -> dict[str, Any]:
    if arch.startswith("vit_"):
        return {"image_size": height}
    if arch.startswith("maxvit_"):
        return {"input_size": (height, width)}
    if arch in ("googlenet", "inception_v3"):  # one output, not three; and the initialization that it says to choose
        return {"aux_logits": False, "init_weights": True}
    return {}


def _repeated(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """(n, 1, height, width) as (n, 3, height, width)."""
    return inputs[0].expand(-1, 3, -1, -1)
