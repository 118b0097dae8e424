"""Residual networks (He et al. 2016) for small images: those of ImageNet with a 3×3 stem, and those of CIFAR."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.trainer.models.shapes import Shape, ending_in, image

Norm = Callable[[int], nn.Module]

_DEEP = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  #: blocks of each stage; the others have (depth − 2) / 6 in each of three


def resnet(shape: Shape, classes: int, depth: int, norm: str) -> nn.Module:
    """A residual network of `depth` layers for images of any size; the first stage sees every pixel.

    Depth 20, 32, 44 and 56: three stages of 16, 32 and 64 channels, shortcuts without parameters (option A), 0.27 M
    parameters for 20. Depth 18 and 50: four stages of 64 to 512 channels, shortcuts by 1×1 convolution where the shape
    changes, 11.2 M and 23.5 M. `norm` is batch, or group: 16 channels a group (Wu and He 2018).
    """
    channels, _, _ = image("resnet", shape)
    normed: Norm = nn.BatchNorm2d if norm == "batch" else _group_norm
    deep = depth in _DEEP
    widths = (64, 128, 256, 512) if deep else (16, 32, 64)
    blocks = _DEEP.get(depth, ((depth - 2) // 6,) * 3)
    layers: list[nn.Module] = [_convolution(channels, widths[0], 3), normed(widths[0]), nn.ReLU()]
    before = widths[0]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for place in range(count):
            stride = 2 if stage and not place else 1
            block = (
                Bottleneck(before, width, stride, normed) if depth == 50 else Basic(before, width, stride, normed, deep)
            )
            layers.append(block)
            before = block.width
    model = ending_in(nn.Linear(before, classes), [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class Basic(nn.Module):
    """Two 3×3 convolutions that learn a correction to their input."""

    def __init__(self, before: int, width: int, stride: int, norm: Norm, projected: bool) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            _convolution(before, width, 3, stride),
            norm(width),
            nn.ReLU(),
            _convolution(width, width, 3),
            norm(width),
        )
        self.shortcut = _shortcut(before, width, stride, norm) if projected else Padded(width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3×3 convolution between two of 1×1, the last of four times the channels."""

    def __init__(self, before: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.width = 4 * width
        self.layers = nn.Sequential(
            _convolution(before, width, 1),
            norm(width),
            nn.ReLU(),
            _convolution(width, width, 3, stride),
            norm(width),
            nn.ReLU(),
            _convolution(width, self.width, 1),
            norm(self.width),
        )
        self.shortcut = _shortcut(before, self.width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


class Padded(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the channels that are new."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.width, self.stride = width, stride

    def forward(self, x: Tensor) -> Tensor:
        if (new := self.width - x.shape[1]) == 0:
            return x
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, new // 2, new - new // 2))


def _shortcut(before: int, after: int, stride: int, norm: Norm) -> nn.Module:
    """Option B: the input as it is, or through a 1×1 convolution where the shape changes."""
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(_convolution(before, after, 1, stride), norm(after))


def _convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // 16, channels)
