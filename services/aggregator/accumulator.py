"""What a job has in memory: its current model, and the fold of the updates to it that the open round has counted."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.aggregator.accepted_updates import all_counted, blob_of, by_blob, counted, entries, is_partial
from services.aggregator.manifests import Model
from services.aggregator.validation import Validator, located, receive_initial
from shared import names
from shared.aggregation import weights
from shared.aggregation.aggregate import Advanced, Aggregation, Plan
from shared.aggregation.fold import Grid, grid_of
from shared.aggregation.stored_updates import Stored
from shared.aggregation.strategies.strategy import Counted, Robust
from shared.aggregation.weights import File
from shared.errors import BadInput, Stale
from shared.events import BlobRef, ModelUpdate
from shared.job.job_spec import JobSpec
from shared.s3.store import Blobs


@dataclass(frozen=True)
class InHand:
    """An update that was received, and is not counted yet."""

    file: File
    updates: tuple[Counted, ...]
    digest: str
    partial: bool


class Accumulator:
    """One job's arrays; see `shared.aggregation.aggregate` for how much memory they are."""

    def __init__(self, blobs: Blobs, job: str, spec: JobSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._blobs = blobs
        self._job = job
        self._spec = spec
        self.plan = Plan.of(spec)
        self.model: Model | None = None
        self.counted: dict[str, str] = {}  #: clients whose updates are in the fold, and the digests of these
        self.bases: dict[int, BlobRef] = {}  #: round → the model that it began with, as far as updates to it may come
        self.extra = Advanced()  #: what the last server step left beside the model
        self.seconds = 0.0  #: that taking in the updates in the fold took, from the first look at each
        self._clock = clock
        self._began = 0.0  # with the update that is in hand
        self._aggregation: Aggregation | None = None
        self._validator: Validator | None = None
        self._grid: Grid | None = None
        self._in_hand: InHand | Model | None = None
        self._advanced: BlobRef | None = None  # the new model's place, once the server step is taken
        self._mistake: BadInput | None = None  # why there is none

    def adopt(self, model: Model, server: File | None = None) -> None:
        """Takes a committed model, or the initial one, as what updates refer to."""
        self.model = model
        self._aggregation = Aggregation(self.plan, model.layout, server)
        self._validator = Validator(self._blobs, self._aggregation, self._spec.limits)

    def load(self, blob: BlobRef, server: BlobRef | None = None) -> None:
        """Adopts a model from the store, with what the strategy kept."""
        file = self._blobs.get(blob)
        self.adopt(
            Model(file, weights.read_layout(file), blob), self._blobs.get(server) if server is not None else None
        )

    def begin(self, cohort: int, number: int) -> None:
        """Empties the fold for a round of `cohort` clients."""
        self.counted.clear()
        self.seconds = 0.0
        self._advanced = None
        if number == 0:  # an attempt before this one may have adopted a model as it was given up
            self.model = self._aggregation = self._validator = self._grid = None
            self.bases.clear()
        if self.model is None or self._aggregation is None:
            return
        self.bases[number] = self.model.blob
        for old in [known for known in self.bases if known < number - self._spec.max_staleness]:
            del self.bases[old]
        self._grid = grid_of(self._spec, cohort)
        self._aggregation.begin(self._grid, self.model.flat)

    def receive(self, update: ModelUpdate, number: int) -> dict[str, dict[str, Any]]:
        """Checks an update to round `number` and holds it for `count`; what the ledger is to keep of it, by client."""
        self._began = self._clock()
        if self.model is None or self._validator is None or self._grid is None:
            blob = located(update)
            file = receive_initial(self._blobs, update, self._spec.limits)
            self._in_hand = Model(file, weights.read_layout(file), blob)
            return entries(update, None)
        file, measures = self._validator.receive(update, self.bases[update.round].digest, self._grid)
        kept = entries(update, measures, number - update.round)
        partial = bool(update.members)
        updates = tuple(counted(client, entry) for client, entry in kept.items())
        self._in_hand = InHand(file, updates, located(update).digest, partial)
        return kept

    def count(self, update: ModelUpdate) -> None:
        """Folds what was received last: the ledger has accepted it."""
        if isinstance(self._in_hand, Model):
            self.adopt(self._in_hand)
            self.counted[update.client] = self._in_hand.blob.digest
        elif self._in_hand is not None and self._aggregation is not None:
            self._aggregation.add(self._in_hand.file, self._in_hand.updates, partial=self._in_hand.partial)
            self.counted |= {one.client: self._in_hand.digest for one in self._in_hand.updates}
        self._in_hand = None
        self.seconds += self._clock() - self._began

    def count_again(self, group: Mapping[str, Any]) -> None:
        """Folds what the ledger accepted under an earlier owner; `NotFound` or `Refused` where it cannot be had."""
        blob, began = blob_of(group), self._clock()
        if self.model is None or self._validator is None or self._aggregation is None or self._grid is None:
            self.load(blob)
        else:
            updates, partial = [counted(*pair) for pair in group.items()], is_partial(group)
            file, _ = self._validator.receive_again(blob, updates, self._grid, partial=partial)
            self._aggregation.add(file, updates, partial=partial)
        self.counted |= dict.fromkeys(group, blob.digest)
        self.seconds += self._clock() - began

    def advance(self, number: int, cohort: int, accepted: Mapping[str, Any]) -> BlobRef:
        """Takes the server step with the frozen updates; once, however often it is asked. Returns the model's place.

        `BadInput` where the strategy makes no model of them; the one in memory is then the round's base again.
        """
        if self._advanced is not None:
            return self._advanced
        if self.counted != {client: entry["blob"]["digest"] for client, entry in accepted.items()}:
            if number == 0:
                self.model = None
            self.begin(cohort, number)
            for group in by_blob(accepted):
                self.count_again(group)
        if self.model is None or self._aggregation is None:
            raise Stale(f"round {number} of {self._job} has no base model")
        if self._mistake is None and number > 0:
            try:
                self.extra = self._stepped(self._aggregation, self.model, accepted)
            except BadInput as error:
                self._mistake = BadInput(f"round {number}: {error}")
        if self._mistake is not None:
            self.model.file = self._blobs.get(self.model.blob)  # a step may fail half-way through it
            raise self._mistake
        digest = weights.digest_of(self.model.file) if number > 0 else self.model.blob.digest
        key = names.model_blob(self._job, number, digest)
        self._advanced = BlobRef(key=key, size=self.model.file.nbytes, digest=digest)
        return self._advanced

    def _stepped(self, aggregation: Aggregation, model: Model, accepted: Mapping[str, Any]) -> Advanced:
        slices = None
        if isinstance(aggregation.strategy, Robust):
            refs = [BlobRef.model_validate(accepted[client]["blob"]) for client in sorted(accepted)]
            slices = Stored(self._blobs, refs, aggregation.update_layout)
        return aggregation.advance(model.flat, all_counted(accepted), slices)

    @property
    def grid(self) -> Grid | None:
        """The open round's fixed-point grid; None while there is no base model."""
        return self._grid

    @property
    def broadcasts(self) -> bool:
        """Whether clients need what the strategy keeps."""
        return self._aggregation is not None and self._aggregation.strategy.broadcast

    @property
    def plain_size(self) -> int:
        """Bytes of an update as float32; of the initial model itself while there is no other."""
        if self.model is None:
            return 0
        return self.model.layout.of_updates().file_size if self._grid else self.model.file.nbytes

    @property
    def file(self) -> Any:
        """The model's whole file, shape (bytes,)."""
        return self.model.file if self.model else np.empty(0, np.uint8)
