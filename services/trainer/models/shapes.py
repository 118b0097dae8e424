"""What a model is given: the shape of one example, without the batch."""

from torch import nn

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
