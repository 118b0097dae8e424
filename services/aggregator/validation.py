"""Validation of one update: everything that is checked before it may count, the cheapest check first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import structlog

from shared import names
from shared.aggregation import weights
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
    """Receives a job's updates one after the other, all into one buffer."""

    def __init__(self, blobs: Blobs, aggregation: Aggregation, limits: LimitsSpec) -> None:
        self._blobs = blobs
        self._aggregation = aggregation
        self._limits = limits
        self._buffer = np.empty(0, np.uint8)

    def receive(self, update: ModelUpdate, base: str, grid: Grid) -> tuple[File, Measures]:
        """Returns the update's file, valid until the next call, and its measures.

        Raises `Refused` if the update does not answer the request, and `Unfit` if it does but must not be folded.
        """
        blob = located(update)
        if update.base != base:
            raise Refused(f"was trained on the model {(update.base or 'none')[:12]}, not on {base[:12]}")
        counted = [Counted(member.client, member.examples, metrics=member.metrics) for member in update.members]
        if not counted:  # a single client's update, whose examples may be 0, which is refused below
            counted = [Counted(update.client, update.examples, metrics=update.metrics)]
        return self.receive_again(blob, counted, grid, self._limits.max_norm, partial=bool(update.members))

    def receive_again(
        self,
        blob: BlobRef,
        updates: Sequence[Counted],
        grid: Grid,
        max_norm: float | None = None,
        *,
        partial: bool = False,
    ) -> tuple[File, Measures]:
        """Returns the file of an update that was accepted before, valid until the next call, and its measures."""
        size = self._aggregation.layout_of(partial=partial).file_size
        if blob.size != size:
            raise self._of_another_size(blob, partial=partial)
        if self._buffer.nbytes != size:
            self._buffer = np.empty(size, np.uint8)
        _fetch(self._blobs, blob, self._buffer)
        with _refusing_for_good(blob):
            return self._buffer, self._aggregation.measure(self._buffer, updates, grid, max_norm, partial=partial)

    def _of_another_size(self, blob: BlobRef, *, partial: bool) -> Refused:
        """Returns the refusal of an update of a wrong size, with the reason its header gives, if it is short enough."""
        layout = self._aggregation.layout_of(partial=partial)
        reason = f"has {blob.size} bytes instead of {layout.file_size}"
        if blob.size > 2 * layout.file_size:
            return Refused(reason)
        file = np.empty(blob.size, np.uint8)
        _fetch(self._blobs, blob, file)
        try:
            with _refusing_for_good(blob):
                weights.check_header(file, layout)
        except Refused as refused:
            return Unfit(str(refused))
        return Unfit(reason)


def receive_initial(blobs: Blobs, update: ModelUpdate, limits: LimitsSpec) -> npt.NDArray[np.uint8]:
    """Returns the model file, shape (bytes,), that answers round 0; raises `Refused` or `Unfit` as for any update."""
    blob = located(update)
    with _refusing_for_good(blob):
        weights.check_model_size(blob.size, limits)
    file = np.empty(blob.size, np.uint8)
    _fetch(blobs, blob, file)
    with _refusing_for_good(blob):
        weights.check_initial_model(file, weights.read_layout(file))
    return file


def located(update: ModelUpdate) -> BlobRef:
    """Returns the update's blob; raises `Refused` if it is not at the one key that is the update's own."""
    if update.update is None:
        raise Refused("carries no blob")
    own = names.update_blob(update.job, update.round, update.client, update.update.digest)
    if update.update.key != own:
        raise Refused(f"its blob lies at {update.update.key} instead of {own}")
    return update.update


@contextmanager
def _refusing_for_good(blob: BlobRef) -> Iterator[None]:
    """Turns each refusal inside into `Unfit`: the client has answered, and no better answer will follow.

    An unforeseen error refuses the client as well, instead of ending the job. It is a mistake in this code, so the log
    has its traceback.
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
