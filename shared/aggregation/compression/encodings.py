"""Encodings that a job file can name: bfloat16, integers by blocks, and the largest values alone.

Blocks of int8 and int4 are symmetric, rounded to nearest with ties to even, scale = max|v| / n: the quantization of
8-bit optimizers by blocks (Dettmers et al. 2022), with evenly spaced levels; a value is off by half a scale at most.
The largest values travel with their places (Aji and Heafield 2017); the residual keeps what is left out.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from shared.aggregation.compression.encoding import LARGEST, Encoding, LossyEncoding, PlainEncoding, check_encodable
from shared.aggregation.weights import TILE, Flat, Layout, Place, tiles_of
from shared.errors import BadInput, Refused
from shared.job.catalog.compression import Bf16, EncodingSpec, Int4, Int8, TopK

BF16_LARGEST = float(np.array(0x7F7F0000, np.uint32).view(np.float32))  #: above it, bfloat16 has only Inf


class Bfloat16(LossyEncoding):
    """Half the bytes; each value within 2^-8 of itself."""

    def __init__(self, plain: Layout) -> None:
        super().__init__(plain, {"values": ("BF16", (plain.parameters,))})

    def _encode(self, values: Flat, views: Mapping[str, npt.NDArray[Any]]) -> None:
        check_encodable(values, BF16_LARGEST)
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


#: A block with a smaller scale becomes zeros: below it float32 has too few digits left to divide by.
SMALLEST = np.finfo(np.float32).tiny

Integers = npt.NDArray[np.int8]


class Blocks(LossyEncoding):
    """What int8 and int4 share: all but how their integers are stored."""

    top: ClassVar[int]  #: n, the largest integer; the smallest is −n
    packed: ClassVar[int]  #: integers in a byte
    dtype: ClassVar[str]  #: of these bytes

    def __init__(self, plain: Layout, block: int) -> None:
        self.block = block
        tensors = {
            "codes": (self.dtype, (-(-plain.parameters // self.packed),)),
            "scales": ("F32", (-(-plain.parameters // block),)),
        }
        super().__init__(plain, tensors)

    def _encode(self, values: Flat, views: Mapping[str, npt.NDArray[Any]]) -> None:
        codes, scales = views["codes"], views["scales"]
        for start, stop, width in self._runs():
            rows = values[start:stop].reshape(-1, width)
            found = self._scales_of(rows)
            scales[start // self.block : -(-stop // self.block)] = found
            quotients = rows / np.where(found == 0, np.float32(np.inf), found)[:, np.newaxis]
            np.rint(quotients, out=quotients)
            self._store(quotients.reshape(-1).astype(np.int8), codes[self._bytes(start, stop)])

    def _tiles(self, views: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[Place, Flat]]:
        codes, scales = views["codes"], views["scales"]
        if not (scales.min() >= 0 and scales.max() <= LARGEST / 128):  # False for NaN; below, no product is Inf
            raise Refused(f"a scale is negative, NaN, Inf or above {LARGEST / 128:.4g}")
        buffer = np.empty(min(self.parameters, TILE) + 1, np.float32)  # of an odd number, the last byte holds one more
        for start, stop, width in self._runs():
            tile = self._load(codes[self._bytes(start, stop)], buffer)[: stop - start]
            rows = tile.reshape(-1, width)
            rows *= scales[start // self.block : -(-stop // self.block), np.newaxis]
            yield slice(start, stop), tile

    def _runs(self) -> Iterator[tuple[int, int, int]]:
        """Whole blocks, as many as a tile holds, and the rest as a block of its own: start, stop, values in a block."""
        whole = self.parameters - self.parameters % self.block
        step = TILE // self.block * self.block
        for start in range(0, whole, step):
            yield start, min(start + step, whole), self.block
        if whole < self.parameters:
            yield whole, self.parameters, self.parameters - whole

    def _scales_of(self, rows: Flat) -> Flat:
        peaks: Flat = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        if not float(peaks.max()) <= LARGEST:
            raise Refused("holds NaN or Inf")
        scales: Flat = peaks / np.float32(self.top)
        # Rounded up, n times a scale could be more than any value was, and than limits.max_abs allows.
        above = scales * np.float32(self.top) > peaks
        scales[above] = np.nextafter(scales[above], np.float32(0))
        scales[scales < SMALLEST] = 0
        return scales

    def _bytes(self, start: int, stop: int) -> slice:
        return slice(start // self.packed, -(-stop // self.packed))

    def _store(self, integers: Integers, codes: npt.NDArray[Any]) -> None:
        raise NotImplementedError

    def _load(self, codes: npt.NDArray[Any], buffer: Flat) -> Flat:
        """The integers of some bytes, as float32 in `buffer`."""
        raise NotImplementedError


class EightBits(Blocks):
    """−127 to 127, one in a byte."""

    top, packed, dtype = 127, 1, "I8"

    def _store(self, integers: Integers, codes: npt.NDArray[Any]) -> None:
        codes[:] = integers

    def _load(self, codes: npt.NDArray[Any], buffer: Flat) -> Flat:
        tile = buffer[: codes.size]
        tile[:] = codes
        return tile


class FourBits(Blocks):
    """−7 to 7, two in a byte: the first is its lower half."""

    top, packed, dtype = 7, 2, "U8"

    def _store(self, integers: Integers, codes: npt.NDArray[Any]) -> None:
        if integers.size % 2:
            integers = np.append(integers, np.int8(0))
        halves = integers.view(np.uint8) & 0xF
        np.bitwise_or(halves[0::2], halves[1::2] << 4, out=codes)

    def _load(self, codes: npt.NDArray[Any], buffer: Flat) -> Flat:
        tile = buffer[: 2 * codes.size]
        np.take(_PAIRS, codes, out=tile.view(np.float64), mode="clip")
        return tile


def _pairs() -> npt.NDArray[np.float64]:
    """The two integers of each byte, as float32 side by side in 8 bytes, so that both are one look-up."""
    nibbles = (np.arange(16) ^ 8) - 8  # two's complement of 4 bits
    pairs = np.empty((256, 2), np.float32)
    pairs[:, 0], pairs[:, 1] = np.tile(nibbles, 16), np.repeat(nibbles, 16)
    return pairs.reshape(-1).view(np.float64)


_PAIRS = _pairs()


class Largest(LossyEncoding):
    """k = max(1, ⌈ratio · n⌉) of n parameters, as they are; of equally large ones those that come first."""

    def __init__(self, plain: Layout, ratio: float) -> None:
        size = plain.parameters
        if size >= 2**31:
            raise BadInput(f"compress: topk counts places in 31 bits, and the model has {size} parameters")
        self.count = min(size, max(1, math.ceil(ratio * size)))
        super().__init__(plain, {"places": ("I32", (self.count,)), "values": ("F32", (self.count,))})

    def _encode(self, values: Flat, views: Mapping[str, npt.NDArray[Any]]) -> None:
        check_encodable(values)
        # The k-th largest magnitude is one number, however it is found; places by argpartition would be the sort's own
        # choice among equals.
        magnitudes = np.abs(values)
        magnitudes.partition(self.parameters - self.count)
        threshold = magnitudes[self.parameters - self.count]
        equals = self.count - int(np.count_nonzero(magnitudes[self.parameters - self.count :] > threshold))
        found = 0
        for place, tile in tiles_of(values):
            sizes = np.abs(tile)
            chosen = sizes > threshold
            if equals:
                first = np.flatnonzero(sizes == threshold)[:equals]
                chosen[first] = True
                equals -= first.size
            here = np.flatnonzero(chosen)
            views["values"][found : found + here.size] = tile[here]
            views["places"][found : found + here.size] = here + place.start
            found += here.size

    def _tiles(self, views: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[Place, Flat]]:
        places, values = views["places"], views["values"]
        if places[0] < 0 or places[-1] >= self.parameters or not (places[1:] > places[:-1]).all():
            raise Refused(f"its places are not ascending from 0 to {self.parameters - 1}, each once")
        for start in range(0, self.count, TILE):
            stop = start + TILE
            yield places[start:stop].astype(np.intp), values[start:stop]


def encoding_of(spec: EncodingSpec | None, plain: Layout) -> Encoding:
    """How vectors travel that, uncompressed, would be the float32 tensors of `plain`: as those where spec is None."""
    match spec:
        case None:
            return PlainEncoding(plain)
        case Bf16():
            return Bfloat16(plain)
        case Int8():
            return EightBits(plain, spec.block)
        case Int4():
            return FourBits(plain, spec.block)
        case TopK():
            return Largest(plain, spec.ratio)
