"""The protocol of a round in CONTRIBUTING.md, written from the code that runs it: `python -m docs.walk_page`."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from docs.page import cell, replaced, write
from services.aggregator import job_state, protocol

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
COMMAND = "python -m docs.walk_page"


def rendered(page: str) -> str:
    """Returns the page with the protocol between its markers; `ValueError` if it has no such place."""
    return replaced(page, "protocol", "\n".join(_protocol()))


def _protocol() -> Iterator[str]:
    yield from ("```text", _diagram(), "```", "", "| input | it says |", "|---|---|")
    yield from _rows(protocol.Input)
    yield from ("", "| effect | what it asks for |", "|---|---|")
    yield from (*_rows(protocol.Effect), "")


def _diagram() -> str:
    """The indented block of the state module's docstring."""
    lines = (job_state.__doc__ or "").splitlines()
    block = [line for line in lines if line.startswith("    ")]
    return inspect.cleandoc("\n" + "\n".join(block))


def _rows(kinds: object) -> Iterator[str]:
    for kind in get_args(kinds):
        yield f"| `{kind.__name__}` | {cell((kind.__doc__ or '').splitlines()[0])} |"


if __name__ == "__main__":
    write(PAGE, rendered)
