"""Job files: turns a file and `--set key=value` into a job, or into errors with their places."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from services.cli.jobs import plain_yaml
from services.cli.jobs.plain_yaml import Unclear, Written
from shared.errors import BadInput
from shared.job import job_spec
from shared.job.job_spec import Draft, JobSpec

LONGEST = 4 << 20  #: bytes of a job file; the limit for its announcement is lower still


def load(file: Path, assignments: Sequence[str] = ()) -> JobSpec:
    """The job that `file` describes, with each assignment applied."""
    written = _read(file)
    return amended(written.value, assignments, str(file), written.texts)


def load_draft(file: Path, assignments: Sequence[str] = ()) -> Draft:
    """The data section of `file` with each assignment applied, even if the file is not a valid job yet."""
    written = _read(file)
    with _told_of(str(file)):
        return job_spec.draft(*_merged(written.value, assignments, written.texts))


def start_file(spec: JobSpec, folder: Path) -> Path | None:
    """The file with the job's initial model; None for random weights, `BadInput` if it cannot be read."""
    if spec.model.start is None:
        return None
    path = folder / spec.model.start
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            known = file.read(1) == b"{" and length < path.stat().st_size
    except OSError as error:
        raise BadInput(f"model.start: {path} cannot be read: {error.strerror}") from error
    if not known:
        raise BadInput(f"model.start: {path} is no safetensors file")
    return path


def amended(
    document: Any, assignments: Sequence[str], place: str, texts: Mapping[plain_yaml.Path, str] = {}
) -> JobSpec:
    """The job of a document that was read at `place`, with each assignment applied.

    `texts` has the document's values as they were written.
    """
    with _told_of(place):
        return job_spec.parse(*_merged(document, assignments, texts))


def _merged(
    document: Any, assignments: Sequence[str], texts: Mapping[plain_yaml.Path, str]
) -> tuple[Any, Mapping[plain_yaml.Path, str]]:
    if isinstance(document, Mapping):
        given = [_assignment(text) for text in assignments]
        document = job_spec.override(document, [(path, written.value) for path, written in given])
        for path, written in given:
            keys = tuple(path.split("."))
            kept = {place: text for place, text in texts.items() if place[: len(keys)] != keys}
            texts = kept | {(*keys, *inner): text for inner, text in written.texts.items()}
    return document, texts


@contextmanager
def _told_of(place: str) -> Iterator[None]:
    """Prefixes each line of a `BadInput` raised in the block with its place."""
    try:
        yield
    except BadInput as error:
        raise BadInput("\n".join(f"{place}: {line}" for line in str(error).splitlines())) from error


def _read(file: Path) -> Written:
    try:
        with file.open("rb") as opened:
            content = opened.read(LONGEST + 1)
        text = content.decode()
    except FileNotFoundError:
        hint = "; what is piped in is /dev/stdin" if str(file) == "-" else ""
        raise BadInput(f"{file}: there is no such file{hint}") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: is not a text file: byte {error.start} is not UTF-8") from error
    if len(content) > LONGEST:
        raise BadInput(f"{file}: is no job file: it is longer than {LONGEST >> 20} MiB")
    try:
        return plain_yaml.read(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        kind = "" if isinstance(error, Unclear) else "is not YAML: "
        raise BadInput(f"{where}: {kind}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{file}: is not YAML: {' '.join(str(error).split())}") from error


def _assignment(text: str) -> tuple[str, Written]:
    path, equals, value = text.partition("=")
    path = path.strip()  # YAML strips the value likewise
    if not equals or not all(path.split(".")):
        raise BadInput(f"--set {text}: write it as key.key=value, such as rounds.count=3")
    try:
        return path, plain_yaml.read(value)
    except Unclear as error:
        whole = error.problem.startswith(value.strip())  # else the problem is in a part, which must be quoted in place
        hint = f", within the shell's own: --set {shlex.quote(f'{path}={json.dumps(value)}')}" if whole else ""
        raise BadInput(f"--set {text}: {error.problem}{hint}") from error
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise BadInput(f"--set {text}: the value is not YAML ({why}); quote it") from error
