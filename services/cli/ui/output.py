"""Output of the command line: tables and numbers for people, JSON for programs.

The output often contains text from messages, from the bucket or from logs. Its control characters are replaced here,
so that a terminal shows them instead of obeying them.
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

__all__ = ["note", "say"]  # re-exported for modules that use the rest of this one too

WIDE = 200  #: columns if standard output is no terminal: long lines suit grep and are not folded


class Terminal(Console):
    """Console on standard output that prints text literally: brackets in a reason are not markup."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else WIDE
        super().__init__(markup=False, highlight=False, emoji=False, width=width)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # `services.cli.ui.failing` handles it, and Rich would exit with 1

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # All output passes through this method, where Rich's own control codes can still be told from text.
        shown = (one if one.control else Segment(lines(one.text), one.style) for one in buffer)
        return super()._render_buffer(shown)


def table(*columns: str, numbers: tuple[str, ...] = (), long: tuple[str, ...] = ()) -> Table:
    """An empty table; `numbers` are right-aligned; the last column and those in `long` may take several lines.

    The other columns keep their full width on any terminal, because a truncated number would be a different number.
    """
    made = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        right = column in numbers
        wrapped = column in (*long, columns[-1])
        made.add_column(column, justify="right" if right else "left", no_wrap=not wrapped)
    return made


def emit(document: Any, *, line: bool = False) -> None:
    """Prints one JSON document on standard output, or one line of a stream of documents."""
    print(json_records.dumps(document, indent=None if line else 2), flush=True)


def figure(value: float | None) -> str:
    """A loss or an accuracy with three decimals."""
    return "" if value is None else f"{value:.3f}"


def in_four(value: float | None) -> str:
    """Any other metric with four digits."""
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
    """A number of bytes in a unit that leaves about three digits."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def shortened(names: "list[str] | tuple[str, ...]", most: int = 6) -> str:
    """A list for a terminal: its first items, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
