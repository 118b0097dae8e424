"""Models on this node's disk, by digest: each is downloaded once, however many processes want it."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from services.trainer.board import private_directory
from shared.blobs import Blobs
from shared.events import BlobRef

log = structlog.get_logger()

File = npt.NDArray[np.uint8]


class Cache:
    """Files `<digest>.safetensors` in one directory, at most `limit` bytes, least recently used first to go."""

    def __init__(self, directory: Path, limit: int, blobs: Blobs) -> None:
        self._directory, self._limit, self._blobs = directory, limit, blobs
        private_directory(directory)
        self._sweep()
        self.received = 0  #: bytes that this process has downloaded
        self._last: tuple[str, File] | None = None

    def get(self, ref: BlobRef) -> File:
        """A whole blob as an array over its file; what is written to it stays in this process."""
        if self._last is None or self._last[0] != ref.digest:
            self._last = (ref.digest, self._find(ref))
        return self._last[1]

    def _find(self, ref: BlobRef) -> File:
        path = self._directory / f"{ref.digest}.safetensors"
        if (found := _opened(path, ref.size)) is not None:
            return found
        with self._lock(ref.digest):
            # Whoever held the lock before has most likely brought it.
            if (found := _opened(path, ref.size)) is not None:
                return found
            try:
                found = self._download(ref, path)
            except OSError as error:
                log.warning("not cached", directory=str(self._directory), reason=str(error))
                found = self._blobs.get(ref)
        self.received += ref.size
        self._evict(path)
        return found

    def _download(self, ref: BlobRef, path: Path) -> File:
        part = path.with_suffix(".part")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            # Its blocks first: writing to a mapping of a full disk would end the process.
            os.posix_fallocate(descriptor, 0, ref.size)
            self._blobs.get_into(ref, np.frombuffer(mmap.mmap(descriptor, ref.size), np.uint8))
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
                    found = path.stat()
                    files.append((path == newest, found.st_mtime, found.st_size, path))
        room = self._limit
        for is_newest, _, size, path in sorted(files, reverse=True):
            room -= size
            if room < 0 and not is_newest:
                path.unlink(missing_ok=True)  # who has it mapped keeps it

    def _sweep(self) -> None:
        """Removes what processes that were killed had begun to download: nobody holds its lock."""
        for part in self._directory.glob("*.part"):
            with suppress(BlockingIOError), self._lock(part.name, fcntl.LOCK_NB):
                part.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, digest: str, how: int = 0) -> Iterator[None]:
        # Sixteen locks for all digests: a lock file cannot be removed safely while somebody may wait for it.
        with open(self._directory / f"lock-{digest[0]}", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | how)
            yield


def _opened(path: Path, size: int) -> File | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(descriptor).st_size != size:
            return None
        os.utime(descriptor)  # used now: `_evict` goes by it
        return _mapped(descriptor, size)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int, size: int) -> File:
    # Private: torch takes no read-only arrays, and nobody shall write into the cache.
    return np.frombuffer(mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE), np.uint8)
