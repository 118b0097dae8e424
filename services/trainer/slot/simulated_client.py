"""What a job simulates of its clients: that they are slow, far away, absent or hostile."""

import time
from typing import TypeVar

import numpy as np
import torch

from services.trainer.slot.context import SlotContext
from services.trainer.train_task import TrainTask
from shared.aggregation.weights import Flat
from shared.errors import Refused, Stale
from shared.job import profiles
from shared.job.catalog.simulation import LabelFlip, ScaledUpdate

Attack = TypeVar("Attack", LabelFlip, ScaledUpdate)

GLANCE = 0.05  #: seconds between two looks whether somebody still waits


class Absent(Stale):
    """A client that is not there, as far as the simulation goes: it says nothing."""


class SimulatedClient:
    """One client's, in one task; none where its job simulates nothing."""

    def __init__(self, context: SlotContext, task: TrainTask, client: str) -> None:
        self._context, self._task, self._client, self._spec = context, task, client, task.spec

    def appear(self) -> None:
        """`Absent` where the client is away or drops out, `Refused` where it drops out and says so."""
        simulate = self._spec.simulate
        if simulate is None:
            return
        if simulate.availability is not None and not simulate.aware:
            since = time.time() - self._context.began(self._task)
            if not profiles.is_there(self._spec, self._client, since):
                raise Absent(f"{self._client} is away (simulated)")
        dropout = simulate.dropout
        if dropout is not None and profiles.drops_out(self._spec, self._client, self._task.round, self._task.attempt):
            if dropout.how == "silent":
                raise Absent(f"{self._client} drops out (simulated)")
            raise Refused(f"{self._client} drops out (simulated)")

    def download(self) -> None:
        """Takes as long as what the round sends needs to the client: by itself, whatever the node's cache has."""
        task = self._task
        sent = (task.delta or task.base, task.server)
        self._travel(sum(ref.size for ref in sent if ref is not None), up=False)

    def upload(self, size: int) -> None:
        """Takes as long as so many bytes need from the client."""
        self._travel(size, up=True)

    def work(self, seconds: float) -> None:
        """Takes as much longer than these seconds of training as the client is slow."""
        self._wait((profiles.ratio(self._spec, self._client) - 1) * seconds)

    def labels(self, y: torch.Tensor, classes: int) -> torch.Tensor:
        """The labels that the client trains on."""
        if self._attack(LabelFlip) is None:
            return y
        flipped: torch.Tensor = profiles.flipped(y, classes)
        return flipped

    def attack(self, parameters: Flat, buffers: Flat, before: Flat) -> None:
        """Makes of what training changed what the client says it did, in place.

        That is how parameters differ, and which values buffers have that had those of `before`.
        """
        attack = self._attack(ScaledUpdate)
        if attack is not None:
            parameters *= np.float32(attack.factor)
            buffers[:] = before + np.float32(attack.factor) * (buffers - before)

    def _attack(self, kind: type[Attack]) -> Attack | None:
        attack = self._spec.simulate.attack if self._spec.simulate else None
        return attack if isinstance(attack, kind) and self._client in profiles.hostile(self._spec) else None

    def _travel(self, size: int, *, up: bool) -> None:
        self._wait(profiles.transfer(self._spec, self._client, size, up=up))

    def _wait(self, seconds: float) -> None:
        # Simulated time alone may be waited for like this: at its end nothing happens that could wake us.
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._context.stopped(self._task):
                raise self._context.why_stopped(self._task)
            time.sleep(min(left, GLANCE))
