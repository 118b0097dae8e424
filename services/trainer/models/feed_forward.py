"""Feed-forward networks of the catalog, and the checks of the shapes that they take.

A shape is that of one example, without the batch. The networks are softmax regression and perceptrons for anything that
is flat; LeNet, plain stacks of convolutions (a CNN of any depth, VGG-9 and VGG-11) and residual networks (He et al.
2016) for small images. The residual networks are those of ImageNet with a 3×3 stem, and those of CIFAR.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import BadInput

Shape = tuple[int, ...]


def image(name: str, shape: Shape, smallest: int = 1) -> tuple[int, int, int]:
    """(channels, height, width), or `BadInput` for what is no image or has fewer pixels a side than `smallest`."""
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise BadInput(
            f"model.name is {name}: it takes images (channels, height, width) from {smallest}×{smallest}, "
            f"not {list(shape)}"
        )
    channels, height, width = shape
    return channels, height, width


def sequence(name: str, shape: Shape) -> int:
    """The length of a sequence of token ids, or `BadInput` for what is none."""
    if len(shape) != 1:
        raise BadInput(f"model.name is {name}: it takes sequences of token ids (length,), not {list(shape)}")
    return shape[0]


def ending_in(head: nn.Module, layers: list[nn.Module]) -> nn.Sequential:
    """`layers`, then `head` under that name: a job file speaks of the last layer as `head`, whatever the model."""
    model = nn.Sequential(*layers)
    model.add_module("head", head)
    return model


def softmax(shape: Shape, classes: int) -> nn.Module:
    """Multinomial logistic regression on the flattened input."""
    return ending_in(nn.Linear(math.prod(shape), classes), [nn.Flatten()])


def mlp(shape: Shape, classes: int, hidden: tuple[int, ...]) -> nn.Module:
    """Fully connected layers with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    before = math.prod(shape)
    for width in hidden:
        layers += [nn.Linear(before, width), nn.ReLU()]
        before = width
    return ending_in(nn.Linear(before, classes), layers)


def lenet(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, for images of at least 4×4 pixels.

    28×28 gives the network of the paper. Below 12×12 the second convolution is padded too: nothing would be left.
    """
    channels, height, width = image("lenet", shape, 4)
    small = min(height, width) < 12
    rows, columns = (side // 2 // 2 if small else (side // 2 - 4) // 2 for side in (height, width))
    layers = [
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=2 if small else 0),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * rows * columns, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
    ]
    return ending_in(nn.Linear(84, classes), layers)


def cnn(shape: Shape, classes: int, channels: tuple[int, ...], hidden: int) -> nn.Module:
    """For each of `channels` a 3×3 convolution, ReLU and 2×2 max pooling; then one hidden layer.

    An image has at least 2 pixels a side for each pooling: 4×4 for two blocks.
    """
    before, height, width = image("cnn", shape, 2 ** len(channels))
    layers: list[nn.Module] = []
    for after in channels:
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before, height, width = after, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(before * height * width, hidden), nn.ReLU()]
    return ending_in(nn.Linear(hidden, classes), layers)


def vgg9(shape: Shape, classes: int) -> nn.Module:
    """Six convolutions of 32 to 256 channels and two hidden layers of 512: 3.49 M parameters on CIFAR-10.

    As federated learning knows it (Wang et al. 2020, FedMA), without its dropout; from 8×8 pixels.
    """
    channels, height, width = image("vgg9", shape, 8)
    layers = _convolutions(channels, (32, 64, 0, 128, 128, 0, 256, 256, 0), norm=False)
    layers += [nn.Flatten(), *_hidden(256 * (height // 8) * (width // 8))]
    return ending_in(nn.Linear(512, classes), layers)


def vgg11(shape: Shape, classes: int) -> nn.Module:
    """Configuration A of Simonyan and Zisserman 2014 with batch norm, from 32×32 pixels: 9.76 M parameters on CIFAR-10.

    Its hidden layers have 512 units, as on CIFAR; larger images are averaged to one pixel before them.
    """
    channels, _, _ = image("vgg11", shape, 32)
    layers = _convolutions(channels, (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0), norm=True)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_hidden(512)]
    return ending_in(nn.Linear(512, classes), layers)


def _convolutions(before: int, plan: tuple[int, ...], *, norm: bool) -> list[nn.Module]:
    """3×3 convolutions of so many channels, and 2×2 max pooling for each 0."""
    layers: list[nn.Module] = []
    for after in plan:
        if after:
            layers += [nn.Conv2d(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU()]
            before = after
        else:
            layers.append(nn.MaxPool2d(2))
    return layers


def _hidden(before: int) -> list[nn.Module]:
    return [nn.Linear(before, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]


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
                BottleneckBlock(before, width, stride, normed)
                if depth == 50
                else BasicBlock(before, width, stride, normed, deep)
            )
            layers.append(block)
            before = block.width
    model = ending_in(nn.Linear(before, classes), [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class BasicBlock(nn.Module):
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
        self.shortcut = _shortcut(before, width, stride, norm) if projected else PaddedShortcut(width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


class BottleneckBlock(nn.Module):
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


class PaddedShortcut(nn.Module):
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
