"""bfloat16: the upper half of each float32, rounded to nearest; ties go to the even one, as IEEE 754 has it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.aggregation.compression.encoding import Lossy, check_encodable
from shared.aggregation.weights import TILE, Flat, Layout, Place, tiles_of

LARGEST = float(np.array(0x7F7F0000, np.uint32).view(np.float32))  #: above it, bfloat16 has only Inf


class Bfloat16(Lossy):
    """Half the bytes; each value within 2^-8 of itself."""

    def __init__(self, plain: Layout) -> None:
        super().__init__(plain, {"values": ("BF16", (plain.parameters,))})

    def _encode(self, values: Flat, views: Mapping[str, npt.NDArray[Any]]) -> None:
        check_encodable(values, LARGEST)
        codes = views["values"]
        for place, tile in tiles_of(values):
            bits = tile.view(np.uint32)
            rounded = bits >> 16
            rounded &= 1  # the last bit that stays: where it is odd, a tie goes up
            rounded += bits
            rounded += 0x7FFF
            rounded >>= 16
            codes[place] = rounded

    def _tiles(self, views: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[Place, Flat]]:
        codes = views["values"]
        bits = np.empty(min(self.parameters, TILE), np.uint32)
        for start in range(0, self.parameters, TILE):
            tile = codes[start : start + TILE]
            widened = bits[: tile.size]
            np.left_shift(tile, 16, out=widened, dtype=np.uint32)
            yield slice(start, start + tile.size), widened.view(np.float32)
