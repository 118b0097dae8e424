"""How a service lives: start, run until asked to stop, shut down in order."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import structlog

from shared.errors import FedqError, Unavailable

Result = TypeVar("Result")

PATIENCE = 6.0  #: seconds that a server may take to answer when a service starts
RETRY = 0.5  #: seconds between two tries


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def at_start(check: Callable[[], Result], stop: threading.Event) -> Result | None:
    """What a server answers; asked again for a few seconds while it does not, because it may be starting too.

    None where the service was asked to stop meanwhile; `Unavailable` where the server does not answer in time.
    """
    deadline = time.monotonic() + PATIENCE
    while not stop.is_set():
        try:
            return check()
        except Unavailable as error:
            if time.monotonic() + RETRY >= deadline:
                raise
            structlog.get_logger().warning("waiting", reason=str(error))
            stop.wait(RETRY)
    return None


def run(main: Callable[[], None]) -> None:
    """Runs a service's `main`; a mistake of setting or a missing server is one clear sentence, then the exit code."""
    try:
        main()
    except FedqError as error:
        if structlog.is_configured():  # or it would print all of it
            structlog.get_logger().debug("ended", exc_info=True)
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the last word of a process that cannot start
        sys.exit(error.exit_code)
