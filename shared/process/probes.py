"""Two files that say how a process fares: `alive` while its loops turn, `ready` while it serves.

For checks that need no connection: `find alive -mmin -3`, `test -e ready`. A server that is away fails neither,
because whoever waits for one waits in bounded steps, and says between them that it still turns.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from shared.errors import BadInput

OFTEN = 0.1  #: intervals between two touches at least, however quickly the loops turn


class Loop:
    """One of the loops that a process lives by; it must turn at least once an interval, from now on."""

    def __init__(self, probes: "Probes") -> None:
        self._probes = probes
        self.interval = probes.interval  #: seconds that one turn should take at most
        self.last = time.monotonic()

    def turned(self) -> None:
        """Says that the loop is not stuck; from its own thread. Takes 0.2 µs, and 10 µs where a touch is due."""
        self.last = now = time.monotonic()
        if now >= self._probes.due:
            self._probes.touch(now)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """`event.wait(seconds)` for a loop that has nothing else to do, and turns meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            self.turned()
            left = deadline - time.monotonic()
            if event.wait(max(0.0, min(left, self.interval))):
                return True
            if left <= self.interval:
                return False

    def end(self) -> None:
        """It has ended as it should: nobody expects it to turn again."""
        self._probes.forget(self)


class Probes:
    """The files of one process, in the folder `FEDQ_PROBE_DIR`, which is its own; without that, none.

    `alive` is as old as the last turn of the loop that turned least lately, so that one that hangs lets it grow old
    however well the others fare. Raises `BadInput` where the folder cannot be written.
    """

    def __init__(self, directory: Path | None = None, interval: float = 10.0) -> None:
        self.interval = interval  #: seconds
        self.due = float("inf")  # by the monotonic clock: when the next touch is of use
        self._directory = directory
        self._loops: tuple[Loop, ...] = ()
        self._lock = threading.Lock()
        self._stopping = False
        self._complained = False
        if self._directory is None:
            return
        self._alive, self._ready = self._directory / "alive", self._directory / "ready"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._ready.unlink(missing_ok=True)  # of a process that was killed
            self._alive.touch()
        except OSError as error:
            raise BadInput(f"FEDQ_PROBE_DIR: {self._directory} cannot be written: {error.strerror}") from error
        self.due = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stopping()
        if self._directory is not None:
            self.due = float("inf")
            with suppress(OSError):
                self._alive.unlink()

    def loop(self) -> Loop:
        """A loop of this process, which has turned now."""
        with self._lock:
            loop = Loop(self)
            self._loops += (loop,)
        return loop

    def forget(self, loop: Loop) -> None:
        with self._lock:
            self._loops = tuple(other for other in self._loops if other is not loop)

    def serving(self) -> None:
        """Ready from now on, unless it has been asked to stop."""
        with self._lock:
            if self._directory is not None and not self._stopping:
                self._written(self._ready.touch)

    def stopping(self) -> None:
        """Not ready any more, at once; it lives on until its loops have ended."""
        with self._lock:
            self._stopping = True
            if self._directory is not None:
                with suppress(OSError):
                    self._ready.unlink()

    def touch(self, now: float) -> None:
        """Has `alive` say when the loop turned that turned least lately; `now` is the monotonic clock's."""
        self.due = now + OFTEN * self.interval
        turned = time.time() - now + min((loop.last for loop in self._loops), default=now)
        self._written(lambda: _touch(self._alive, turned))

    def _written(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:  # the process is no worse for it; whoever looks at the files will end it
            if not self._complained:
                structlog.get_logger().warning("probe not written", reason=f"FEDQ_PROBE_DIR: {error}")
            self._complained = True


def _touch(path: Path, at: float) -> None:
    """As `touch -d` does: makes the file where somebody removed it."""
    try:
        os.utime(path, (at, at))
    except FileNotFoundError:
        path.touch()
