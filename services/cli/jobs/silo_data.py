"""Description of a silo's own file, with the lines of it that a job file needs, so that all silos can agree."""

from collections.abc import Mapping
from typing import Any

import yaml

from services.cli.ui import output

LABELS = 40  #: in a list; a terminal is for looking, JSON has all


def show(found: Mapping[str, Any], as_json: bool) -> None:
    """Prints what the trainer's code says of the file."""
    if as_json:
        return output.emit(found)
    shape = "×".join(map(str, found["shape"]))
    held = f", {found['held_out']} of them held out (data.test_fraction)" if found["held_out"] else ""
    print(f"{found['place']}: {found['examples']} examples of shape {shape}{held}")
    labels = found["labels"]
    for label, count in list(labels.items())[:LABELS]:
        output.say(f"  {label}: {count}")
    if len(labels) > LABELS:
        print(f"  and {len(labels) - LABELS} more labels; --json has all of them")
    if found["problem"] is not None:
        output.say(f"it does not fit the job file: {found['problem']}")
    print("in the job file, below data:, once all silos agree:")
    said = {"classes": list(labels), "columns": found["columns"], "statistics": found["statistics"]}
    for key, value in said.items():
        if value is not None:
            print(f"  {key}: {_written(value)}")
    return None


def _written(value: Any) -> str:
    """The value as a person would write it, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return text.strip()
