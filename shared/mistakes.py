"""What pydantic found wrong with a job file, as a sentence for each: where, what was found, what is allowed.

Pure.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from shared.catalog.choice import ATTRIBUTE, CUSTOM, Custom, tag_of
from shared.names import CLIENT_NAME, JOB_NAME

BUILTIN = "builtin"  #: the tag of the local step that has no name

_PATTERNS = {
    CLIENT_NAME: "letters, digits, - and _, at most 63, starting with a letter or digit",
    ATTRIBUTE: "your own is given as module:attribute, such as mypkg.nets:make",
    JOB_NAME: "lower-case letters, digits and -, at most 39",
}

Model = type[BaseModel]


def sentences(error: ValidationError, root: Model) -> list[str]:
    """One line for each mistake in what was to be a `root`."""
    found = error.errors(include_url=False)
    # A list all of whose items are wrong is not too short as well.
    return [_sentence(dict(one), root) for one in found if one["type"] != "too_short" or not one["input"]]


def _sentence(mistake: dict[str, Any], root: Model) -> str:
    path, models = _follow(mistake["loc"], root)
    where = ".".join(str(part) for part in path) or "job"
    kind, found, context = mistake["type"], mistake["input"], mistake.get("ctx", {})
    reason = mistake["msg"][:1].lower() + mistake["msg"][1:]
    match kind:
        case "missing":
            return f"{where}: is missing"
        case "extra_forbidden":
            allowed = sorted({key for model in models for key in model.model_fields})
            close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            return f"{where}: unknown key{hint}; allowed here: {', '.join(allowed)}"
        case "value_error":
            reason = str(context["error"])
            return f"{where}: {_show(found)} is not allowed: {reason}" if path else reason
        case "unknown_name":
            name = found.get("name") if isinstance(found, Mapping) else found
            return f"{where}.name: {_show(name)} is not known; {mistake['msg']}"
        case "string_pattern_mismatch":
            reason = _PATTERNS.get(context["pattern"], reason)
    return f"{where}: {_show(found)} is not allowed: {reason.replace('input should', 'it should')}"


def _follow(location: Sequence[int | str], root: Model) -> tuple[list[int | str], list[Model]]:
    """The path as a person wrote it, without pydantic's tags, and the models that hold its last key."""
    path: list[int | str] = []
    models, holders, chosen = [root], [root], True
    for part in location:
        if not chosen and (entry := _entry(models, part)) is not None:
            models, chosen = [entry], True
            continue
        path.append(part)
        holders = models
        fields = [model.model_fields[part] for model in models if isinstance(part, str) and part in model.model_fields]
        if fields:
            models = [model for field in fields for model in _models_in(field.annotation)]
            chosen = len(models) < 2
    return path, holders


def _entry(models: list[Model], tag: int | str) -> Model | None:
    for model in models:
        if tag == (CUSTOM if issubclass(model, Custom) else tag_of(model) if "name" in model.model_fields else BUILTIN):
            return model
    return None


def _models_in(annotation: Any) -> list[Model]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
