"""Lines of the log, as a terminal and as a program get them."""

import io
import json
import re
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from shared.process import logs
from shared.process.settings import Common

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # the renderer's own


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logs go where they went before."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def logged(form: Literal["console", "json"]) -> str:
    """A line of which a stranger wrote a part."""
    stream = io.StringIO()
    logs.configure(Common(log=form), "trainer", stream)
    structlog.get_logger().warning("no task \x1b[2J", reason="a\x1b]0;title\x07b\u202ec", count=3)
    return stream.getvalue()


def test_a_terminal_obeys_nothing_in_a_line() -> None:
    """Neither in its event nor in what is told with it; the renderer's colours stay."""
    line = logged("console")

    assert COLOUR.search(line)
    assert COLOUR.sub("", line).rstrip("\n").isprintable()
    assert all(word in line for word in ("no task", "title", "count"))


def test_a_program_gets_a_line_as_it_was() -> None:
    """JSON escapes what is no text."""
    text = logged("json")

    assert text.rstrip("\n").isprintable()
    assert json.loads(text)["reason"] == "a\x1b]0;title\x07b\u202ec"
