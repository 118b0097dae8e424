"""Signal handling and output encoding of the stack's commands.

An interrupted command runs every `finally` and leaves nothing behind. A character that the terminal's encoding lacks
is printed as an escape sequence instead of ending the command.
"""

import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_in_order() -> None:
    """Makes Ctrl-C, SIGTERM and a closed terminal raise SystemExit once; later signals do not interrupt the cleanup.

    Under `nohup`, a closed terminal has no effect.
    """
    for sign in SIGNALS:
        if sign != signal.SIGHUP or signal.getsignal(sign) != signal.SIG_IGN:
            signal.signal(sign, _end)


def _end(number: int, _: FrameType | None) -> NoReturn:
    for sign in SIGNALS:
        signal.signal(sign, signal.SIG_IGN)
    sys.exit(128 + number)


def show_anything() -> None:
    """Makes standard output print `ü` as `\\xfc` on an ASCII terminal, as Python's standard error always does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
