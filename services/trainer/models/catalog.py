"""The models that a job file may name, and the way to the user's own."""

import math

import torch
from torch import nn

from shared import user_code
from shared.catalog.models import CustomModel, LeNet, Mlp, ModelSpec, Softmax
from shared.errors import BadInput

Shape = tuple[int, ...]


def build(spec: ModelSpec, shape: Shape, classes: int, seed: int) -> nn.Module:
    """A model for examples of `shape` and that many `classes`, its weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match spec:
            case Softmax():
                return softmax(shape, classes)
            case Mlp(hidden=hidden):
                return mlp(shape, classes, hidden)
            case LeNet():
                return lenet(shape, classes)
            case CustomModel():
                return _own(spec, shape, classes, seed)
    raise NotImplementedError(spec.name)


def softmax(shape: Shape, classes: int) -> nn.Module:
    """Multinomial logistic regression on the flattened input."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp(shape: Shape, classes: int, hidden: tuple[int, ...]) -> nn.Module:
    """Fully connected layers with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    before = math.prod(shape)
    for width in hidden:
        layers += [nn.Linear(before, width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, classes))


def lenet(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, for images of at least 4×4 pixels.

    28×28 gives the network of the paper. Below 12×12 the second convolution is padded too: nothing would be left.
    """
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise BadInput(f"model.name is lenet: it takes images (channels, height, width) from 4×4, not {list(shape)}")
    channels, height, width = shape
    small = min(height, width) < 12
    rows, columns = (side // 2 // 2 if small else (side // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
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
        nn.Linear(84, classes),
    )


def _own(spec: CustomModel, shape: Shape, classes: int, seed: int) -> nn.Module:
    function = user_code.find(spec.name, "model")
    model = user_code.call(function, spec.args, {"shape": shape, "classes": classes, "seed": seed})
    if not isinstance(model, nn.Module):
        raise BadInput(f"model.name: {spec.name} gave a {type(model).__name__}, not a torch.nn.Module")
    return model
