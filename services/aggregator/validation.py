"""Taking in one update: everything that is checked before it may count, cheapest first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import structlog

from shared import names
from shared.aggregation import initial_model, weights
from shared.aggregation.aggregate import Aggregation
from shared.aggregation.fold import Grid, Measures
from shared.aggregation.strategies.strategy import Counted
from shared.aggregation.weights import File
from shared.errors import FedqError, Refused, Unfit
from shared.events import BlobRef, ModelUpdate
from shared.job.catalog.rounds import LimitsSpec
from shared.s3.store import Blobs, NotFound
from shared.text import plain

log = structlog.get_logger()


class Validator:
    """Receives a job's updates one after the other into one buffer, whatever their number."""

    def __init__(self, blobs: Blobs, aggregation: Aggregation, limits: LimitsSpec) -> None:
        self._blobs = blobs
        self._aggregation = aggregation
        self._limits = limits
        self._buffer = np.empty(0, np.uint8)

    def receive(self, update: ModelUpdate, base: str, grid: Grid) -> tuple[File, Measures]:
        """The update's file, valid until the next call, and its measures.

        `Refused` where it is no answer to what was asked, `Unfit` where it is one that must not be folded.
        """
        blob = located(update)
        if update.base != base:
            raise Refused(f"was trained on the model {(update.base or 'none')[:12]}, not on {base[:12]}")
        told = [Counted(member.client, member.examples, metrics=member.metrics) for member in update.members]
        told = told or [Counted(update.client, update.examples, metrics=update.metrics)]  # not a Member: it may say 0
        return self.receive_again(blob, told, grid, self._limits.max_norm, partial=bool(update.members))

    def receive_again(
        self,
        blob: BlobRef,
        updates: Sequence[Counted],
        grid: Grid,
        max_norm: float | None = None,
        *,
        partial: bool = False,
    ) -> tuple[File, Measures]:
        """The file of an update that was accepted before, valid until the next call."""
        size = self._aggregation.layout_of(partial=partial).file_size
        if blob.size != size:
            raise self._of_another_size(blob, partial=partial)
        if self._buffer.nbytes != size:
            self._buffer = np.empty(size, np.uint8)
        _fetch(self._blobs, blob, self._buffer)
        with _judging(blob):
            return self._buffer, self._aggregation.measure(self._buffer, updates, grid, max_norm, partial=partial)

    def _of_another_size(self, blob: BlobRef, *, partial: bool) -> Refused:
        """The refusal of an update of a wrong size, by its header, unless it is too long to be looked at."""
        layout = self._aggregation.layout_of(partial=partial)
        reason = f"has {blob.size} bytes instead of {layout.file_size}"
        if blob.size > 2 * layout.file_size:
            return Refused(reason)
        file = np.empty(blob.size, np.uint8)
        _fetch(self._blobs, blob, file)
        try:
            with _judging(blob):
                weights.check_header(file, layout)
        except Refused as refused:
            return Unfit(str(refused))
        return Unfit(reason)


def receive_initial(blobs: Blobs, update: ModelUpdate, limits: LimitsSpec) -> npt.NDArray[np.uint8]:
    """The whole model file that answers round 0; `Refused` and `Unfit` as of any update."""
    blob = located(update)
    with _judging(blob):
        initial_model.check_size(blob.size, limits)
    file = np.empty(blob.size, np.uint8)
    _fetch(blobs, blob, file)
    with _judging(blob):
        initial_model.check(file, weights.read_layout(file))
    return file


def located(update: ModelUpdate) -> BlobRef:
    """The update's blob, where it lies at the one place that is its own."""
    if update.update is None:
        raise Refused("carries no blob")
    own = names.update_blob(update.job, update.round, update.client, update.update.digest)
    if update.update.key != own:
        raise Refused(f"its blob lies at {update.update.key} instead of {own}")
    return update.update


@contextmanager
def _judging(blob: BlobRef) -> Iterator[None]:
    """Around what is said of the answer to what was asked: no better one will come from its client.

    An error that nobody foresaw refuses that client too, and ends no job. It is a fault of ours all the same, so that
    the log has its traceback.
    """
    try:
        yield
    except Refused as refused:
        raise Unfit(str(refused)) from refused
    except FedqError:
        raise
    except Exception as error:
        log.exception("an update that could not be judged is refused", key=blob.key)
        raise Unfit(f"could not be judged: {type(error).__name__}: {plain(str(error))[:200]}") from error


def _fetch(blobs: Blobs, blob: BlobRef, buffer: npt.NDArray[np.uint8]) -> None:
    try:
        blobs.get_into(blob, buffer)
    except NotFound as error:
        raise Refused(f"its blob is not in the store: {blob.key}") from error
