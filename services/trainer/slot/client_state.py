"""The state of a client from one round to the next: a file apart from the model, named by its digest, never changed.

The aggregator says which of a client's states is its state, because only an update that counted may move it.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from services.trainer.signals import private_directory
from shared import names
from shared.aggregation import weights
from shared.aggregation.strategies.strategy import CONTROL
from shared.aggregation.weights import File, Flat, Layout
from shared.errors import BadInput, Refused
from shared.events import BlobRef, StateRef
from shared.s3.store import Blobs

log = structlog.get_logger()

KEPT = 8  #: states of a job that a silo keeps: the one that counts, and those that may come to count
RESIDUAL = "residual"
PERSONAL = "personal."  #: prefix of the name of a personal tensor


@dataclass(frozen=True)
class ClientState:
    """The state that a client keeps, as far as its job asks for it; empty before its first round."""

    control: Flat | None = None  # its control variate, shape (parameters,)
    residual: Flat | None = None  # the part of the updates that compression left out so far, shape (P,)
    personal: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # tensors that never leave the client

    def pack(self) -> File | None:
        """The state as a file; None if it is empty."""
        vectors = {CONTROL: self.control, RESIDUAL: self.residual}
        parts = {name: vector for name, vector in vectors.items() if vector is not None}
        parts |= {f"{PERSONAL}{name}": tensor for name, tensor in self.personal.items()}
        if not parts:
            return None
        layout = weights.layout_of({name: (weights.DTYPES[part.dtype], part.shape) for name, part in parts.items()})
        file = layout.empty_file()
        for name, place in layout.views(file).items():
            place[...] = parts[name]
        return file

    @classmethod
    def unpack(cls, file: File, model: Layout) -> "ClientState":
        """The state in a file; `Refused` if it is not of this model."""
        layout = weights.read_layout(file)
        views = layout.views(file)
        for name, size in ((CONTROL, model.parameters), (RESIDUAL, model.size)):
            if name in views and (views[name].dtype != np.float32 or views[name].shape != (size,)):
                raise Refused(f"the client's state is of another model: its {name} has shape {list(views[name].shape)}")
        personal = {name.removeprefix(PERSONAL): part for name, part in views.items() if name.startswith(PERSONAL)}
        return cls(views.get(CONTROL), views.get(RESIDUAL), personal)


class Keeper(Protocol):
    """A store of states."""

    def load(self, job: str, client: str, ref: StateRef) -> File | None:
        """The state's file, checked against its digest; None if it is lost and the client begins without one."""

    def save(self, job: str, client: str, file: File) -> StateRef:
        """Adds a state to those that are kept."""

    def drop(self, job: str, client: str, ref: StateRef) -> None:
        """Removes a state that no task will ever ask for."""


class InStore:
    """States in the object store: any trainer of a pool may be asked to train a client next."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def load(self, job: str, client: str, ref: StateRef) -> File | None:
        key = names.state_blob(job, client, ref.digest)
        return self._blobs.get(BlobRef(key=key, size=ref.size, digest=ref.digest))

    def save(self, job: str, client: str, file: File) -> StateRef:
        digest = weights.digest_of(file)
        self._blobs.put(names.state_blob(job, client, digest), file, digest=digest)
        return StateRef(size=file.nbytes, digest=digest)

    def drop(self, job: str, client: str, ref: StateRef) -> None:
        self._blobs.remove([names.state_blob(job, client, ref.digest)])


class OnDisk:
    """States on a silo's own disk, which personal tensors never leave."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, job: str, client: str, ref: StateRef) -> File | None:
        path = self._path(job, client, ref.digest)
        try:
            file = np.fromfile(path, np.uint8)
            os.utime(path)  # `save` removes the states that were not used for longest
        except OSError as error:
            log.warning("begins anew", job=job, client=client, reason=f"its state {path} is lost: {error.strerror}")
            return None
        if file.nbytes != ref.size or weights.digest_of(file) != ref.digest:
            log.warning("begins anew", job=job, client=client, reason=f"its state {path} is damaged")
            return None
        return file

    def save(self, job: str, client: str, file: File) -> StateRef:
        ref = StateRef(size=file.nbytes, digest=weights.digest_of(file))
        path = self._path(job, client, ref.digest)
        try:
            private_directory(path.parent, "FEDQ_STATE_DIR")
            _write(path, file)
        except OSError as error:
            raise BadInput(f"FEDQ_STATE_DIR: {path} cannot be written: {error.strerror}") from error
        states = sorted(path.parent.glob("state-*.safetensors"), key=_age)
        for old in states[KEPT:]:
            old.unlink(missing_ok=True)
        return ref

    def drop(self, job: str, client: str, ref: StateRef) -> None:
        self._path(job, client, ref.digest).unlink(missing_ok=True)

    def _path(self, job: str, client: str, digest: str) -> Path:
        return self._directory / client / job / f"state-{digest[:12]}.safetensors"


def _write(path: Path, file: File) -> None:
    """Writes a file whole or not at all. It is on the disk when this returns: the aggregator hears of it next."""
    fresh = path.with_suffix(f".{os.getpid()}")
    try:
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as target:
            target.write(file.data)
            target.flush()
            os.fsync(target.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _age(path: Path) -> float:
    with suppress(FileNotFoundError):
        return -path.stat().st_mtime
    return 0.0
