"""Folding a committed round again: the same updates must give the same model, bit by bit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.cli import history
from services.cli.manifest import Counted, Manifest, read
from services.cli.servers import Servers
from shared import fold, weights
from shared.blobs import Blobs, NotFound
from shared.errors import BadInput, Refused
from shared.fold import Fold
from shared.strategies.choose import strategy_of


@dataclass(frozen=True)
class Verdict:
    """What a replay found."""

    job: str
    round: int
    updates: int
    committed: str  # digest of the model that the manifest names
    replayed: str  # digest of the model made of the kept updates; empty where that was not possible
    problem: str = ""

    @property
    def agrees(self) -> bool:
        return self.committed == self.replayed

    def document(self) -> dict[str, Any]:
        return {**vars(self), "agrees": self.agrees}

    def __str__(self) -> str:
        return "\n".join([
            f"round {self.round} of {self.job}, {self.updates} update{'s' if self.updates != 1 else ''}",
            f"committed  {self.committed}",
            f"replayed   {self.replayed or self.problem}",
            "agrees" if self.agrees else "differs",
        ])  # fmt: skip


class Replay:
    """A committed round being folded again onto its base, one update in memory at a time."""

    def __init__(self, blobs: Blobs, manifest: Manifest, base: npt.NDArray[np.uint8]) -> None:
        """`base` is the base model's file; it becomes the round's model."""
        if manifest.grid is None:
            raise Refused("the manifest names a base and no grid")
        self._blobs = blobs
        self._manifest = manifest
        self._model = base
        self._grid = manifest.grid.rebuilt()
        self._layout = weights.read_layout(base)
        self._updates = self._layout.of_updates()
        self._buffer = np.empty(self._updates.file_size, np.uint8)  # one for all: memory does not grow with the cohort
        self._fold = Fold(self._layout.size, self._grid)

    def add(self, update: Counted) -> None:
        """Folds a kept update; `NotFound` where it is gone, `Refused` where it is not what was folded."""
        blob = update.blob
        if blob.size != self._buffer.nbytes:
            raise Refused(f"{update.client}'s update has {blob.size} bytes instead of {self._buffer.nbytes}")
        self._blobs.get_into(blob, self._buffer)
        weights.check_header(self._buffer, self._updates)
        deltas = self._updates.flat(self._buffer)
        fold.check(deltas, update.examples, self._grid)
        self._fold.add(deltas, update.examples)

    def digest(self) -> str:
        """The digest of the model that the updates make."""
        if self._fold.weight != self._manifest.weight:
            raise Refused(f"the updates weigh {self._fold.weight}; the manifest says {self._manifest.weight}")
        self._fold.apply(self._layout.flat(self._model), strategy_of(self._manifest.strategy, 1).step)
        return weights.digest_of(self._model)


def replay(servers: Servers, job: str, number: int) -> Verdict:
    """Takes a round from its record: the base, the kept updates one after the other, the server step."""
    document = history.manifest(servers.blobs, job, number)
    if document is None:
        history.known_spec(servers.blobs, servers.ledger, job)
        raise BadInput(f"round {number} of job {job} is not committed; `fedq show {job}` lists those that are")
    manifest = read(document)
    problem, digest = "", ""
    try:
        digest = initial(servers.blobs, manifest) if manifest.base is None else _folded(servers.blobs, manifest)
    except NotFound as error:
        if "/updates/" not in str(error):
            raise
        raise BadInput(f"round {number}'s updates were not kept; set keep_updates: true in the job file") from error
    except Refused as error:
        problem = str(error)
    return Verdict(job, number, len(manifest.updates), manifest.model.digest, digest, problem)


def initial(blobs: Blobs, manifest: Manifest) -> str:
    """The digest of round 0's one update, which is the initial model itself."""
    if not manifest.updates:
        raise Refused("the manifest names no initial model")
    return weights.digest_of(blobs.get(manifest.updates[0].blob))


def _folded(blobs: Blobs, manifest: Manifest) -> str:
    assert manifest.base is not None  # noqa: S101 - of a round after the first
    folding = Replay(blobs, manifest, blobs.get(manifest.base))
    for update in manifest.updates:
        folding.add(update)
    return folding.digest()
