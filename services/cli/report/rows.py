"""Rounds as table rows: one for the round itself, then one for each client that took part or was asked.

The table is tidy: every metric is a column, and a row is one observation. `fedq results --csv` saves it.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.cli.report.history import PastRound
from shared.record.rounds import AcceptedUpdate

FIRST = ("round", "client", "state", "examples", "seconds", "norm", "staleness")  #: columns; then metrics by name


@dataclass(frozen=True)
class Row:
    """Row of a round (`client` is empty) or of one client in it; unknown values are None."""

    round: int
    client: str
    state: str  # `committed` for a round; `accepted`, `rejected`, `unanswered` or `evaluated` for a client
    examples: int | None = None
    seconds: float | None = None
    norm: float | None = None
    staleness: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def of_round(past: PastRound) -> Iterator[Row]:
    """Yields the row of the round, then the rows of its clients by name.

    Metrics of a client's held-out examples have the prefix `local_`, like the round's means of them.
    """
    evaluated = past.evaluated
    updates: dict[str, AcceptedUpdate] = {}
    states = dict.fromkeys(evaluated, "evaluated")
    for piece in past.committed.lists():
        states |= dict.fromkeys(piece.unanswered or (), "unanswered")
        states |= dict.fromkeys(piece.rejected, "rejected")
        updates |= {update.client: update for update in piece.updates} if past.number else {}
    states |= dict.fromkeys(updates, "accepted")  # an accepted update outweighs a rejected one of the same client
    yield Row(
        past.number,
        "",
        "committed",
        examples=sum(update.examples for update in updates.values()) if updates else None,
        seconds=past.manifest.seconds,
        metrics=past.figures,
    )
    for client, state in sorted(states.items()):
        yield _of_client(past.number, client, state, updates.get(client), evaluated.get(client, {}))


def save(rounds: Iterable[PastRound], file: Path) -> None:
    """Writes all rows as CSV, in the order of the rounds; an unknown value is an empty field."""
    rows = [row for past in rounds for row in of_round(past)]
    metrics = sorted({name for row in rows for name in row.metrics})
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow([*FIRST, *(f"metric_{name}" if name in FIRST else name for name in metrics)])
        for row in rows:
            fixed = [getattr(row, column) for column in FIRST]
            writer.writerow([*fixed, *(row.metrics.get(name) for name in metrics)])


def _of_client(
    number: int, client: str, state: str, update: AcceptedUpdate | None, held_out: Mapping[str, float]
) -> Row:
    own = {f"local_{name}": value for name, value in held_out.items() if name != "examples"}
    if update is None:
        return Row(number, client, state, metrics=own)
    return Row(
        number,
        client,
        state,
        examples=update.examples,
        seconds=update.timings.get("total"),
        norm=update.norm,
        staleness=update.staleness,
        metrics={**update.metrics, **own},
    )
