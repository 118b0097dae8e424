"""Signals between the processes of one trainer: which work is over, when to stop, which slots are warm.

They live in a private directory. The end of work is a symbolic link for each job: it holds a few bytes, is replaced in
one step and read by one system call, so that training may look between any two batches. Words to the parent go through
a pipe.
"""

import fcntl
import math
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.errors import BadInput

REMEMBERED = 1024  #: jobs whose ends are kept; the object store tells the end of an older one
ROUND = "round"  #: the line that tells a slot to look whether its work is over
EVER = 2**62  #: later than any fence or attempt

Work = tuple[int, int, int]  # round, fence, attempt: a larger value was asked for later


class Signals:
    """The signals in `directory`, for the parent to write and its slots to read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ends: OrderedDict[str, Work] = OrderedDict()

    @classmethod
    @contextmanager
    def create(cls, parent: Path, name: str) -> Iterator["Signals"]:
        """Creates signals below `parent` that go with this process, and removes those that killed processes left."""
        private_directory(parent)
        with open(parent / "lock", "w") as others:
            # Or another trainer that starts now would take our directory for one that was left behind.
            fcntl.flock(others, fcntl.LOCK_EX)
            _sweep(parent)
            directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
            own = open(directory / "lock", "w")  # noqa: SIM115 - closed below
            fcntl.flock(own, fcntl.LOCK_EX)
        with own:
            os.mkfifo(directory / "words")
            try:
                yield cls(directory)
            finally:
                shutil.rmtree(directory, ignore_errors=True)

    def remove(self) -> None:
        """Removes the directory, for a process that ends without leaving `create`."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def end(self, job: str, number: int, fence: int = EVER, attempt: int = EVER) -> None:
        """Tells that a job is over up to this round, in it up to this fence, and under that up to this attempt."""
        last = (number, fence, attempt)
        last = max(last, self._ends.pop(job, last))
        self._ends[job] = last
        self._write(f"over-{job}", ".".join(map(str, last)))
        while len(self._ends) > REMEMBERED:
            forgotten, _ = self._ends.popitem(last=False)
            (self.directory / f"over-{forgotten}").unlink(missing_ok=True)

    def is_over(self, job: str, number: int, fence: int, attempt: int) -> bool:
        """True if this work is not wanted any more. Takes 2 µs."""
        last = self._read(f"over-{job}")
        return last is not None and tuple(map(int, last.split("."))) >= (number, fence, attempt)

    def stop(self, until: float) -> None:
        """Tells that this trainer must stop by `until` on the monotonic clock: no slot starts a long wait any more."""
        self._write("stopping", repr(until))

    @property
    def is_stopping(self) -> bool:
        return self.grace < math.inf

    @property
    def grace(self) -> float:
        """Seconds that are left to finish in; endless until this trainer is asked to stop."""
        until = self._read("stopping")
        return math.inf if until is None else float(until) - time.monotonic()

    def tell(self, word: str) -> None:
        """Says a line to the parent, if it listens."""
        # The pipe is closed or full: the parent listens at the start alone, and needs no line later.
        with suppress(OSError):
            descriptor = os.open(self.directory / "words", os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(descriptor, (word.replace("\n", " ")[:1000] + "\n").encode())
            finally:
                os.close(descriptor)

    def tell_slots(self, word: str) -> None:
        """Says a line to each slot."""
        for path in self.directory.glob("slot-*"):
            with suppress(OSError):  # the slot died, and the one that replaces it has another pipe
                descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                try:
                    os.write(descriptor, (word + "\n").encode())
                finally:
                    os.close(descriptor)

    def told(self) -> Iterator[str]:
        """The lines that this slot is told, as they come, without end."""
        path = self.directory / f"slot-{os.getpid()}"
        os.mkfifo(path, 0o600)
        # Opened for writing too: without a writer each read would return the end of the file.
        with open(os.open(path, os.O_RDWR)) as lines:
            for line in lines:
                yield line.rstrip("\n")

    def is_heard(self) -> bool:
        """True if the parent listens to words: while the trainer starts, and not when a slot is replaced later."""
        try:
            os.close(os.open(self.directory / "words", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    @contextmanager
    def listen(self) -> Iterator[int]:
        """A descriptor that the lines can be read from."""
        # Opened for writing too: without a writer each read would return the end of the file.
        descriptor = os.open(self.directory / "words", os.O_RDWR | os.O_NONBLOCK)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _write(self, name: str, text: str) -> None:
        fresh = self.directory / f"fresh-{name}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(text)
        fresh.replace(self.directory / name)

    def _read(self, name: str) -> str | None:
        try:
            return os.readlink(self.directory / name)
        except FileNotFoundError:
            return None


def private_directory(path: Path, setting: str = "FEDQ_CACHE_DIR") -> None:
    """Makes a directory for this user alone, or `BadInput` that names its setting if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        owner = path.stat().st_uid
    except OSError as error:
        raise BadInput(f"{setting}: {path} cannot be made: {error.strerror}") from error
    if owner != os.getuid():
        raise BadInput(f"{setting}: {path} belongs to another user, who could put any model there")
    if not os.access(path, os.W_OK | os.X_OK):  # the file system may be read-only
        raise BadInput(f"{setting}: {path} cannot be written")


def _sweep(parent: Path) -> None:
    for directory in parent.iterdir():
        with suppress(OSError), open(directory / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails unless the process of this directory is gone
            shutil.rmtree(directory, ignore_errors=True)
