"""Networks for sequences of token ids: a recurrent one, and an encoder with attention that sees images in patches too.

The ids come as float32, as all examples do, exact up to 2^24; `classes` is the vocabulary, so they are below it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.trainer.models.feed_forward import Shape, image, sequence
from shared.errors import BadInput


class CharLstmNetwork(nn.Module):
    """The next token after a sequence (n, length), from the last state of an LSTM: logits (n, classes).

    LEAF's model for Shakespeare (Caldas et al. 2018), 0.82 M parameters for its vocabulary of 80.
    """

    def __init__(self, shape: Shape, classes: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        sequence("char_lstm", shape)
        self.embedding = nn.Embedding(classes, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(x.long()))
        return self.head(states[:, -1])  # type: ignore[no-any-return]


class TransformerNetwork(nn.Module):
    """An encoder (Vaswani et al. 2017) with learnt positions, read off at an extra token (Dosovitskiy et al. 2020).

    Takes token ids (n, length), or images (n, channels, height, width) cut into patches; gives logits (n, classes).
    """

    def __init__(
        self, shape: Shape, classes: int, *, width: int, heads: int, layers: int, dropout: float, patch: int
    ) -> None:
        super().__init__()
        if len(shape) == 3:
            channels, *sides = image("transformer", shape)
            if any(side % patch for side in sides):
                raise BadInput(
                    f"model.patch is {patch}: patches of so many pixels a side do not fill an image of "
                    f"{sides[0]}×{sides[1]}; take a divisor of both"
                )
            length = sides[0] // patch * (sides[1] // patch)
            self.embedding: nn.Module = nn.Sequential(nn.Conv2d(channels, width, patch, stride=patch), _Flattened())
        else:
            length = sequence("transformer", shape)
            self.embedding = nn.Sequential(_Ids(), nn.Embedding(classes, width))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*[Block(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        inputs = torch.cat([self.token.expand(len(x), -1, -1), self.embedding(x)], 1)
        states = self.blocks(self.dropout(inputs + self.positions))
        return self.head(self.norm(states[:, 0]))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention, then two linear layers, each a correction to its normalized input: (n, length, width).

    The layers are plain linear ones: torch's own encoder reads its weights past the adapters around them.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        query, key, value = (
            part(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.output(attended))
        return x + self.layers(x)  # type: ignore[no-any-return]


class _Ids(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.long()


class _Flattened(nn.Module):
    """(n, width, rows, columns) to (n, rows · columns, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)
