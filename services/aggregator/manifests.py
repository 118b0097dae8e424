"""Closing a round: from a frozen set of updates to a committed model, the same whoever does it and however often."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.aggregation.aggregate import Plan
from shared.aggregation.fold import Grid
from shared.aggregation.weights import File, Flat, Layout
from shared.events import BlobRef
from shared.redis.ledger import RoundRecord, Sum, Totals

#: The parts of the work on an update that its trainer times, and what all of them are counted as.
PARTS = {"wait": "wait", "fetch": "download", "evaluate": "evaluate", "train": "train", "upload": "upload"}
#: The fields of a manifest that tell of clients; see `shared.record.parts`.
OF_CLIENTS = ("cohort", "carried", "updates", "rejected", "unanswered")

LONGEST = 86_400.0  #: seconds that a part may have taken, by the clock of a trainer


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
    timings: Mapping[str, float],
    faults: Sequence[Mapping[str, Any]],
    committed: float,
) -> dict[str, Any]:
    """The commit record of a round: all that is needed to fold it again, and what happened.

    `left` is what lies beside the model: `server`, the strategy's state; `delta`, what makes the model of its base;
    `memory`, what is known of the clients. `timings` are the aggregator's own: seconds by what it did.
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
        **_inputs(accepted),
        "updates": [_line(client, accepted[client]) for client in sorted(accepted)],
        "rejected": record.rejected,
        "unanswered": [client for client in record.cohort if client not in accepted and client not in record.rejected],
        "metrics": mean_metrics(accepted),
        "traffic": traffic,
        "timings": timings,
        "faults": list(faults),
        "opened": record.opened,
        "deadline": record.deadline,
        "committed": committed,
        "seconds": round(committed - record.opened, 4),
    }


def _inputs(accepted: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the data by the maker of the initial model; nothing in other rounds."""
    found = [entry["inputs"] for entry in accepted.values() if "inputs" in entry]
    return {"inputs": found[0]} if found else {}


def _line(client: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"client": client, **{name: value for name, value in entry.items() if name != "inputs"}}


def came_to(manifest: Mapping[str, Any], pieces: Iterable[Mapping[str, Any]]) -> Totals:
    """Totals that a committed round adds: the same whoever counts it, because the manifest says it all.

    `pieces` are what it tells of its clients, in the order of their names.
    """
    files: set[str] = set()
    spent: dict[str, list[float]] = {name: [] for name in PARTS}
    accepted = rejected = 0
    for piece in pieces:
        accepted, rejected = accepted + len(piece["updates"]), rejected + len(piece["rejected"])
        for update in piece["updates"]:
            if update["blob"]["key"] in files:
                continue  # of a batch, timings are one for all its clients
            files.add(update["blob"]["key"])
            for name in PARTS.keys() & update["timings"].keys():
                spent[name].append(_plausible(update["timings"][name]))
    parts = {PARTS[name]: Sum(len(seconds), sum(seconds)) for name, seconds in spent.items()}
    own = manifest.get("timings", {})
    parts |= {name: Sum(times, own[name]) for name, times in (("fold", len(files)), ("step", 1)) if name in own}
    return Totals(
        rounds={"committed": Sum(1, manifest["seconds"])},
        parts=parts,
        updates={"accepted": accepted, "rejected": rejected},
    )


def came_to_nothing(outcome: str, seconds: float, accepted: int, rejected: int) -> Totals:
    """What a round adds to the totals that ended without a model; what it had accepted is of no use to anybody."""
    return Totals(rounds={outcome: Sum(1, seconds)}, updates={"abandoned": accepted, "rejected": rejected})


def _plausible(seconds: float) -> float:
    """A trainer says what it likes; one wrong clock must not drown what all others said."""
    return min(max(0.0, seconds), LONGEST) if math.isfinite(seconds) else 0.0
