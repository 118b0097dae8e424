"""The life of a service: start, run until asked to stop, shut down in order."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from shared.errors import BadInput, FedqError, Unavailable
from shared.process import settings

PATIENCE = 6.0  #: seconds that all servers together may take to answer when a service starts
TRY = 2.0  #: seconds that one try of one server should take at most
RETRY = 0.5  #: seconds between two tries

Check = Callable[[], object]


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set.

    The kernel may hand a signal to any thread, and Python runs a handler only in the main thread, and not while that
    waits for a lock. So the number of the signal goes through a pipe, which a separate thread reads.
    """
    stop = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while heard := os.read(reading, 64):
            if set(heard) & set(numbers):
                stop.set()

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    outer = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(outer)
        os.close(writing)
        listener.join()
        os.close(reading)


def at_start(stop: threading.Event, checks: Mapping[str, Check]) -> bool:
    """True if every server answers as it should; false if the service was asked to stop meanwhile.

    The key of each of the `checks` is the variable that names the server. All run at once, and again for a few
    seconds, because servers may be starting too. After that this raises the reasons of all failures: as `Unavailable`,
    or as `BadInput` if one of them is a mistake in the settings.
    """
    structlog.get_logger().info("starting", looks_at=list(checks))
    deadline = time.monotonic() + PATIENCE
    trials = [_Trial(variable, check, stop, deadline) for variable, check in checks.items()]
    for trial in trials:
        trial.start()
    for trial in trials:
        trial.join(max(0.0, deadline - time.monotonic()))
    reasons = [trial.reason for trial in trials if trial.reason is not None]
    if stop.is_set() or not reasons:
        return not stop.is_set()
    unexpected = [reason for reason in reasons if not isinstance(reason, FedqError)]
    if unexpected or len(reasons) == 1:
        raise (unexpected or reasons)[0]
    kind = BadInput if any(isinstance(reason, BadInput) for reason in reasons) else Unavailable
    raise kind("\n".join(map(str, reasons)))


class _Trial(threading.Thread):
    """Runs a check until it passes; a daemon, because a driver that hangs, in a name lookup say, may not end."""

    def __init__(self, variable: str, check: Check, stop: threading.Event, deadline: float) -> None:
        super().__init__(name=f"check-{variable}", daemon=True)
        self._check, self._asked, self._deadline = check, stop, deadline
        #: The reason why the check has not passed; None once it has.
        self.reason: Exception | None = Unavailable(f"{variable}: its server gives no answer in {PATIENCE:g} s")

    def run(self) -> None:
        while True:
            try:
                self._check()
                self.reason = None
                return
            except FedqError as error:
                if str(error) != str(self.reason):
                    structlog.get_logger().warning("waiting", reason=str(error))
                self.reason = error
            except Exception as error:
                self.reason = error
                return
            if time.monotonic() + RETRY >= self._deadline or self._asked.wait(RETRY):
                return


def mention_unknown_settings() -> None:
    """Warns of variables that fedq does not read: a typo in a name would otherwise leave a surprising default."""
    for name, meant in settings.unknown().items():
        hint = f"{name} is not read by anybody" + (f"; is {meant} meant?" if meant else "")
        structlog.get_logger().warning("unknown setting", reason=hint)


def run(main: Callable[[], None]) -> None:
    """Runs a service's `main`; a wrong setting or a missing server becomes one clear sentence and an exit code."""
    try:
        main()
    except FedqError as error:
        if structlog.is_configured():  # unconfigured, it would print the whole traceback
            structlog.get_logger().debug("ended", exc_info=True)
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the last word of a process that cannot start
        sys.exit(error.exit_code)
