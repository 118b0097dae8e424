"""The tables of docs/guide/catalog.md, written from the catalog: `python -m docs.catalog_page`."""

import re
from pathlib import Path

from docs.page import cell, write
from services.cli.report.catalog import default_of
from shared.job.catalog import listing
from shared.job.catalog.listing import Entry, Parameter

PAGE = Path(__file__).parent / "guide" / "catalog.md"
COMMAND = "python -m docs.catalog_page"
_PLACE = re.compile(r"(<!-- (?!end )(?P<family>[a-z_.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(page: str) -> str:
    """The page with the table of each family between its markers; `ValueError` where a family has no place."""
    missing = listing.families().keys() - {place["family"] for place in _PLACE.finditer(page)}
    if missing:
        raise ValueError(f"the page has no place for {', '.join(sorted(missing))}: <!-- family --> and <!-- end -->")
    return _PLACE.sub(lambda place: f"{place[1]}{_table(listing.families()[place['family']])}{place[3]}", page)


def _table(entries: tuple[Entry, ...]) -> str:
    common = listing.in_common(entries)
    lines = [f"Each of them takes {'; '.join(map(_parameter, common))}.", ""] if common else []
    if entries[0].name is None and len(entries) == 1:
        lines += [entries[0].line, "", "| key | type | default | allowed |", "|---|---|---|---|"]
        lines += [
            f"| `{one.name}` | {one.type} | {default_of(one)} | {cell(one.allowed)} |" for one in entries[0].parameters
        ]
    else:
        lines += ["| name | what | takes |", "|---|---|---|"]
        for entry in entries:
            own = [_parameter(one) for one in entry.parameters if one not in common]
            name = f"`{entry.name}`" if entry.name else "(no name)"
            lines.append(f"| {name} | {cell(entry.line)} | {cell('<br>'.join(own))} |")
    return "\n".join(["", *lines, "", ""])


def _parameter(one: Parameter) -> str:
    allowed = f" ({one.allowed})" if one.allowed else ""
    return f"`{one.name}`: {one.type}{allowed}, {'' if one.required else 'default '}{default_of(one)}"


if __name__ == "__main__":
    write(PAGE, rendered)
