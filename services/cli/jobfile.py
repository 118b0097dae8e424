"""From a job file and `--set key=value` to a job, or to what is wrong with them and where."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shared import jobs
from shared.errors import BadInput
from shared.jobs import JobSpec


def load(file: Path, assignments: Sequence[str] = ()) -> JobSpec:
    """The job that `file` describes, with each assignment put in its place."""
    return amended(_read(file), assignments, str(file))


def start_file(spec: JobSpec, folder: Path) -> Path | None:
    """The file that the job's model begins with, `BadInput` where it cannot be read; None where it begins at random."""
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


def amended(document: Any, assignments: Sequence[str], place: str) -> JobSpec:
    """The job of a document that was read at `place`, with each assignment put in its place."""
    try:
        if isinstance(document, Mapping):
            document = jobs.override(document, [_assignment(text) for text in assignments])
        return jobs.parse(document)
    except BadInput as error:
        raise BadInput("\n".join(f"{place}: {line}" for line in str(error).splitlines())) from error


def _read(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{file}: there is no such file") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: is not a text file: byte {error.start} is not UTF-8") from error
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise BadInput(f"{where}: is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{file}: is not YAML: {' '.join(str(error).split())}") from error


def _assignment(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise BadInput(f"--set {text}: write it as key.key=value, such as rounds.count=3")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {text}: the value is not YAML; quote it") from error


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice; the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
