"""Closing a round: from a frozen set of updates to a committed model, the same whoever does it and however often."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.aggregation.aggregate import Plan
from shared.aggregation.fold import Grid
from shared.aggregation.weights import File, Flat, Layout
from shared.events import BlobRef
from shared.record.rounds import AcceptedUpdate, ClientLists, Fault, GridRecord, Manifest, Round
from shared.redis.ledger import RoundRecord, Sum, Totals

#: The parts of the work on an update that its trainer times, and what all of them are counted as.
PARTS = {"wait": "wait", "fetch": "download", "evaluate": "evaluate", "train": "train", "upload": "upload"}
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


def mean_metrics(accepted: Sequence[AcceptedUpdate]) -> dict[str, float]:
    """Means over the clients, weighted by examples, of the metrics that all of them sent."""
    total = sum(update.examples for update in accepted)
    common = set.intersection(*(set(update.metrics) for update in accepted)) if accepted else set()
    return {name: sum(update.metrics[name] * update.examples for update in accepted) / total for name in sorted(common)}


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
    accepted: Mapping[str, AcceptedUpdate],
    traffic: Mapping[str, int],
    timings: Mapping[str, float],
    faults: Sequence[Mapping[str, Any]],
    committed: float,
) -> Manifest:
    """The commit record of a round: all that is needed to fold it again, and what happened.

    `left` is what lies beside the model: `server`, the strategy's state; `delta`, what makes the model of its base;
    `memory`, the client history. `timings` are the aggregator's own: seconds by what it did.
    """
    updates = tuple(accepted[client] for client in sorted(accepted))
    return Manifest(
        job=job,
        round=number,
        attempt=record.attempt,
        fence=fence,
        base=base,
        model=model,
        server=left["server"],
        delta=left["delta"],
        memory=left["memory"],
        inputs=next((update.inputs for update in updates if update.inputs is not None), None),
        metrics=mean_metrics(updates),
        traffic=dict(traffic),
        timings=dict(timings),
        opened=record.opened,
        deadline=record.deadline,
        committed=committed,
        seconds=round(committed - record.opened, 4),
        cohort=record.cohort,
        carried=record.carried,
        updates=updates,
        rejected=record.rejected,
        unanswered=tuple(one for one in record.cohort if one not in accepted and one not in record.rejected),
        strategy=plan.strategy,
        compress=plan.compress,
        population=plan.population,
        lr=plan.lr,
        grid=GridRecord.of(grid) if grid is not None else None,
        weight=sum(update.examples for update in updates),
        faults=tuple(map(Fault.model_validate, faults)),
    )


def came_to(committed: Round, lists: Iterable[ClientLists]) -> Totals:
    """Totals that a committed round adds: the same whoever counts it, because the manifest says it all.

    `lists` are what the manifest tells of its clients, in the order of their names.
    """
    files: set[str] = set()
    spent: dict[str, list[float]] = {name: [] for name in PARTS}
    accepted = rejected = 0
    for piece in lists:
        accepted, rejected = accepted + len(piece.updates), rejected + len(piece.rejected)
        for update in piece.updates:
            if update.blob.key in files:
                continue  # of a batch, timings are one for all its clients
            files.add(update.blob.key)
            for name in PARTS.keys() & update.timings.keys():
                spent[name].append(_plausible(update.timings[name]))
    parts = {PARTS[name]: Sum(len(seconds), sum(seconds)) for name, seconds in spent.items()}
    own = committed.timings
    parts |= {name: Sum(times, own[name]) for name, times in (("fold", len(files)), ("step", 1)) if name in own}
    return Totals(
        rounds={"committed": Sum(1, committed.seconds)},
        parts=parts,
        updates={"accepted": accepted, "rejected": rejected},
    )


def came_to_nothing(outcome: str, seconds: float, accepted: int, rejected: int) -> Totals:
    """What a round adds to the totals that ended without a model; what it had accepted is of no use to anybody."""
    return Totals(rounds={outcome: Sum(1, seconds)}, updates={"abandoned": accepted, "rejected": rejected})


def _plausible(seconds: float) -> float:
    """A trainer says what it likes; one wrong clock must not drown what all others said."""
    return min(max(0.0, seconds), LONGEST) if math.isfinite(seconds) else 0.0
