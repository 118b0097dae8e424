"""Pages of the guide that are written from the code: a cell of a table, and the file in its place."""

import sys
from collections.abc import Callable
from pathlib import Path


def cell(text: str) -> str:
    """Returns the text as a cell of a Markdown table."""
    return text.replace("|", "\\|")


def write(page: Path, rendered: Callable[[str], str]) -> None:
    """Writes the page anew from what it holds; `SystemExit` with a sentence if it lacks a place."""
    try:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
    except ValueError as error:
        sys.exit(f"error: {page}: {error}")
