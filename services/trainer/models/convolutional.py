"""Plain stacks of convolutions for small images: a CNN of any depth, VGG-9 and VGG-11."""

from torch import nn

from services.trainer.models.shapes import Shape, ending_in, image


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
