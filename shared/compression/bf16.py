"""bfloat16: the upper half of each float32, rounded to nearest; ties go to the even one, as IEEE 754 has it."""

from collections.abc import Iterator

import numpy as np

from shared.compression.encoding import Encoding, check_encodable
from shared.weights import TILE, File, Flat, Place, layout_of, tiles_of

LARGEST = float(np.array(0x7F7F0000, np.uint32).view(np.float32))  #: above it, bfloat16 has only Inf


class Bfloat16(Encoding):
    """Half the bytes; each value within 2^-8 of itself."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.layout = layout_of({"values": ("BF16", (size,))})

    def encode(self, values: Flat, file: File) -> None:
        check_encodable(values, LARGEST)
        codes = self.layout.views(file)["values"]
        for place, tile in tiles_of(values):
            bits = tile.view(np.uint32)
            rounded = bits >> 16
            rounded &= 1  # the last bit that stays: where it is odd, a tie goes up
            rounded += bits
            rounded += 0x7FFF
            rounded >>= 16
            codes[place] = rounded

    def tiles(self, file: File) -> Iterator[tuple[Place, Flat]]:
        codes = self.layout.views(file)["values"]
        bits = np.empty(min(self.size, TILE), np.uint32)
        for start in range(0, self.size, TILE):
            tile = codes[start : start + TILE]
            widened = bits[: tile.size]
            np.left_shift(tile, 16, out=widened, dtype=np.uint32)
            yield slice(start, start + tile.size), widened.view(np.float32)
