"""Pages that are written from the code: a cell of a table, a text between markers, and the file in its place."""

import re
import sys
from collections.abc import Callable
from pathlib import Path


def cell(text: str) -> str:
    """Returns the text as a cell of a Markdown table."""
    return text.replace("|", "\\|")


def replaced(page: str, name: str, text: str) -> str:
    """Returns the page with `text` between `<!-- name -->` and `<!-- end -->`; `ValueError` if it lacks the place."""
    place = re.compile(rf"(<!-- {name} -->\n).*(<!-- end -->)", re.DOTALL)
    if place.search(page) is None:
        raise ValueError(f"the page has no place for the {name}: <!-- {name} --> and <!-- end -->")
    return place.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page)


def write(page: Path, rendered: Callable[[str], str]) -> None:
    """Writes the page anew from what it holds; `SystemExit` with a sentence if it lacks a place."""
    try:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
    except ValueError as error:
        sys.exit(f"error: {page}: {error}")
