"""An accepted update as the ledger and the manifest keep it: one entry for each client, plain JSON.

Pure. The clients that one file is the partial fold of have an entry each, with the same blob.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from shared.aggregation.fold import Measures
from shared.aggregation.strategies.strategy import Counted
from shared.events import BlobRef, ModelUpdate

Entry = Mapping[str, Any]

COULD_NOT = "could not train: "  #: begins the reason of a client that said so itself
UNFIT = "its update is refused: "  #: begins the reason of one whose answer it was; see `shared.errors.Unfit`


def entries(update: ModelUpdate, measures: Measures | None, staleness: int = 0) -> dict[str, dict[str, Any]]:
    """What is kept of an update, by client."""
    about: dict[str, Any] = {
        "trainer": update.trainer,
        "blob": update.update.model_dump() if update.update else None,
    }
    common: dict[str, Any] = {"timings": update.timings, "downloaded": update.downloaded}
    if measures is not None:
        common |= {"max_abs": measures.max_abs, "norm": measures.norm}
    if staleness:
        common["staleness"] = staleness
    if update.members:
        common["batch"] = update.client
        return {
            member.client: {**about, "examples": member.examples, "metrics": member.metrics, **common}
            for member in update.members
        }
    if update.state is not None:
        common["state"] = update.state.model_dump()
    if update.inputs is not None and measures is None:  # of an initial model
        common["inputs"] = update.inputs.model_dump(mode="json")
    return {update.client: {**about, "examples": update.examples, "metrics": update.metrics, **common}}


def counted(client: str, entry: Entry) -> Counted:
    """What a strategy knows of an entry."""
    norm, staleness = float(entry.get("norm", 0.0)), int(entry.get("staleness", 0))
    return Counted(client, int(entry["examples"]), norm, staleness, entry["metrics"])


def all_counted(accepted: Mapping[str, Entry]) -> list[Counted]:
    """What a strategy knows of a round's accepted updates, in client order."""
    return [counted(client, accepted[client]) for client in sorted(accepted)]


def traffic(accepted: Mapping[str, Entry], plain: int) -> dict[str, int]:
    """Files of a round's updates, their bytes, what they would be as float32 of `plain` bytes, and of models down.

    A batch of clients sends one file, and would without compression.
    """
    groups = list(by_blob(accepted))
    down = sum(next(iter(group.values())).get("downloaded", 0) for group in groups)
    up = sum(blob_of(group).size for group in groups)
    return {"files": len(groups), "up": up, "up_plain": plain * len(groups), "down": down}


def by_blob(accepted: Mapping[str, Entry]) -> Iterable[dict[str, Entry]]:
    """The entries of a round, those of one file together, in client order."""
    found: dict[str, dict[str, Entry]] = {}
    for client in sorted(accepted):
        found.setdefault(accepted[client]["blob"]["key"], {})[client] = accepted[client]
    return found.values()


def blob_of(group: Mapping[str, Entry]) -> BlobRef:
    """The one file of entries that belong together."""
    return BlobRef.model_validate(next(iter(group.values()))["blob"])


def is_partial(group: Mapping[str, Entry]) -> bool:
    """Whether the file is a partial fold."""
    return any("batch" in entry for entry in group.values())


def was_refused(rejected: Mapping[str, str]) -> frozenset[str]:
    """In whose name something was refused."""
    return frozenset(client for client, reason in rejected.items() if not reason.startswith(COULD_NOT))


def gave_up(rejected: Mapping[str, str]) -> frozenset[str]:
    """Whose answer is that there is no update to count; where what was refused was no answer, one may follow."""
    return frozenset(client for client, reason in rejected.items() if reason.startswith((COULD_NOT, UNFIT)))
