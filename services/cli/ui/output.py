"""Output of the command line: tables and numbers for people, JSON for programs.

What is written was often read: from messages, from the bucket, from logs. Control characters in it are replaced here,
so that a terminal shows it and obeys nothing.
"""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.table import Table

from services.cli.ui.writing import note, say
from shared.s3 import json_records
from shared.text import lines

__all__ = ["note", "say"]  # for who uses more of this too

WIDE = 200  #: columns of what no terminal will show: lines are for grep then, and not folded


class Terminal(Console):
    """Standard output, where text is text: a reason with brackets in it is no markup."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else WIDE
        super().__init__(markup=False, highlight=False, emoji=False, width=width)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # `services.cli.ui.failing` handles it, and Rich would exit with 1

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # Where all that is printed passes, and what Rich itself has the terminal do can be told from text.
        shown = (one if one.control else Segment(lines(one.text), one.style) for one in buffer)
        return super()._render_buffer(shown)


def table(*columns: str, numbers: tuple[str, ...] = (), long: tuple[str, ...] = ()) -> Table:
    """An empty table; `numbers` are aligned to the right; the last column and those in `long` may take several lines.

    The others keep their width whatever the terminal's: a figure that is cut would be another figure.
    """
    made = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        right = column in numbers
        wrapped = column in (*long, columns[-1])
        made.add_column(column, justify="right" if right else "left", no_wrap=not wrapped)
    return made


def emit(document: Any, *, line: bool = False) -> None:
    """One JSON document on standard output, or one line of a stream of them."""
    print(json_records.dumps(document, indent=None if line else 2), flush=True)


def figure(value: float | None) -> str:
    """A loss or an accuracy, to three decimals."""
    return "" if value is None else f"{value:.3f}"


def in_four(value: float | None) -> str:
    """Any other figure, to four digits."""
    return "" if value is None else f"{value:.4g}"


def span(seconds: float) -> str:
    """A duration in its two largest units: 42 s, 3 m 20 s, 2 h 5 m, 4 d 1 h."""
    whole = max(0, round(seconds))
    for large, size, small, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def size(count: int) -> str:
    """Bytes, in a unit that leaves three digits or so."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def shortened(names: "list[str] | tuple[str, ...]", most: int = 6) -> str:
    """A list for a terminal: its first few, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
