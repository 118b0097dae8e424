"""Catalog of the names that a job file may use, on a terminal: each family, its entries, and their keys."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from services.cli.ui import output
from shared.errors import BadInput
from shared.job.catalog import listing
from shared.job.catalog.listing import Parameter


def catalog(family: str | None, as_json: bool) -> None:
    """Prints every family, or those that match `family`."""
    found = listing.matching(family) if family else listing.families()
    if not found:
        raise BadInput(f"there is no family {family}; these are: {', '.join(listing.families())}")
    if as_json:
        return output.emit({name: [asdict(entry) for entry in entries] for name, entries in found.items()})
    terminal = output.Terminal()
    for name, entries in found.items():
        terminal.print(Text(f"{name}:", "bold"))
        common = listing.in_common(entries)
        if common:
            terminal.print(Text("  each of them"))
            terminal.print(_parameters(common))
        for entry in entries:
            terminal.print(Text.assemble("  ", (entry.name or "", "cyan"), "  " if entry.name else "", entry.line))
            own = [one for one in entry.parameters if one not in common]
            if own:
                terminal.print(_parameters(own))
        terminal.print()
    return None


def default_of(parameter: Parameter) -> str:
    """Default of a key, as a person writes it."""
    if parameter.required:
        return "required"
    if parameter.default is None:
        return "none"
    return f"{parameter.default:g}s" if parameter.type == "duration" else written(parameter.default)


def written(value: Any) -> str:
    """A value as it is written in a job file; for a section, its name."""
    if isinstance(value, dict):
        return str(value.get("name", "{}"))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parameters(parameters: Iterable[Parameter]) -> Table:
    made = Table.grid(padding=(0, 2, 0, 0))
    for one in parameters:
        made.add_row(f"      {one.name}", one.type, default_of(one), one.allowed)
    return made
