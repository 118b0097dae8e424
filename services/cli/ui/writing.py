"""Lines on standard output and error, without what a terminal would obey, in whatever encoding it has."""

import codecs
import io
import os
import sys

from shared.text import lines

SPELLED = {"✓": "+", "✗": "x", "→": ">", "…": "~", "—": "-", "–": "-", "−": "-", "×": "x", "·": "."}


def prepare() -> None:
    """Has standard output and error write in any encoding, none of which must end a command; nowhere, if closed."""
    codecs.register_error("fedq", _spelled)
    if sys.stdout is None:  # `fedq … >&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open as long as the command runs
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # as it is, unless a test or a notebook took its place
            stream.reconfigure(errors="fedq")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - these streams are written alone
    missing = error.object[error.start : error.end]
    return "".join(SPELLED.get(one, "?") for one in missing), error.end


def say(text: str) -> None:
    """A line, or several, on standard output."""
    print(lines(text), flush=True)


def note(sentence: str) -> None:
    """Something a person should know and a script that reads standard output should not."""
    print(lines(sentence), file=sys.stderr)
