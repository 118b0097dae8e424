"""The start of a process that trains: what must be so before torch is imported, and after."""

import gc
import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery import platforms

from shared import names
from shared.errors import Unavailable
from shared.process import failpoints, logs, service, settings

if TYPE_CHECKING:
    from services.trainer.slot.slot import Slot
    from shared.s3.store import Blobs


@dataclass(frozen=True)
class Place:
    """Facts that a trainer tells its slots, and a slot the process that it starts for code of a job's own."""

    trainer: str
    signals: str
    index: int
    silo: bool


def settle(parent: int) -> None:
    """Ends this process with the one that started it, now if that is gone, and its forks with this one."""
    # A signal to the whole group reaches the parent too, which lets this process finish its task.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    platforms.set_pdeathsig("SIGKILL")
    if os.getppid() != parent:  # the parent died before the kernel was told to take this process along
        os._exit(os.EX_OK)
    # A process that the user's code made, such as a DataLoader's worker, must not outlive a killed slot either.
    os.register_at_fork(after_in_child=lambda: platforms.set_pdeathsig("SIGKILL"))


def slot(place: Place) -> "Slot":
    """Imports torch, connects, and trains on nothing once."""
    gc.disable()  # importing torch makes 330,000 objects that stay; collecting among them takes a fifth of the start
    failpoints.arm()
    from services.trainer.slot import slot  # noqa: PLC0415 - not in the parent, and not before the collector is off

    found = slot.start_slot(place.trainer, place.signals, place.index, silo=place.silo)
    gc.freeze()  # later collections skip these objects too, which saves 0.15 s each time
    gc.enable()
    return found


def check_store(trainer: str) -> None:
    """`Unavailable` unless the bucket can be read, and written where updates go; waits for a store that is starting.

    With a wrong key a trainer would fail every task that it takes, so this must hold before it joins.
    """
    from shared.s3.store import Blobs  # noqa: PLC0415 - a slot needs it, and the parent, which imports this, does not

    configuration = settings.load(settings.Trainer)
    logs.configure(configuration, "trainer")
    store = Blobs(configuration, patience=service.TRY)
    never = threading.Event()  # stays unset: the trainer stops by killing this process
    service.at_start(never, {"FEDQ_S3_URL": lambda: _use(store, trainer)})


def _use(store: "Blobs", trainer: str) -> None:
    key = names.trial_blob(trainer)
    store.list(key)  # before it is written: a server may make a missing bucket for a user with more rights
    store.get(store.put(key, b"fedq"))
    with suppress(Unavailable):  # a right that a trainer can do without
        store.remove([key])
