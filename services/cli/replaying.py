"""Folding a committed round again: the same updates must give the same model, bit by bit."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from services.cli import history
from services.cli.servers import Servers
from shared import fold, weights
from shared.blobs import Blobs, NotFound
from shared.errors import BadInput, Refused
from shared.events import BlobRef
from shared.fold import Fold, Grid
from shared.jobs import FedAvg
from shared.strategies import server_step


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


def replay(servers: Servers, job: str, number: int) -> Verdict:
    """Takes a round from its record: the base, the kept updates one after the other, the server step."""
    manifest = history.manifest(servers.blobs, job, number)
    if manifest is None:
        history.known_spec(servers.blobs, servers.ledger, job)
        raise BadInput(f"round {number} of job {job} is not committed; `fedq show {job}` lists those that are")
    problem, digest = "", ""
    try:
        digest = _initial(servers.blobs, manifest) if manifest["base"] is None else _folded(servers.blobs, manifest)
    except NotFound as error:
        if "/updates/" not in str(error):
            raise
        raise BadInput(f"round {number}'s updates were not kept; set keep_updates: true in the job file") from error
    except Refused as error:
        problem = str(error)
    return Verdict(job, number, len(manifest["updates"]), manifest["model"]["digest"], digest, problem)


def _initial(blobs: Blobs, manifest: dict[str, Any]) -> str:
    """Round 0's one update is the initial model itself."""
    return weights.digest_of(blobs.get(BlobRef.model_validate(manifest["updates"][0]["blob"])))


def _folded(blobs: Blobs, manifest: dict[str, Any]) -> str:
    grid = Grid(**{name: manifest["grid"][name] for name in ("max_abs", "max_weight", "updates")})
    if grid.shift != manifest["grid"]["shift"]:
        raise Refused(f"the grid's shift is {grid.shift} here and {manifest['grid']['shift']} in the manifest")
    model = blobs.get(BlobRef.model_validate(manifest["base"]))
    layout = weights.read_layout(model)
    updates = layout.of_updates()
    buffer = np.empty(updates.file_size, np.uint8)  # one for all: memory does not grow with the cohort
    running = Fold(layout.size, grid)
    for update in manifest["updates"]:
        blob = BlobRef.model_validate(update["blob"])
        if blob.size != buffer.nbytes:
            raise Refused(f"{update['client']}'s update has {blob.size} bytes instead of {buffer.nbytes}")
        blobs.get_into(blob, buffer)
        weights.check_header(buffer, updates)
        deltas = updates.flat(buffer)
        fold.check(deltas, update["examples"], grid)
        running.add(deltas, update["examples"])
    if running.weight != manifest["weight"]:
        raise Refused(f"the updates weigh {running.weight}; the manifest says {manifest['weight']}")
    running.apply(layout.flat(model), server_step(FedAvg.model_validate(manifest["strategy"])))
    return weights.digest_of(model)
