"""Networks from before the deep ones: for anything that is flat, and for small images."""

import math

from torch import nn

from services.trainer.models.shapes import Shape, ending_in, image


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
