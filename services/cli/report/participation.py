"""Participation of clients in a job: the number of requests to each client, and their results."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from services.cli.report.history import PastRound
from services.cli.ui import output
from shared.record.rounds import ClientLists

LINES = 20  #: clients in a table; JSON has all of them


@dataclass
class Participation:
    """Participation of one client in a job's rounds."""

    asked: int = 0
    accepted: int = 0
    rejected: int = 0
    last: int | None = None  # the last round with an update of the client


def of_job(rounds: Sequence[PastRound]) -> dict[str, Participation]:
    """Participation of every client in the record, sorted by name; round 0, the initial model, does not count."""
    parts: dict[str, Participation] = {}
    for past in rounds:
        if past.number == 0:
            continue
        for piece in past.committed.lists():
            _add(parts, past.number, piece)
    return dict(sorted(parts.items()))


def _add(parts: dict[str, Participation], number: int, piece: ClientLists) -> None:
    """Counts the clients in one piece of a round's manifest."""
    for client in piece.cohort or ():
        # A client that still works on an earlier round's task was not asked again for this round.
        parts.setdefault(client, Participation()).asked += client not in piece.carried
    for client in piece.clients:
        part = parts.setdefault(client, Participation())
        part.accepted, part.last = part.accepted + 1, number
    for client in piece.rejected:
        parts.setdefault(client, Participation()).rejected += 1


def document(parts: dict[str, Participation]) -> dict[str, Any]:
    """Participation as a JSON document, by client."""
    return {client: asdict(part) for client, part in parts.items()}


def show(parts: dict[str, Participation], population: int) -> None:
    """Prints a summary and a table of the clients that were asked most often."""
    if not parts:
        return
    terminal = output.Terminal()
    terminal.print(summary(parts, population))
    columns = ("asked", "accepted", "rejected", "last round")
    made = output.table("client", *columns, numbers=columns)
    ordered = sorted(parts.items(), key=lambda one: (-one[1].asked, -one[1].accepted, one[0]))
    for client, part in ordered[:LINES]:
        last = "" if part.last is None else str(part.last)
        made.add_row(client, str(part.asked), str(part.accepted), str(part.rejected), last)
    terminal.print(made)
    if len(parts) > LINES:
        terminal.print(f"and {len(parts) - LINES} more clients; --json has all of them")


def summary(parts: dict[str, Participation], population: int) -> str:
    """Summary of how many clients shared the work, and how evenly."""
    asked = [part.asked for part in parts.values() if part.asked]
    accepted = [part.accepted for part in parts.values() if part.asked]
    if not asked:
        return f"none of {population} clients was asked yet"
    return (
        f"{len(asked)} of {population} clients were asked, {_between(asked)} times each, "
        f"and {_between(accepted)} updates of each were accepted"
    )


def _between(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(most) if least == most else f"{least} to {most}"
