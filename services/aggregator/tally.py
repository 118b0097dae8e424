"""What a job has in memory: its current model, and the fold of the updates to it that the open round has counted."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from services.aggregator import closing, intake
from services.aggregator.closing import Model
from services.aggregator.intake import Intake
from shared import fold, names, weights
from shared.blobs import Blobs
from shared.errors import Stale
from shared.events import BlobRef, ModelUpdate
from shared.fold import Fold
from shared.jobs import JobSpec
from shared.weights import Flat


class Tally:
    """One job's arrays: 4 bytes a parameter for the model, 4 for the update in hand, 8 for the sum."""

    def __init__(self, blobs: Blobs, job: str, spec: JobSpec) -> None:
        self._blobs = blobs
        self._job = job
        self._spec = spec
        self.model: Model | None = None
        self.counted: dict[str, str] = {}  #: clients whose updates are in the fold, and the digests of these
        self._intake: Intake | None = None
        self._fold: Fold | None = None
        self._in_hand: Flat | Model | None = None  # what was received last, and is not counted
        self._advanced: BlobRef | None = None  # the new model's place, once the server step is taken

    def adopt(self, model: Model) -> None:
        """Takes a committed model, or the initial one, as what updates refer to."""
        self.model = model
        self._intake = Intake(self._blobs, model.layout, self._spec.limits)
        self._fold = None

    def load(self, blob: BlobRef) -> None:
        """Adopts a model from the store."""
        file = self._blobs.get(blob)
        self.adopt(Model(file, weights.read_layout(file), blob))

    def begin(self, cohort: int) -> None:
        """Empties the fold for a round of `cohort` clients."""
        self.counted.clear()
        self._advanced = None
        if self.model is None:
            return
        grid = fold.grid_of(self._spec, cohort)
        if self._fold is None or self._fold.grid != grid:
            self._fold = None  # its memory goes before the next one's comes
            self._fold = Fold(self.model.layout.size, grid)
        else:
            self._fold.reset()

    def receive(self, update: ModelUpdate) -> dict[str, Any]:
        """Checks an update and holds it for `count`; returns what the ledger is to keep of it, or `Refused`."""
        entry: dict[str, Any] = {
            "trainer": update.trainer,
            "blob": update.update.model_dump() if update.update else None,
            "examples": update.examples,
            "metrics": update.metrics,
            "timings": update.timings,
        }
        if self.model is None or self._intake is None or self._fold is None:
            blob = intake.located(update)
            file = intake.receive_initial(self._blobs, update, self._spec.limits)
            self._in_hand = Model(file, weights.read_layout(file), blob)
            return entry
        self._in_hand, measures = self._intake.receive(update, self.model.blob.digest, self._fold.grid)
        return entry | {"max_abs": measures.max_abs, "norm": measures.norm}

    def count(self, client: str, examples: int, digest: str) -> None:
        """Folds what was received last: the ledger has accepted it."""
        if isinstance(self._in_hand, Model):
            self.adopt(self._in_hand)
        elif self._fold is not None and self._in_hand is not None:
            self._fold.add(self._in_hand, examples)
        self._in_hand = None
        self.counted[client] = digest

    def count_again(self, client: str, entry: Mapping[str, Any]) -> None:
        """Folds what the ledger accepted under an earlier owner; `NotFound` or `Refused` where it cannot be had."""
        blob = BlobRef.model_validate(entry["blob"])
        if self.model is None or self._intake is None or self._fold is None:
            self.load(blob)
        else:
            self._fold.add(self._intake.receive_again(blob, entry["examples"], self._fold.grid), entry["examples"])
        self.counted[client] = blob.digest

    def advance(self, number: int, cohort: int, accepted: Mapping[str, Any]) -> BlobRef:
        """Takes the server step with the frozen updates; once, however often it is asked. Returns the model's place."""
        if self._advanced is not None:
            return self._advanced
        if self.counted != {client: entry["blob"]["digest"] for client, entry in accepted.items()}:
            if number == 0:
                self.model = None
            self.begin(cohort)
            for client in sorted(accepted):
                self.count_again(client, accepted[client])
        if self.model is None:
            raise Stale(f"round {number} of {self._job} has no base model")
        if number == 0:
            digest = self.model.blob.digest
            self._advanced = BlobRef(
                key=names.model_blob(self._job, 0, digest), size=self.model.file.nbytes, digest=digest
            )
        elif self._fold is not None:
            self._advanced = closing.advance(self.model, self._fold, self._spec, self._job, number)
        assert self._advanced is not None  # noqa: S101 - a model has a fold, but for the initial one
        return self._advanced

    @property
    def file(self) -> Any:
        """The model's whole file, shape (bytes,)."""
        return self.model.file if self.model else np.empty(0, np.uint8)
