"""Accepted updates of a round: made of the event that brought them, and what they come to.

Pure. Clients whose updates one file sums up have an entry each, with the same blob.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from shared.aggregation.fold import Measures
from shared.events import ModelUpdate
from shared.record.rounds import AcceptedUpdate, by_blob

COULD_NOT = "could not train: "  #: begins the reason of a client that reported its own failure
UNFIT = "its update is refused: "  #: begins the reason of a client whose answer was refused; see `shared.errors.Unfit`


def updates_in(event: ModelUpdate, measures: Measures | None, staleness: int = 0) -> dict[str, AcceptedUpdate]:
    """The updates that an event brought, by client; `measures` is None for the initial model."""
    about: dict[str, Any] = {
        "trainer": event.trainer,
        "blob": event.update,
        "timings": event.timings,
        "downloaded": event.downloaded,
        "staleness": staleness,
    }
    if measures is not None:
        about |= {"max_abs": measures.max_abs, "norm": measures.norm}
    if event.members:
        about["batch"] = event.client
        return {
            member.client: AcceptedUpdate.model_validate(
                {"client": member.client, "examples": member.examples, "metrics": member.metrics, **about}
            )
            for member in event.members
        }
    about |= {"client": event.client, "examples": event.examples, "metrics": event.metrics, "state": event.state}
    if measures is None:
        about["inputs"] = event.inputs
    return {event.client: AcceptedUpdate.model_validate(about)}


def traffic(accepted: Iterable[AcceptedUpdate], plain: int) -> dict[str, int]:
    """Files of a round's updates, their bytes, what they would be as float32 of `plain` bytes, and of models down.

    A batch of clients sends one file, and would without compression.
    """
    groups = by_blob(accepted)
    down = sum(group[0].downloaded for group in groups)
    up = sum(group[0].blob.size for group in groups)
    return {"files": len(groups), "up": up, "up_plain": plain * len(groups), "down": down}


def was_refused(rejected: Mapping[str, str]) -> frozenset[str]:
    """The clients in whose name an update was refused."""
    return frozenset(client for client, reason in rejected.items() if not reason.startswith(COULD_NOT))


def gave_up(rejected: Mapping[str, str]) -> frozenset[str]:
    """The clients that answered, and whose answer does not count; any other refusal may be followed by an answer."""
    return frozenset(client for client, reason in rejected.items() if reason.startswith((COULD_NOT, UNFIT)))
