"""What follows from a job's manifests, one after the other: who keeps what, who is at work, who has counted.

Written apart from the aggregator's `memory` and `rounds`, which keep it as they go.
"""

from collections.abc import Mapping
from typing import Any

Manifest = Mapping[str, Any]
Chain = Mapping[int, Manifest]  #: by round

#: Begin the reasons of clients that have answered: they said that they cannot, or their answer was refused.
GAVE_UP = ("could not train: ", "its update is refused: ")


def states(chain: Chain, last: int) -> dict[str, dict[str, Any]]:
    """Each client's state after round `last`: that of the last round in which an update of it counted."""
    found: dict[str, dict[str, Any]] = {}
    for number in range(1, last + 1):
        for update in chain[number]["updates"]:
            if "state" in update:
                found[update["client"]] = update["state"]
    return found


def asked(manifest: Manifest, client: str) -> int:
    """The round in which a client of a manifest's cohort was asked."""
    return int(manifest.get("carried", {}).get(client, manifest["round"]))


def at_work(manifest: Manifest, max_staleness: int) -> dict[str, int]:
    """Who goes on training when a round is committed, and since which: who has not answered, and may yet."""
    answered = {update["client"] for update in manifest["updates"]}
    answered |= {client for client, reason in manifest["rejected"].items() if reason.startswith(GAVE_UP)}
    since = {client: asked(manifest, client) for client in manifest["cohort"] if client not in answered}
    return {client: number for client, number in since.items() if manifest["round"] + 1 - number <= max_staleness}


def known(chain: Chain, last: int) -> dict[str, list[Any]]:
    """Of each client: times asked, times counted, the last round of either, examples and loss, as selection has it."""
    found: dict[str, list[Any]] = {}
    for number in range(1, last + 1):
        manifest = chain[number]
        for client in manifest["cohort"]:
            if asked(manifest, client) == number:
                row = found.setdefault(client, [0, 0, 0, 0, 0, None])
                row[0], row[2] = row[0] + 1, number
        for update in manifest["updates"]:
            row = found.setdefault(update["client"], [0, 0, 0, 0, 0, None])
            row[1], row[3], row[4], row[5] = row[1] + 1, number, update["examples"], update["metrics"]["client_loss"]
    return found


def verdict(stop: Mapping[str, Any], figures: Mapping[int, float]) -> bool:
    """Whether a job needs no further round, by the figures that its rounds' evaluations gave."""
    sign = 1 if stop["mode"] == "max" else -1
    values = [sign * figures[number] for number in sorted(figures)]
    if not values:
        return False
    if stop["target"] is not None and values[-1] >= sign * stop["target"]:
        return True
    bests = [0]
    for place, value in enumerate(values):
        if value > values[bests[-1]] + stop["min_delta"]:
            bests.append(place)
    return stop["patience"] is not None and len(values) - 1 - bests[-1] >= stop["patience"]
