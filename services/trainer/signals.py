"""What the processes of one trainer tell each other at once: what is over, when to stop, which slots are warm.

A private directory. What is over is a symbolic link for each job: it holds a few bytes, is replaced in one step and
read by one system call, so that training may look between any two batches. Words to the parent go through a pipe.
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

REMEMBERED = 1024  #: jobs; whoever asks about an older one learns of its end from the object store
ROUND = "round"  #: the line that tells a slot to look whether its work is over
EVER = 2**62  #: later than any fence or attempt

Work = tuple[int, int, int]  # round, fence, attempt: what comes later is asked for later


class Signals:
    """The signals in `directory`, for the parent to write and its slots to read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ends: OrderedDict[str, Work] = OrderedDict()

    @classmethod
    @contextmanager
    def create(cls, parent: Path, name: str) -> Iterator["Signals"]:
        """Creates signals below `parent` that go with this process; what killed ones left behind is removed."""
        private_directory(parent)
        with open(parent / "lock", "w") as others:
            fcntl.flock(others, fcntl.LOCK_EX)  # or one that starts beside us would take ours for left behind
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
        """For a process that ends without leaving `create`."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def end(self, job: str, number: int, fence: int = EVER, attempt: int = EVER) -> None:
        """A job's work is over up to this round, in it up to this fence, and under that up to this attempt."""
        last = (number, fence, attempt)
        last = max(last, self._ends.pop(job, last))
        self._ends[job] = last
        self._write(f"over-{job}", ".".join(map(str, last)))
        while len(self._ends) > REMEMBERED:
            forgotten, _ = self._ends.popitem(last=False)
            (self.directory / f"over-{forgotten}").unlink(missing_ok=True)

    def is_over(self, job: str, number: int, fence: int, attempt: int) -> bool:
        """Whether nobody waits for this work any more. Takes 2 µs."""
        last = self._read(f"over-{job}")
        return last is not None and tuple(map(int, last.split("."))) >= (number, fence, attempt)

    def stop(self, until: float) -> None:
        """This trainer is asked to stop, by `until` on the monotonic clock: wait for nothing that may take long."""
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
        """Says a line to whoever listens."""
        # Nobody listens any more, or nobody reads: it was of use at the start alone.
        with suppress(OSError):
            descriptor = os.open(self.directory / "words", os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(descriptor, (word.replace("\n", " ")[:1000] + "\n").encode())
            finally:
                os.close(descriptor)

    def tell_slots(self, word: str) -> None:
        """Says a line to each slot."""
        for path in self.directory.glob("slot-*"):
            with suppress(OSError):  # its slot died; what replaces that has another
                descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                try:
                    os.write(descriptor, (word + "\n").encode())
                finally:
                    os.close(descriptor)

    def told(self) -> Iterator[str]:
        """The lines that this slot is told, as they come, without end."""
        path = self.directory / f"slot-{os.getpid()}"
        os.mkfifo(path, 0o600)
        # For writing too: without a writer it would be at its end, again and again.
        with open(os.open(path, os.O_RDWR)) as lines:
            for line in lines:
                yield line.rstrip("\n")

    def is_heard(self) -> bool:
        """Whether somebody listens to words: while the trainer starts, and not when a slot is replaced later."""
        try:
            os.close(os.open(self.directory / "words", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    @contextmanager
    def listen(self) -> Iterator[int]:
        """A descriptor that the lines can be read from."""
        # For writing too: without a writer it would be at its end, again and again.
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
    """Makes a directory for this user alone, or `BadInput` that names its setting where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        owner = path.stat().st_uid
    except OSError as error:
        raise BadInput(f"{setting}: {path} cannot be made: {error.strerror}") from error
    if owner != os.getuid():
        raise BadInput(f"{setting}: {path} belongs to another user, who could put any model there")
    if not os.access(path, os.W_OK | os.X_OK):  # a read-only file system among the reasons
        raise BadInput(f"{setting}: {path} cannot be written")


def _sweep(parent: Path) -> None:
    for directory in parent.iterdir():
        with suppress(OSError), open(directory / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its process is gone, or this fails
            shutil.rmtree(directory, ignore_errors=True)
