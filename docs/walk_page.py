"""The protocol of a round in CONTRIBUTING.md, written from the code that runs it: `python -m docs.walk_page`."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from docs.page import cell, write
from services.aggregator import job_state, protocol

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
COMMAND = "python -m docs.walk_page"
_PLACE = re.compile(r"(<!-- protocol -->\n).*(<!-- end -->)", re.DOTALL)


def rendered(page: str) -> str:
    """Returns the page with the protocol between its markers; `ValueError` if it has no such place."""
    if _PLACE.search(page) is None:
        raise ValueError("the page has no place for the protocol: <!-- protocol --> and <!-- end -->")
    text = "\n".join(_protocol())
    return _PLACE.sub(lambda place: f"{place[1]}\n{text}\n\n{place[2]}", page)


def _protocol() -> Iterator[str]:
    yield from ("```text", _diagram(), "```", "", "| input | it says |", "|---|---|")
    yield from _rows(protocol.Input)
    yield from ("", "| effect | what it asks for |", "|---|---|")
    yield from _rows(protocol.Effect)


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
