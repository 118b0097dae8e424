"""Cache of models on this node's disk, by digest: one process downloads each, or makes it of the one before."""

import fcntl
import mmap
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from services.trainer.signals import private_directory
from shared.aggregation import weights
from shared.aggregation.weights import File
from shared.errors import Refused
from shared.events import BlobRef
from shared.s3.store import Blobs, NotFound

log = structlog.get_logger()

#: Most files that are kept: each is looked at when another comes, and a job of tiny models has thousands of rounds.
MOST = 256
OPEN = 2  #: files that stay mapped: a model, and the server state of its round


@dataclass(frozen=True)
class Shortcut:
    """The way to a model from the one before it."""

    previous: str  # the digest of the model before
    delta: BlobRef
    rebuild: Callable[[File, File], File]  # (previous, delta) → the model; `Refused` if they do not go together


class Cache:
    """Files `<digest>.safetensors` in one directory, `MOST` and `limit` bytes at most; least recently used go first."""

    def __init__(self, directory: Path, limit: int, blobs: Blobs) -> None:
        self._directory, self._limit, self._blobs = directory, limit, blobs
        private_directory(directory)
        self._sweep()
        self.received = 0  #: bytes that this process has downloaded
        self._open: OrderedDict[str, File] = OrderedDict()  # the mapped files by digest

    def get(self, ref: BlobRef, shortcut: Shortcut | None = None) -> File:
        """A whole blob as an array over its file; what is written to it stays in this process.

        If the node has the model before, it is made of that one, and less is downloaded.
        """
        file = self._open.pop(ref.digest, None)
        if file is None:
            while len(self._open) >= OPEN:
                self._open.popitem(last=False)
            file = self._find(ref, shortcut)
        self._open[ref.digest] = file
        return file

    def _find(self, ref: BlobRef, shortcut: Shortcut | None) -> File:
        if ref.size > self._limit:  # refused before disk is reserved for it
            kept, most = ref.size >> 20, self._limit >> 20
            raise Refused(f"{ref.key} has {kept} MB, and FEDQ_CACHE_MB lets this trainer keep {most}")
        path = self._directory / f"{ref.digest}.safetensors"
        if (found := _checked(path, ref)) is not None:
            return found
        with self._lock(ref.digest):
            # The process that held the lock before has most likely written it.
            if (found := _checked(path, ref)) is not None:
                return found
            made = self._rebuilt(ref, shortcut) if shortcut is not None else None
            try:
                found = self._written(ref, path, made)
            except OSError as error:
                log.warning("not cached", directory=str(self._directory), reason=str(error))
                found = made if made is not None else self._blobs.get(ref)
        if made is None:
            self.received += ref.size
        self._evict(path)
        return found

    def _rebuilt(self, ref: BlobRef, shortcut: Shortcut) -> File | None:
        """The model made of the one before, or None if it must be downloaded whole."""
        if shortcut.delta.size > self._limit:  # refused before memory is reserved for it
            log.warning("downloads the whole model", reason=f"{shortcut.delta.key} has {shortcut.delta.size >> 20} MB")
            return None
        previous = _opened(self._directory / f"{shortcut.previous}.safetensors", ref.size)
        if previous is None:
            return None
        try:
            delta = self._blobs.get(shortcut.delta)
            self.received += shortcut.delta.size
            file = shortcut.rebuild(previous, delta)
            if (found := weights.digest_of(file)) != ref.digest:
                raise Refused(f"the model that {shortcut.delta.key} makes is {found[:12]}…, not {ref.digest[:12]}…")
        except (NotFound, Refused) as error:
            log.warning("downloads the whole model", reason=str(error))
            return None
        return file

    def _written(self, ref: BlobRef, path: Path, made: File | None) -> File:
        """A blob in its file: the one that was made, or else downloaded."""
        part = path.with_suffix(".part")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            # The blocks are reserved first: writing to a mapping of a full disk would end the process.
            os.posix_fallocate(descriptor, 0, ref.size)
            target = np.frombuffer(mmap.mmap(descriptor, ref.size), np.uint8)
            if made is None:
                self._blobs.get_into(ref, target)
            else:
                target[:] = made
            os.rename(part, path)
            return _mapped(descriptor, ref.size)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _evict(self, newest: Path) -> None:
        files = []
        for path in self._directory.iterdir():
            if path.suffix == ".safetensors":
                with suppress(FileNotFoundError):  # another process evicts too
                    found = path.lstat()
                    if stat.S_ISREG(found.st_mode):  # a folder or a link of that name is not this cache's
                        files.append((path == newest, found.st_mtime, found.st_size, path))
        room = self._limit
        for place, (is_newest, _, size, path) in enumerate(sorted(files, reverse=True)):
            room -= size
            if (room < 0 or place >= MOST) and not is_newest:
                path.unlink(missing_ok=True)  # processes that have it mapped keep it

    def _sweep(self) -> None:
        """Removes the parts that killed processes had begun to download: their locks are free."""
        for part in self._directory.glob("*.part"):
            with suppress(BlockingIOError, IsADirectoryError), self._lock(part.name, fcntl.LOCK_NB):
                part.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, digest: str, how: int = 0) -> Iterator[None]:
        private_directory(self._directory)  # made again: a cleaner of old files may have removed it
        # Sixteen locks for all digests: a lock file cannot be removed safely while a process may wait for it.
        with open(self._directory / f"lock-{digest[0]}", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | how)
            yield


def _checked(path: Path, ref: BlobRef) -> File | None:
    """The file of a digest, if it has it still: the disk, or another process of this node, may have changed it.

    It is checked once by each process that opens it, and not for each task, as it stays mapped.
    """
    file = _opened(path, ref.size)
    if file is not None and weights.digest_of(file) != ref.digest:
        log.warning("fetched again: its file in the cache is damaged", key=ref.key, path=str(path))
        path.unlink(missing_ok=True)
        return None
    return file


def _opened(path: Path, size: int) -> File | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # the file does not exist, or is no file of this trainer
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not found.st_size == size > 0:
            return None
        os.utime(descriptor)  # `_evict` goes by the time of the last use
        return _mapped(descriptor, size)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int, size: int) -> File:
    # A private mapping: torch takes no read-only arrays, and no write may reach the cache.
    return np.frombuffer(mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE), np.uint8)
