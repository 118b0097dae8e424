"""Form of a client's examples: told once, with the initial model, and compared with ever after."""

from typing import Any

from services.trainer.data.dataset import Dataset
from services.trainer.data.sharing import SharedOut
from shared.errors import BadInput
from shared.events import LISTED, Inputs

MOST = 16 * 1024  #: bytes of labels that are listed
LONGEST = 200  #: characters of one of them
SHOWN = 60  #: characters of a value in a sentence
NAMES = {"digest": "files of digest"}  #: in a sentence


def inputs_of(data: Dataset) -> Inputs:
    """The form of the data. Of the user's own nothing is known beside shape and classes."""
    about: dict[str, Any] = {"shape": tuple(data.shape), "classes": data.classes}
    if not isinstance(data, SharedOut):
        return Inputs(**about)
    prepared, labels = data.source.prepare, data.names
    is_short = sum(len(label.encode()) for label in labels) <= MOST and max(map(len, labels)) <= LONGEST
    return Inputs(
        **about,
        labels=_listed(labels) if is_short else None,
        offset=_listed(prepared.offset),
        scale=_listed(prepared.scale),
        digest=data.source.digest if data.is_common else None,
    )


def refuse_others(data: Dataset, first: Inputs, trainer: str) -> None:
    """`BadInput` that says in what a trainer's data differ from those that the job's initial model was made for."""
    own = inputs_of(data)
    found = [
        f"{NAMES.get(name, name)} {_shown(mine)} in place of {_shown(theirs)}"
        for name in sorted(Inputs.model_fields, key=lambda name: name != "digest")  # of which all else is a consequence
        if (mine := getattr(own, name)) != (theirs := getattr(first, name))
    ]
    if found:
        common = isinstance(data, SharedOut) and data.is_common
        remedy = "; give all trainers the same data, then start the job again" if common else ""
        raise BadInput(
            f"the data of trainer {trainer} are not like those that the job began with: {'; '.join(found)}{remedy}"
        )


def _listed(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    return None if values is None or len(values) > LISTED else values


def _shown(value: Any) -> str:
    text = "none" if value is None else str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
