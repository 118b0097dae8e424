"""Manners of a stack's command: it leaves nothing behind when asked to end, and writes on any terminal.

It ends through every `finally`. A letter that the terminal's encoding lacks is shown by its number, and ends nothing.
"""

import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_in_order() -> None:
    """From now on Ctrl-C, SIGTERM and a closed terminal raise SystemExit, once; nothing interrupts what follows it.

    Under `nohup` a closed terminal ends nothing.
    """
    for sign in SIGNALS:
        if sign != signal.SIGHUP or signal.getsignal(sign) != signal.SIG_IGN:
            signal.signal(sign, _end)


def _end(number: int, _: FrameType | None) -> NoReturn:
    for sign in SIGNALS:
        signal.signal(sign, signal.SIG_IGN)
    sys.exit(128 + number)


def show_anything() -> None:
    """From now on `ü` is `\\xfc` on an ASCII terminal; Python has standard error so from the beginning."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
