"""Signals during the start of a service: its imports take a second or more, and Ctrl-C may come meanwhile."""

import os
import signal


def heed_signals() -> None:
    """Makes SIGTERM and SIGINT end the process at once, with exit code 0, until `until_stopped` replaces that.

    An exception could be lost in the middle of an import, and no work has begun that would need an orderly end.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(os.EX_OK))
