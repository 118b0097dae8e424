"""The file `.env` next to compose.yaml, generated once from `.env.example` with random passwords."""

import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from deploy.native.state import write_private
from shared.errors import BadInput

EXAMPLE = Path(__file__).with_name(".env.example")
ENV = Path(__file__).with_name(".env")
NEW = "# New: nothing was started with it yet.\n"  #: the first line of the file until `settle` removes it
_LINE = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)


def make(path: Path, given: Mapping[str, str] | None = None) -> None:
    """Writes the example to `path`, readable by its owner only; each empty value becomes a random one."""
    given = given or {}

    def fill(line: re.Match[str]) -> str:
        name, value = line.groups()
        return f"{name}={given.get(name) or value or secrets.token_urlsafe(24)}"

    write_private(path, NEW + _LINE.sub(fill, EXAMPLE.read_text()))


def is_new(path: Path) -> bool:
    """Tells whether the file is still as `make` wrote it, which is also true after a start that failed early."""
    return path.read_text().startswith(NEW)


def settle(path: Path, values: Mapping[str, str]) -> None:
    """Corrects values after the first start; from then on only the file's owner changes it."""
    change(path, values)
    write_private(path, path.read_text().removeprefix(NEW))


def read(path: Path) -> dict[str, str]:
    """The variables of the file, with their values as they are written there."""
    try:
        return dict(_LINE.findall(path.read_text()))
    except FileNotFoundError:
        raise BadInput(f"There is no {path}: run `make up`, or copy .env.example to it and fill it in.") from None


def change(path: Path, values: Mapping[str, str]) -> None:
    """Replaces values in the file and leaves its other lines alone."""
    text = _LINE.sub(lambda line: f"{line[1]}={values.get(line[1], line[2])}", path.read_text())
    write_private(path, text)
