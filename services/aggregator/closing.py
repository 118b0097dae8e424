"""Closing a round: from a frozen set of updates to a committed model, the same whoever does it and however often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import names, weights
from shared.events import BlobRef
from shared.fold import Fold, Grid
from shared.jobs import JobSpec
from shared.ledger import RoundRecord
from shared.strategies.choose import strategy_of
from shared.weights import Flat, Layout


@dataclass
class Model:
    """A job's current model: its whole file in memory, where it lies in the store, and the round it came of."""

    file: npt.NDArray[np.uint8]
    layout: Layout
    blob: BlobRef

    @property
    def flat(self) -> Flat:
        return self.layout.flat(self.file)


def advance(model: Model, running: Fold, spec: JobSpec, job: str, number: int) -> BlobRef:
    """Takes the server step on the model in place; returns where the new one belongs."""
    running.apply(model.flat, strategy_of(spec.strategy, spec.population).step)
    digest = weights.digest_of(model.file)
    return BlobRef(key=names.model_blob(job, number, digest), size=model.file.nbytes, digest=digest)


def mean_metrics(accepted: Mapping[str, Any]) -> dict[str, float]:
    """Means over the clients, weighted by examples, of the metrics that all of them sent."""
    updates = [accepted[client] for client in sorted(accepted)]
    total = sum(update["examples"] for update in updates)
    shared = set.intersection(*(set(update["metrics"]) for update in updates)) if updates else set()
    return {
        name: sum(update["metrics"][name] * update["examples"] for update in updates) / total for name in sorted(shared)
    }


def manifest(
    *,
    job: str,
    number: int,
    fence: int,
    record: RoundRecord,
    spec: JobSpec,
    base: BlobRef | None,
    model: BlobRef,
    grid: Grid | None,
    accepted: Mapping[str, Any],
    faults: Sequence[Mapping[str, Any]],
    committed: float,
) -> dict[str, Any]:
    """The commit record of a round: all that is needed to fold it again, and what happened."""
    return {
        "job": job,
        "round": number,
        "attempt": record.attempt,
        "fence": fence,
        "cohort": list(record.cohort),
        "base": base.model_dump() if base else None,
        "model": model.model_dump(),
        "strategy": spec.strategy.model_dump(mode="json"),
        "grid": {**vars(grid), "shift": grid.shift} if grid else None,
        "weight": sum(update["examples"] for update in accepted.values()),
        "updates": [{"client": client, **accepted[client]} for client in sorted(accepted)],
        "rejected": record.rejected,
        "unanswered": [client for client in record.cohort if client not in accepted and client not in record.rejected],
        "metrics": mean_metrics(accepted),
        "faults": list(faults),
        "opened": record.opened,
        "deadline": record.deadline,
        "committed": committed,
        "seconds": round(committed - record.opened, 4),
    }
