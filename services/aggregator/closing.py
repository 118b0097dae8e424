"""Closing a round: from a frozen set of updates to a committed model, the same whoever does it and however often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.aggregation import Plan
from shared.events import BlobRef
from shared.fold import Grid
from shared.ledger import RoundRecord
from shared.weights import File, Flat, Layout


@dataclass
class Model:
    """A job's current model: its whole file in memory, where it lies in the store, and the round it came of."""

    file: File
    layout: Layout
    blob: BlobRef

    @property
    def flat(self) -> Flat:
        return self.layout.flat(self.file)


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
    base: BlobRef | None,
    model: BlobRef,
    plan: Plan,
    grid: Grid | None,
    left: Mapping[str, BlobRef | None],
    accepted: Mapping[str, Any],
    traffic: Mapping[str, int],
    faults: Sequence[Mapping[str, Any]],
    committed: float,
) -> dict[str, Any]:
    """The commit record of a round: all that is needed to fold it again, and what happened.

    `left` is what lies beside the model: `server`, the strategy's state; `delta`, what makes the model of its base;
    `memory`, what is known of the clients.
    """
    return {
        "job": job,
        "round": number,
        "attempt": record.attempt,
        "fence": fence,
        "cohort": list(record.cohort),
        **({"carried": record.carried} if record.carried else {}),
        "base": base.model_dump() if base else None,
        "model": model.model_dump(),
        **{name: ref.model_dump() if ref else None for name, ref in left.items()},
        **plan.model_dump(mode="json"),
        "grid": {**vars(grid), "shift": grid.shift} if grid else None,
        "weight": sum(update["examples"] for update in accepted.values()),
        "updates": [{"client": client, **accepted[client]} for client in sorted(accepted)],
        "rejected": record.rejected,
        "unanswered": [client for client in record.cohort if client not in accepted and client not in record.rejected],
        "metrics": mean_metrics(accepted),
        "traffic": traffic,
        "faults": list(faults),
        "opened": record.opened,
        "deadline": record.deadline,
        "committed": committed,
        "seconds": round(committed - record.opened, 4),
    }
