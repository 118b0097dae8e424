"""Example of your own network: any `torch.nn.Module` that a function returns can be trained."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions that learn a correction to their input (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            # Groups instead of batches: statistics of a batch are one client's, and average badly.
            nn.GroupNorm(4, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(4, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


def residual(shape: tuple[int, int, int], classes: int, width: int = 16) -> nn.Module:
    """Returns the network: `model.name` names this; `shape` and `classes` are the data's, `width` is from `args`."""
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1),
        nn.ReLU(),
        Block(width),
        nn.MaxPool2d(2),
        Block(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )
