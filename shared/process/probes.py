"""Two files that show the health of a process: `alive` while its loops turn, `ready` while it serves.

They allow checks without a connection: `find alive -mmin -3`, `test -e ready`. A server that is away fails neither,
because a loop that waits for one waits in bounded steps, and reports between them that it still turns.
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

OFTEN = 0.1  #: shortest time between two touches, in intervals, however quickly the loops turn


class Loop:
    """A main loop of a process; from its creation on, it must turn at least once per interval."""

    def __init__(self, probes: "Probes") -> None:
        self._probes = probes
        self.interval = probes.interval  #: seconds that one turn should take at most
        self.last = time.monotonic()

    def turned(self) -> None:
        """Reports, from the loop's thread, that it is not stuck. Takes 0.2 µs, and 10 µs if a touch is due."""
        self.last = now = time.monotonic()
        if now >= self._probes.due:
            self._probes.touch(now)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Waits as `event.wait(seconds)`, but lets the loop turn meanwhile; for a loop that has nothing else to do."""
        deadline = time.monotonic() + seconds
        while True:
            self.turned()
            left = deadline - time.monotonic()
            if event.wait(max(0.0, min(left, self.interval))):
                return True
            if left <= self.interval:
                return False

    def end(self) -> None:
        """Removes the loop, which has ended as it should and need not turn again."""
        self._probes.forget(self)


class Probes:
    """The probe files of one process, in the folder `FEDQ_PROBE_DIR` for this process alone; without it, no files.

    The time of `alive` is the oldest of the loops' last turns, so that one loop that hangs lets the file grow old
    even if all others turn. Raises `BadInput` if the folder cannot be written.
    """

    def __init__(self, directory: Path | None = None, interval: float = 10.0) -> None:
        self.interval = interval  #: seconds
        self.due = float("inf")  # time of the next touch, by the monotonic clock
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
            self._ready.unlink(missing_ok=True)  # left by a process that was killed
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
        """A new loop of this process; its creation counts as a turn."""
        with self._lock:
            loop = Loop(self)
            self._loops += (loop,)
        return loop

    def forget(self, loop: Loop) -> None:
        with self._lock:
            self._loops = tuple(other for other in self._loops if other is not loop)

    def serving(self) -> None:
        """Marks the process as ready, unless it has been asked to stop."""
        with self._lock:
            if self._directory is not None and not self._stopping:
                self._written(self._ready.touch)

    def stopping(self) -> None:
        """Marks the process as no longer ready, at once; it stays alive until its loops have ended."""
        with self._lock:
            self._stopping = True
            if self._directory is not None:
                with suppress(OSError):
                    self._ready.unlink()

    def touch(self, now: float) -> None:
        """Sets the time of `alive` to the oldest of the loops' last turns; `now` is by the monotonic clock."""
        self.due = now + OFTEN * self.interval
        turned = time.time() - now + min((loop.last for loop in self._loops), default=now)
        self._written(lambda: _touch(self._alive, turned))

    def _written(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:  # the process itself is well; the check of the files will end it
            if not self._complained:
                structlog.get_logger().warning("probe not written", reason=f"FEDQ_PROBE_DIR: {error}")
            self._complained = True


def _touch(path: Path, at: float) -> None:
    """Sets a file's time as `touch -d` does, and makes the file again if it was removed."""
    try:
        os.utime(path, (at, at))
    except FileNotFoundError:
        path.touch()
