"""How a service lives: start, run until asked to stop, shut down in order."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

from shared.errors import FedqError


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


def run(main: Callable[[], None]) -> None:
    """Runs a service's `main`; a mistake of setting or a missing server is one clear sentence, then the exit code."""
    try:
        main()
    except FedqError as error:
        if structlog.is_configured():  # or it would print all of it
            structlog.get_logger().debug("ended", exc_info=True)
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the last word of a process that cannot start
        sys.exit(error.exit_code)
