"""Lines on standard output and error, without control characters and in any encoding of the terminal."""

import codecs
import io
import os
import sys

from shared.text import lines

SPELLED = {"✓": "+", "✗": "x", "→": ">", "…": "~", "—": "-", "–": "-", "−": "-", "×": "x", "·": "."}


def prepare() -> None:
    """Makes standard output and error write in any encoding without an error, and discard all text if closed."""
    codecs.register_error("fedq", _spelled)
    if sys.stdout is None:  # closed by the shell, as in `fedq … >&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open as long as the command runs
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # false if a test or a notebook has replaced the stream
            stream.reconfigure(errors="fedq")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - these streams are only written to
    missing = error.object[error.start : error.end]
    return "".join(SPELLED.get(one, "?") for one in missing), error.end


def say(text: str) -> None:
    """Prints one or more lines on standard output."""
    print(lines(text), flush=True)


def note(sentence: str) -> None:
    """Prints a note for a person on standard error, so that scripts that read standard output do not see it."""
    print(lines(sentence), file=sys.stderr)
