"""Simulation of clients that are slow, far away, absent or hostile."""

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

GLANCE = 0.05  #: seconds between two looks if the task is still wanted


class Absent(Stale):
    """Raised for a client that is simulated to be away: it gives no answer."""


class SimulatedClient:
    """Simulated impairments of one client during one task; none if its job simulates none."""

    def __init__(self, context: SlotContext, task: TrainTask, client: str) -> None:
        self._context, self._task, self._client, self._spec = context, task, client, task.spec

    def appear(self) -> None:
        """Raises `Absent` if the client is away or drops out in silence, `Refused` if it drops out and says so."""
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
        """Takes as long as the client needs to download what the round sends, even if the node's cache has it."""
        task = self._task
        sent = (task.delta or task.base, task.server)
        self._travel(sum(ref.size for ref in sent if ref is not None), up=False)

    def upload(self, size: int) -> None:
        """Takes as long as the client needs to upload so many bytes."""
        self._travel(size, up=True)

    def work(self, seconds: float) -> None:
        """Waits for the time that a slow client takes in addition to these seconds of training."""
        self._wait((profiles.ratio(self._spec, self._client) - 1) * seconds)

    def labels(self, y: torch.Tensor, classes: int) -> torch.Tensor:
        """The labels that the client trains on."""
        if self._attack(LabelFlip) is None:
            return y
        flipped: torch.Tensor = profiles.flipped(y, classes)
        return flipped

    def attack(self, parameters: Flat, buffers: Flat, before: Flat) -> None:
        """Replaces in place the changes that training made by those that a hostile client tells.

        `parameters` is how they changed; `buffers` are the values after training, and `before` those before it.
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
        # Polled: no event happens at the end of simulated time that could wake this thread.
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._context.stopped(self._task):
                raise self._context.why_stopped(self._task)
            time.sleep(min(left, GLANCE))
