"""What an encoding is: how P float32 values are written into a smaller file, and read again tile by tile."""

from collections.abc import Iterator

import numpy as np

from shared.errors import Refused
from shared.weights import File, Flat, Layout, Place, tiles_of

LARGEST = float(np.finfo(np.float32).max)


class Encoding:
    """One way to write vectors of shape (P,). The same values give the same bytes, wherever and whenever.

    A file that is encoded into is `layout.empty_file()`. One that is read has passed
    `weights.check_header(file, layout)`, and nothing else about it is taken for granted.
    """

    size: int  #: P
    layout: Layout  #: of the file; its size depends on P alone

    def encode(self, values: Flat, file: File) -> None:
        """Writes values of shape (P,) into a whole file; `Refused` where they hold NaN or Inf."""
        raise NotImplementedError

    def tiles(self, file: File) -> Iterator[tuple[Place, Flat]]:
        """The decoded values and their places, ascending and each at most once; what is left out is 0.

        `Refused` where the file's places or scales cannot be: before the first tile. That the values are finite and
        within their limits is for `fold.check` to find.
        """
        raise NotImplementedError

    def decode_into(self, file: File, out: Flat) -> None:
        """Expands a file into an array of shape (P,)."""
        out.fill(0)
        for place, values in self.tiles(file):
            out[place] = values


class Plain(Encoding):
    """The values themselves, in the tensors of `layout`: what travels uncompressed."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.size = layout.size

    def encode(self, values: Flat, file: File) -> None:
        check_encodable(values)
        self.layout.flat(file)[:] = values

    def tiles(self, file: File) -> Iterator[tuple[Place, Flat]]:
        yield from tiles_of(self.layout.flat(file))


def check_encodable(values: Flat, largest: float = LARGEST) -> None:
    """Raises `Refused` where a value of (P,) is NaN, Inf or of a greater magnitude than `largest`."""
    for _, tile in tiles_of(values):
        high, low = float(tile.max()), float(tile.min())
        if not (high <= LARGEST and low >= -LARGEST):  # NaN passes through max and min, and compares to nothing
            raise Refused("holds NaN or Inf")
        if max(high, -low) > largest:
            raise Refused(f"a value of {max(high, -low):.4g} is too large to be encoded: at most {largest:.4g}")
