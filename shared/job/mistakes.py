"""Sentences for the mistakes that pydantic finds in a job file: the path, the value found, and the allowed values.

Pure.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from shared.job.catalog.choice import ATTRIBUTE, CUSTOM, Custom, tag_of
from shared.names import CLIENT_NAME, JOB_NAME

BUILTIN = "builtin"  #: the tag of the local step that has no name

_PATTERNS = {
    r"^[a-z][a-z0-9_]{1,60}$": "the name of one of torchvision's models, such as mobilenet_v3_small",
    CLIENT_NAME: "letters, digits, - and _, at most 63, starting with a letter or digit",
    ATTRIBUTE: "your own is given as module:attribute, such as mypkg.nets:make",
    JOB_NAME: "lower-case letters, digits and -, at most 39",
}

Model = type[BaseModel]


def sentences(error: ValidationError, root: Model, texts: Mapping[tuple[str | int, ...], str] = {}) -> list[str]:
    """One line for each mistake in an input for `root`; `texts` holds values as they were written, by their path."""
    found = error.errors(include_url=False)
    # If all items of a list are wrong, pydantic also calls it too short: the user needs only the first reason.
    return [_sentence(dict(one), root, texts) for one in found if one["type"] != "too_short" or not one["input"]]


def _sentence(mistake: dict[str, Any], root: Model, texts: Mapping[tuple[str | int, ...], str]) -> str:
    path, models = _follow(mistake["loc"], root)
    where = ".".join(str(part) for part in path) or "job"
    kind, found, context = mistake["type"], mistake["input"], mistake.get("ctx", {})
    match kind:
        case "missing":
            return f"{where}: is missing"
        case "extra_forbidden":
            allowed = sorted({key for model in models for key in model.model_fields})
            return f"{where}: unknown key{_hint(path[-1], allowed)}; allowed here: {', '.join(allowed)}"
        case "value_error":
            reason = str(context["error"])
            if isinstance(found, Mapping):  # a section whose keys do not go together; it is too long to be shown
                return f"{where}: {reason}" if path else reason
            return f"{where}: {_show(found)} is not allowed: {reason}"
        case "unknown_name":
            return _unknown(where, found, mistake["msg"])
    unquoted = _unquoted(found) if kind == "string_type" else ""
    shown = texts.get(tuple(path), _show(found)) if unquoted else _show(found)
    return f"{where}: {shown} is not allowed: {unquoted or _reason(kind, context, mistake['msg'])}"


def _unquoted(found: object) -> str:
    """The reason why an unquoted value is not a word, though it may be meant as one; empty if it is one."""
    if found is not None and not isinstance(found, bool | int | float):
        return ""
    kind = "nothing" if found is None else "true or false" if isinstance(found, bool) else "a number"
    return f"unquoted it means {kind}, and a word is wanted: quote it"


def _unknown(where: str, found: object, allowed: str) -> str:
    """The sentence for a section whose `name` is missing or unknown."""
    known = re.findall(r"\w+", allowed.partition(":")[2].partition(", or ")[0])
    if not isinstance(found, Mapping):
        such = found if found in known else known[0]
        return f"{where}: {_show(found)} is not allowed: it should be a mapping, such as {{name: {such}}}; {allowed}"
    if "name" not in found:
        return f"{where}.name: is missing; {allowed}"
    return f"{where}.name: {_show(found['name'])} is not known{_hint(found['name'], known)}; {allowed}"


def _reason(kind: str, context: Mapping[str, Any], message: str) -> str:
    match kind:
        case "string_pattern_mismatch" if context["pattern"] in _PATTERNS:
            return _PATTERNS[context["pattern"]]
        case "model_type" | "dict_type":
            return "it should be a mapping, of keys to values"
        case "tuple_type" | "list_type":
            return "it should be a list"
    plain = re.sub(r" after validation, not \d+$", "", message)
    plain = re.sub(r"^(Input|Tuple|List|String) should", "it should", plain)
    return plain[:1].lower() + plain[1:]


def _hint(given: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(given), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _follow(location: Sequence[int | str], root: Model) -> tuple[list[int | str], list[Model]]:
    """The path as the user wrote it, without pydantic's tags, and the models that hold its last key."""
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
    """A value as YAML writes it, cut if it is long."""
    words = {"True": "true", "False": "false", "None": "null"}
    text = words.get(repr(value), repr(value))
    return text if len(text) <= 60 else text[:57] + "..."
