"""The reference in docs/guide/commands.md, written from the command line itself: `python -m docs.command_page`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from docs.page import cell, replaced, write
from services.cli.__main__ import app

PAGE = Path(__file__).parent / "guide" / "commands.md"
COMMAND = "python -m docs.command_page"


def rendered(page: str) -> str:
    """Returns the page with the reference between its markers; `ValueError` if it has no such place."""
    return replaced(page, "commands", "\n".join(_reference()))


def _reference() -> Iterator[str]:
    # Typer's classes have no types that mypy knows.
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    yield from ("| command | what it does |", "|---|---|")
    for name, command in commands.items():
        yield f"| [`fedq {name}`](#fedq-{name}) | {cell(command.help.splitlines()[0])} |"
    yield ""
    for name, command in commands.items():
        yield from (f"### fedq {name}", "", f"`{_usage(name, command.params)}`", "", command.help.strip(), "")
        if command.params:
            yield from ("| takes | what it is |", "|---|---|")
            yield from (f"| `{_takes(one)}` | {cell(one.help or '')}{_default(one)} |" for one in command.params)
            yield ""


def _usage(name: str, parameters: list[Any]) -> str:
    arguments = [_takes(one) for one in parameters if one.param_type_name == "argument"]
    options = ["[OPTIONS]"] if len(arguments) < len(parameters) else []
    return " ".join(["fedq", name, *arguments, *options])


def _takes(one: Any) -> str:
    """Returns `FILE`, `[FILE]`, `JOB…`, or `--set KEY=VALUE`, as a person would write it."""
    if one.param_type_name == "argument":
        word = f"{one.metavar}{'…' if one.nargs != 1 else ''}"
        return word if one.required else f"[{word}]"
    names = ", ".join([*one.opts, *one.secondary_opts])
    return names if one.is_flag else f"{names} {one.metavar or one.name.upper()}"


def _default(one: Any) -> str:
    plain = isinstance(one.default, int | float | str) and not isinstance(one.default, bool)
    return f" Default: {one.default}." if plain and one.default != "" else ""


if __name__ == "__main__":
    write(PAGE, rendered)
