"""The updates of a round as they lie in the store, read a slice at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from shared.aggregation.strategies.strategy import cut
from shared.aggregation.weights import Layout
from shared.events import BlobRef
from shared.s3.store import Blobs

AT_ONCE = 8  #: requests; each waits for the store most of its time


class Stored:
    """Plain updates of one layout, whose files were checked when they came in."""

    def __init__(self, blobs: Blobs, refs: Sequence[BlobRef], layout: Layout) -> None:
        self.count, self.size = len(refs), layout.size
        self._blobs, self._refs = blobs, refs
        self._begin = len(layout.header) + (layout.trained[0].start if layout.trained else 0)
        widest = max((stop - start for start, stop in self.spans()), default=0)
        self._buffer = np.empty((self.count, widest), np.float32)

    def spans(self) -> Sequence[tuple[int, int]]:
        return cut(self.count, self.size)

    def read(self, start: int, stop: int, rows: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        refs = self._refs if rows is None else [self._refs[row] for row in rows]
        width = stop - start
        slices = self._buffer.reshape(-1)[: len(refs) * width].reshape(len(refs), width)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(partial(self._fetch, start), refs, slices):
                pass
        return slices

    def _fetch(self, start: int, ref: BlobRef, row: npt.NDArray[np.float32]) -> None:
        self._blobs.get_span(ref, self._begin + 4 * start, row.view(np.uint8))
