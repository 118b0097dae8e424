"""The largest values alone, with their places (Aji and Heafield 2017); what is left out waits in the residual."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.aggregation.compression.encoding import Lossy, check_encodable
from shared.aggregation.weights import TILE, Flat, Layout, Place, tiles_of
from shared.errors import BadInput, Refused


class Largest(Lossy):
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
