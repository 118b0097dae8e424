"""Accumulator of a job: its current model in memory, and the sum of the updates that the open round has counted.

An update is received and checked first (`receive`), and counted (`count`) once the ledger has accepted it. Round 0 has
nothing to sum: its one answer is the initial model.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from services.aggregator.accepted_updates import updates_in
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
from shared.record.rounds import AcceptedUpdate, by_blob
from shared.s3.store import Blobs


@dataclass(frozen=True)
class Pending:
    """An update that was received and checked; it counts once the ledger has accepted it."""

    updates: Mapping[str, AcceptedUpdate]  # of each client whose training is in the file
    blob: BlobRef
    file: File
    partial: bool
    began: float  # when receiving it began, in seconds of the accumulator's clock

    @property
    def counted(self) -> tuple[Counted, ...]:
        """The update of each client, as strategies know it."""
        return tuple(update.counted for update in self.updates.values())


@dataclass(frozen=True)
class Current:
    """The model that updates refer to, with the aggregation and the checks made for its layout."""

    model: Model
    aggregation: Aggregation
    validator: Validator


class AnyRound(Protocol):
    """Open round, either round 0 or a later one: receives updates, adds those that count, and makes the next model."""

    grid: Grid | None  #: the round's fixed-point grid; None if nothing is summed

    def receive(self, update: ModelUpdate, base: BlobRef | None, staleness: int, began: float) -> Pending:
        """Fetches and checks an update; `Refused` or `Unfit` if it must not count."""

    def add(self, pending: Pending) -> None:
        """Adds a received update."""

    def add_again(self, group: Sequence[AcceptedUpdate]) -> None:
        """Adds the file of updates that an earlier owner accepted; `NotFound` or `Refused` if it cannot be had."""

    def step(self, accepted: Sequence[AcceptedUpdate]) -> Advanced:
        """Makes the next model in place; returns the other files that the step makes, such as the strategy's state."""


class InitialModel:
    """Round 0: its only update is the whole initial model."""

    grid: Grid | None = None

    def __init__(self, accumulator: "Accumulator", blobs: Blobs, spec: JobSpec) -> None:
        self._accumulator, self._blobs, self._spec = accumulator, blobs, spec

    def receive(self, update: ModelUpdate, base: BlobRef | None, staleness: int, began: float) -> Pending:  # noqa: ARG002
        """Fetches and checks the initial model."""
        blob = located(update)
        file = receive_initial(self._blobs, update, self._spec.limits)
        return Pending(updates_in(update, None), blob, file, partial=False, began=began)

    def add(self, pending: Pending) -> None:
        """Adopts the initial model."""
        self._accumulator.adopt(Model(pending.file, weights.read_layout(pending.file), pending.blob))

    def add_again(self, group: Sequence[AcceptedUpdate]) -> None:
        """Adopts the initial model that an earlier owner accepted."""
        self._accumulator.load(group[0].blob)

    def step(self, accepted: Sequence[AcceptedUpdate]) -> Advanced:  # noqa: ARG002
        """Leaves the initial model as it is."""
        return Advanced()


class UpdateRound:
    """Round from 1 on: updates of the current model are summed on a fixed-point grid."""

    def __init__(self, current: Current, grid: Grid, blobs: Blobs) -> None:
        self.grid: Grid | None = grid
        self._grid, self._current, self._blobs = grid, current, blobs
        current.aggregation.begin(grid, current.model.flat)

    def receive(self, update: ModelUpdate, base: BlobRef | None, staleness: int, began: float) -> Pending:
        """Fetches and checks an update of `base`; its file is valid until the next call."""
        if base is None:
            raise Stale(f"{update.client} sent an update of a model that is not known here")
        file, measures = self._current.validator.receive(update, base.digest, self._grid)
        updates = updates_in(update, measures, staleness)
        return Pending(updates, located(update), file, partial=bool(update.members), began=began)

    def add(self, pending: Pending) -> None:
        """Adds a received update to the sum."""
        self._current.aggregation.add(pending.file, pending.counted, partial=pending.partial)

    def add_again(self, group: Sequence[AcceptedUpdate]) -> None:
        """Adds the file of updates that an earlier owner accepted."""
        counted, partial = [update.counted for update in group], group[0].batch is not None
        file, _ = self._current.validator.receive_again(group[0].blob, counted, self._grid, partial=partial)
        self._current.aggregation.add(file, counted, partial=partial)

    def step(self, accepted: Sequence[AcceptedUpdate]) -> Advanced:
        """Takes the strategy's server step; robust strategies read the updates again, a slice at a time."""
        aggregation, model = self._current.aggregation, self._current.model
        slices = None
        if isinstance(aggregation.strategy, Robust):
            slices = Stored(self._blobs, [update.blob for update in accepted], aggregation.update_layout)
        try:
            return aggregation.advance(model.flat, [update.counted for update in accepted], slices)
        except BadInput:
            model.file = self._blobs.get(model.blob)  # a step may fail half-way through the model in memory
            raise


class Accumulator:
    """One job's arrays; see `shared.aggregation.aggregate` for how much memory they take."""

    def __init__(self, blobs: Blobs, job: str, spec: JobSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._blobs = blobs
        self._job = job
        self._spec = spec
        self.plan = Plan.of(spec)
        self.counted: dict[str, str] = {}  #: client whose update is in the sum → the update's digest
        self.bases: dict[int, BlobRef] = {}  #: round → its base model, for rounds whose updates may still count
        self.extra = Advanced()  #: further files that the last server step made
        self.seconds = 0.0  #: seconds spent receiving and adding the counted updates
        self._clock = clock
        self._current: Current | None = None
        self._round: AnyRound = InitialModel(self, blobs, spec)
        self._advanced: BlobRef | None = None  # blob for the new model, once the server step is taken
        self._mistake: BadInput | None = None  # the strategy's error, if it could not make a model

    # --- the model ------------------------------------------------------------------------------

    @property
    def model(self) -> Model | None:
        """The current model; None before round 0 has its answer."""
        return self._current.model if self._current is not None else None

    @property
    def file(self) -> File:
        """The current model's whole file, shape (bytes,)."""
        return self._current.model.file if self._current is not None else np.empty(0, np.uint8)

    def adopt(self, model: Model, server: File | None = None) -> None:
        """Makes a committed model, or the initial one, the base of the next updates."""
        aggregation = Aggregation(self.plan, model.layout, server)
        self._current = Current(model, aggregation, Validator(self._blobs, aggregation, self._spec.limits))

    def load(self, blob: BlobRef, server: BlobRef | None = None) -> None:
        """Adopts a model from the store, with the strategy's state."""
        file = self._blobs.get(blob)
        self.adopt(
            Model(file, weights.read_layout(file), blob), self._blobs.get(server) if server is not None else None
        )

    def committed(self, blob: BlobRef) -> None:
        """Records the current model's blob, now that its round is committed."""
        if self._current is not None:
            self._current.model.blob = blob

    # --- a round --------------------------------------------------------------------------------

    def begin(self, cohort: int, number: int) -> None:
        """Starts round `number` with an empty sum, for `cohort` clients; `Stale` if it has no base model."""
        self.counted.clear()
        self.seconds = 0.0
        self._advanced = None
        if number == 0:  # an earlier attempt may have adopted a model and been abandoned
            self._current = None
            self._round = InitialModel(self, self._blobs, self._spec)
            self.bases.clear()
            return
        if self._current is None:
            raise Stale(f"round {number} of {self._job} has no base model")
        self.bases[number] = self._current.model.blob
        for stale in [earlier for earlier in self.bases if earlier < number - self._spec.max_staleness]:
            del self.bases[stale]
        self._round = UpdateRound(self._current, grid_of(self._spec, cohort), self._blobs)

    def receive(self, update: ModelUpdate, number: int) -> Pending:
        """Fetches and checks an update while round `number` is open; `Refused` or `Unfit` if it must not count."""
        return self._round.receive(update, self.bases.get(update.round), number - update.round, self._clock())

    def count(self, pending: Pending) -> None:
        """Adds an update that the ledger has accepted."""
        self._round.add(pending)
        self.counted |= dict.fromkeys(pending.updates, pending.blob.digest)
        self.seconds += self._clock() - pending.began

    def count_again(self, group: Sequence[AcceptedUpdate]) -> None:
        """Adds one file that an earlier owner counted; `NotFound` or `Refused` if it cannot be had."""
        began = self._clock()
        self._round.add_again(group)
        self.counted |= {update.client: update.blob.digest for update in group}
        self.seconds += self._clock() - began

    def advance(self, number: int, cohort: int, accepted: Mapping[str, AcceptedUpdate]) -> BlobRef:
        """Takes the server step with the frozen updates; once, however often it is called. Returns the model's place.

        `BadInput` if the strategy makes no model of them; the model in memory is then the round's base again.
        """
        if self._advanced is not None:
            return self._advanced
        if self.counted != {client: update.blob.digest for client, update in accepted.items()}:
            self.begin(cohort, number)
            for group in by_blob(accepted.values()):
                self.count_again(group)
        if self._current is None:
            raise Stale(f"round {number} of {self._job} has no model")
        if self._mistake is not None:
            raise self._mistake
        try:
            self.extra = self._round.step([accepted[client] for client in sorted(accepted)])
        except BadInput as error:
            self._mistake = BadInput(f"round {number}: {error}")
            raise self._mistake from error
        model = self._current.model
        digest = weights.digest_of(model.file) if number > 0 else model.blob.digest
        key = names.model_blob(self._job, number, digest)
        self._advanced = BlobRef(key=key, size=model.file.nbytes, digest=digest)
        return self._advanced

    # --- figures of the round ---------------------------------------------------------------------

    @property
    def grid(self) -> Grid | None:
        """The open round's fixed-point grid; None in round 0."""
        return self._round.grid

    @property
    def broadcasts(self) -> bool:
        """True if clients need the strategy's state."""
        return self._current is not None and self._current.aggregation.strategy.broadcast

    @property
    def plain_size(self) -> int:
        """Bytes of an update as float32; of the initial model itself in round 0."""
        if self._current is None:
            return 0
        model = self._current.model
        return model.layout.of_updates().file_size if self.grid else model.file.nbytes
