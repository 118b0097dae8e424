"""Data of a job's clients: counts by client and class, as the trainer's code partitions data, or a silo's own file.

The description of a silo's file includes the lines that a job file needs, so that all silos can agree on them.
No service imports another, so the trainer's code runs as a separate process, with the job on its standard input.
"""

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.cli.jobs import jobfile
from services.cli.report import saving
from services.cli.ui import output
from shared.errors import BadInput
from shared.job.job_spec import JobSpec

MODULE = "services.trainer.data.split"
DESCRIBE = "services.trainer.data.describe"
PATIENCE = 900.0  #: seconds; a data set may have to be downloaded
ROWS = 40  #: clients in a table on a terminal; JSON has all of them
LABELS = 40  #: labels in a list on a terminal; JSON has all of them
PACKAGES = ("celery", "minio", "numpy", "PIL", "sklearn", "torch", "torchvision")  #: packages that a trainer needs


@dataclass(frozen=True)
class Split:
    """Numbers of examples, by client and class."""

    classes: tuple[str, ...]
    clients: dict[str, list[int]]
    test: list[int] | None
    shape: tuple[int, ...]

    @property
    def examples(self) -> int:
        return sum(map(sum, self.clients.values()))


def data(file: Path, assignments: Sequence[str], *, plot: Path | None, force: bool, as_json: bool) -> None:
    """Prints each client's data, and draws them if asked; for silos with their own files, describes the local file."""
    draft = jobfile.load_draft(file, assignments)
    if draft.has_own_files:
        if plot is not None:
            raise BadInput("--plot shows how data are shared out, and silos share nothing out: leave it out")
        return _describe(asked(DESCRIBE, draft.model_dump_json(), draft.data.name), as_json)
    spec = jobfile.load(file, assignments)
    if plot is not None:
        saving.check_target(plot, force)
    answer = counted(spec)
    split = Split(tuple(answer["classes"]), answer["clients"], answer["test"], tuple(answer["shape"]))
    if as_json:
        output.emit(answer)
    else:
        _print(split, answer.get("owners", ()))
        for silo, reason in answer.get("elsewhere", {}).items():
            output.say(f"{silo} is not here: {reason}")
    if plot is not None:
        from services.cli.report.plotting import shares

        with saving.replacing(plot) as fresh:
            shares(spec.name, split.classes, split.clients, fresh)
        output.note(f"saved {plot}")
    return None


def counted(spec: JobSpec, patience: float = PATIENCE) -> dict[str, Any]:
    """Reads from the trainer's code the names of the classes, and the counts of each client and of the test set."""
    return asked(MODULE, spec.model_dump_json(), spec.data.name, patience)


def asked(module: str, document: str, name: str, patience: float = PATIENCE) -> dict[str, Any]:
    """The answer of a trainer module, run as a process, to a JSON document about the data set `name`."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=document,
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadInput(f"data {name} was not read within {output.span(patience)}") from None
    if done.returncode:
        raise BadInput(_reason(name, done.stderr, done.returncode))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _reason(name: str, text: str, code: int) -> str:
    last = (text.strip().splitlines() or [f"it ended with code {code} and no word"])[-1]
    missing = re.search(r"No module named '(\w+)", last)
    if missing and missing[1] in PACKAGES:
        return (
            f"the data are read by the trainer's code, and {missing[1]} is not installed here: install fedq[trainer], "
            "or run this where a trainer runs"
        )
    return last.removeprefix("error: ") if last.startswith("error: ") else f"data {name}: {last}"


def _print(split: Split, owners: Sequence[str]) -> None:
    sizes = [sum(counts) for counts in split.clients.values()]
    shape = "×".join(map(str, split.shape))
    print(
        f"{len(sizes)} clients have {split.examples} examples of {len(split.classes)} classes and shape {shape}: "
        f"{_spread(sizes)}"
    )
    if split.test is not None:
        print(f"the test set has {sum(split.test)}")
    if unused := owners[len(split.clients) :]:
        output.say(f"{len(unused)} of {len(owners)} owners are left out: {output.shortened(list(unused), 5)}")
    owned = ["owner"] * bool(owners)
    made = output.table("client", *owned, "examples", "classes", "most of", numbers=("examples", "classes"))
    for place, (client, counts) in enumerate(list(split.clients.items())[:ROWS]):
        whose = owners[place : place + 1]
        made.add_row(client, *whose, str(sum(counts)), str(sum(map(bool, counts))), _most(split.classes, counts))
    output.Terminal().print(made)
    if len(sizes) > ROWS:
        print(f"and {len(sizes) - ROWS} more clients; --json has all of them, --plot shows them")


def _describe(found: Mapping[str, Any], as_json: bool) -> None:
    """Prints the trainer code's description of the silo's file."""
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
    """A value as a person would write it, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return text.strip()


def _spread(sizes: Sequence[int]) -> str:
    if min(sizes) == max(sizes):
        return f"{sizes[0]} each"
    return f"{min(sizes)} to {max(sizes)} each, half of them {statistics.median_high(sizes)} or more"


def _most(classes: Sequence[str], counts: Sequence[int]) -> str:
    """The most frequent classes of a client, with their counts."""
    first = sorted(zip(counts, classes, strict=True), key=lambda one: -one[0])[:4]
    return ", ".join(f"{name} ({count})" for count, name in first if count)
