"""The first moments of a service: what it runs on takes a second or more to import, and Ctrl-C may come meanwhile."""

import os
import signal


def heed_signals() -> None:
    """From now on SIGTERM and SIGINT end the process at once, with exit code 0; `until_stopped` replaces it.

    Nothing has been begun that would need an order, and an exception may be lost in the middle of an import.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(os.EX_OK))
