"""A model that trains like any other, and whose answers are no numbers once it is only asked."""

import torch
from torch import Tensor, nn


class Unsound(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits if self.training else logits * torch.nan


def make(shape: tuple[int, ...], classes: int) -> nn.Module:
    """As `model.name` names it."""
    return Unsound(torch.Size(shape).numel(), classes)
