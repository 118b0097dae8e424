"""What must hold of the object store before a trainer joins: with a wrong key it would fail every task it takes."""

import threading
from contextlib import suppress

from shared import names
from shared.errors import Unavailable
from shared.process import logs, service, settings
from shared.s3.store import Blobs


def check_store(trainer: str) -> None:
    """`Unavailable` unless the bucket can be read, and written where updates go; waits for a store that is starting."""
    configuration = settings.load(settings.Trainer)
    logs.configure(configuration, "trainer")
    store = Blobs(configuration, patience=service.TRY)
    nobody = threading.Event()  # stops us: who stops the trainer kills this process
    service.at_start(nobody, {"FEDQ_S3_URL": lambda: _use(store, trainer)})


def _use(store: Blobs, trainer: str) -> None:
    key = names.trial_blob(trainer)
    store.list(key)  # before it is written: a server may make a missing bucket for somebody with more rights
    store.get(store.put(key, b"fedq"))
    with suppress(Unavailable):  # a right that a trainer can do without
        store.remove([key])
