"""What a job simulates of its clients: that they are slow, far away, absent or hostile."""

import time

import torch

from services.trainer.bench import Bench
from services.trainer.orders import Order
from shared.errors import Stale
from shared.weights import Flat

GLANCE = 0.05  #: seconds between two looks whether somebody still waits


class Absent(Stale):
    """A client that is not there, as far as the simulation goes: it says nothing."""


class Hindrance:
    """One client's, in one task; none where its job simulates nothing."""

    def __init__(self, bench: Bench, order: Order, client: str) -> None:
        self._bench, self._order, self._client = bench, order, client

    def appear(self) -> None:
        """`Absent` where the client is away, or drops out."""

    def download(self) -> None:
        """Takes as long as the client's line needs for the model: by itself, whatever the node's cache has."""

    def upload(self, size: int) -> None:
        """Takes as long as the client's line needs for so many bytes."""

    def work(self, seconds: float) -> None:
        """Takes as much longer than these seconds of training as the client is slow."""

    def labels(self, y: torch.Tensor, classes: int) -> torch.Tensor:
        """The labels that the client trains on."""
        return y

    def attack(self, delta: Flat) -> None:
        """Makes of what training changed what the client says it did, in place."""

    def _wait(self, seconds: float) -> None:
        # Looks again and again, as only simulated time may be waited for: nothing happens in it that could wake us.
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._bench.stopped(self._order):
                raise self._bench.why_stopped(self._order)
            time.sleep(min(left, GLANCE))
