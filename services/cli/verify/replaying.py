"""Replay of a committed round: the same updates must give the same model, bit by bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.cli.report import history
from services.cli.servers import Servers
from shared.aggregation import weights
from shared.aggregation.aggregate import Aggregation
from shared.aggregation.stored_updates import Stored
from shared.aggregation.strategies.strategy import Robust
from shared.aggregation.weights import File
from shared.errors import BadInput, Refused
from shared.events import BlobRef
from shared.record import archive
from shared.record.rounds import AcceptedUpdate, Manifest
from shared.s3.store import Blobs, NotFound


@dataclass(frozen=True)
class Verdict:
    """Result of a replay."""

    job: str
    round: int
    updates: int
    committed: str  # digest of the model in the manifest
    replayed: str  # digest of the model computed from the kept updates; empty if that was not possible
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
    """Replay of a committed round, folded again onto its base with one update in memory at a time."""

    def __init__(self, blobs: Blobs, manifest: Manifest, base: File, server: BlobRef | None) -> None:
        """Begins with the base model's file, `base`, which becomes the round's model, and the prior `server` state."""
        if manifest.grid is None:
            raise Refused("the manifest names a base and no grid")
        self._blobs = blobs
        self._manifest = manifest
        self._model = base
        self._grid = manifest.grid.rebuilt()
        self._layout = weights.read_layout(base)
        self._aggregation = Aggregation(manifest.plan, self._layout, blobs.get(server) if server is not None else None)
        self._aggregation.begin(self._grid, self._layout.flat(base))
        self._buffer = np.empty(0, np.uint8)  # shared by all updates, so that memory does not grow with the cohort

    def add(self, group: Sequence[AcceptedUpdate]) -> None:
        """Folds a kept update; `NotFound` if it is gone, `Refused` if it is not what was folded originally."""
        blob, partial = group[0].blob, group[0].batch is not None
        size = self._aggregation.layout_of(partial=partial).file_size
        if blob.size != size:
            raise Refused(f"{group[0].client}'s update has {blob.size} bytes instead of {size}")
        if self._buffer.nbytes != size:
            self._buffer = np.empty(size, np.uint8)
        self._blobs.get_into(blob, self._buffer)
        known = [update.counted for update in group]
        self._aggregation.measure(self._buffer, known, self._grid, partial=partial)
        self._aggregation.add(self._buffer, known, partial=partial)

    def digest(self) -> str:
        """Completes the round and returns the digest of its model."""
        weight = sum(update.examples for update in self._manifest.updates)
        if weight != self._manifest.weight:
            raise Refused(f"the updates weigh {weight}; the manifest says {self._manifest.weight}")
        slices = None
        if isinstance(self._aggregation.strategy, Robust):
            refs = [update.blob for update in self._manifest.updates]
            slices = Stored(self._blobs, refs, self._aggregation.update_layout)
        known = [update.counted for update in self._manifest.updates]
        self._aggregation.advance(self._layout.flat(self._model), known, slices)
        return weights.digest_of(self._model)


def replay(servers: Servers, job: str, number: int) -> Verdict:
    """Replays a round from its record: the base, the kept updates one after the other, the server step."""
    manifest = archive.manifest(servers.blobs, job, number)
    if manifest is None:
        history.known_spec(servers.blobs, servers.ledger, job)
        raise BadInput(f"round {number} of job {job} is not committed; `fedq show {job}` lists those that are")
    problem, digest = "", ""
    try:
        if manifest.base is None:
            digest = initial(servers.blobs, manifest)
        else:
            before = archive.manifest(servers.blobs, job, number - 1)
            digest = _folded(servers.blobs, manifest, before.server if before else None)
    except NotFound as error:
        if "/updates/" not in str(error):
            raise
        raise BadInput(f"round {number}'s updates were not kept; set keep_updates: true in the job file") from error
    except Refused as error:
        problem = str(error)
    return Verdict(job, number, len(manifest.updates), manifest.model.digest, digest, problem)


def initial(blobs: Blobs, manifest: Manifest) -> str:
    """The digest of the only update of round 0, which is the initial model itself."""
    if not manifest.updates:
        raise Refused("the manifest names no initial model")
    return weights.digest_of(blobs.get(manifest.updates[0].blob))


def _folded(blobs: Blobs, manifest: Manifest, server: BlobRef | None) -> str:
    assert manifest.base is not None  # noqa: S101 - only round 0 has none
    folding = Replay(blobs, manifest, blobs.get(manifest.base), server)
    for group in manifest.groups:
        folding.add(group)
    return folding.digest()
