"""Choice of a section of the job file by its `name`: a catalog entry, or the user's own code by `module:attribute`."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

ATTRIBUTE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
DURATION = "Seconds, or a duration such as 500ms, 60s, 5m or 2h."
CUSTOM = "custom"  #: the tag of the user's own code

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)\s*", value)
        if not match:
            raise ValueError("must be a duration such as 500ms, 60s, 5m or 2h")
        return float(match[1]) * _UNITS[match[2]]
    return value


Seconds = Annotated[
    float,
    BeforeValidator(_duration),
    Field(gt=0, le=7 * 86400),
    # The schema is written out, because pydantic generates `gt` and `le` here, which no editor knows.
    WithJsonSchema(
        {
            "description": DURATION,
            "anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 604800}, {"type": "string"}],
        }
    ),
]


class Strict(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuses true and false for a number: pydantic would take true for 1.0."""
        wanted = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and float in (wanted, *get_args(wanted)):
            raise ValueError("it should be a number")
        return value


DEEPEST = 64  #: levels of `args`; a value hundreds of levels deep can be read from a message, but not written again


def _of_json(args: dict[str, Any]) -> dict[str, Any]:
    waiting: list[tuple[Any, int]] = [(args, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"JSON, which keeps the job, has no {value}")
        if isinstance(value, Mapping | list | tuple):
            if depth > DEEPEST:
                raise ValueError(f"it is more than {DEEPEST} levels deep")
            inner = (*value, *value.values()) if isinstance(value, Mapping) else value
            waiting += ((one, depth + 1) for one in inner)
        elif not isinstance(value, str | int | float | None):
            raise ValueError(f"JSON, which keeps the job, has no {type(value).__name__}")
    return args


class Custom(Strict):
    """Code of the user's own, named as `module:attribute` and called with `args`."""

    name: str = Field(pattern=ATTRIBUTE)
    args: Annotated[dict[str, Any], AfterValidator(_of_json)] = {}


def tag_of(entry: type[BaseModel]) -> str:
    """The name that chooses an entry; `custom` for the user's own code."""
    return CUSTOM if issubclass(entry, Custom) else str(entry.model_fields["name"].default)


class Choice:
    """Marks a union of entries as chosen by `name`; `default` is the entry of a section that gives no name."""

    def __init__(self, section: str, default: str | None = None) -> None:
        self.section = section
        self.default = default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        entries = {tag_of(entry): entry for entry in get_args(source)}
        known = [tag for tag in entries if tag != CUSTOM]
        own = ", or your own as module:attribute" if CUSTOM in entries else ""

        def choose(value: object) -> str | None:
            name = value.get("name", self.default) if isinstance(value, Mapping) else getattr(value, "name", None)
            if isinstance(name, str):
                return CUSTOM if ":" in name and CUSTOM in entries else name if name in known else None
            return None

        return core_schema.tagged_union_schema(
            {tag: handler.generate_schema(entry) for tag, entry in entries.items()},
            discriminator=choose,
            custom_error_type="unknown_name",
            custom_error_message=f"allowed: {', '.join(known)}{own}",
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        for part in found["oneOf"]:
            entry = handler.resolve_ref_schema(part)
            # To an editor, a section without a name would match every entry whose name could be left out.
            if entry["properties"]["name"].get("const") != self.default:
                entry["required"] = ["name", *(key for key in entry.get("required", ()) if key != "name")]
        return found
