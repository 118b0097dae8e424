"""Scaling of a pool: the orchestrator changes the number of trainers, and the registry announces those that join."""

import queue
import secrets
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from services.cli.ops.cluster import connected
from services.cli.ops.orchestrators import On
from services.cli.ops.orchestrators.choice import Nowhere, Orchestrator, chosen
from services.cli.ops.orchestrators.kubernetes import Kubernetes
from services.cli.servers import Servers
from services.cli.ui import output
from shared.amqp import topology
from shared.amqp.connection import Delivery
from shared.errors import Unavailable

STOPPING = "each that stops finishes the client it trains, or hands it back to the queue for another"
LOOK = {"compose": "`docker compose ps`", "kubernetes": "`kubectl get pods`"}


@dataclass(frozen=True)
class Scaled:
    """Result of a scaling, as `fedq scale` prints it."""

    on: str
    place: str
    pool: str
    before: int
    wanted: int
    alive: int | None  # trainers in the roster; None if they were not counted
    seconds: float | None  # from the command to the last trainer in the roster


def scale(wanted: int, pool: str, on: On | None, namespace: str | None, *, wait: float, as_json: bool) -> None:
    """Scales a pool to `wanted` trainers; `Unavailable` if they are not in the roster within `wait` seconds."""
    place = _chosen(on, namespace, pool)
    before = place.count(pool)
    with ExitStack() as stack:
        joining = None
        if wait and wanted and wanted >= before:
            # The subscription comes before the change, so that no join is missed, and so that a missing setting
            # fails before anything has changed.
            if isinstance(place, Kubernetes):
                stack.enter_context(connected(place))
            joining = Joining(stack.enter_context(Servers()), pool)
        if wanted < before:
            output.note(STOPPING)
        began = time.monotonic()
        told = place.scale(pool, wanted)
        if not as_json:
            print(f"{told}: {before} → {wanted} trainers of pool {pool}", flush=True)
        alive = joining.wait(wanted, began + wait) if joining else None
        seconds = round(time.monotonic() - began, 2) if joining else None
    if as_json:
        output.emit(asdict(Scaled(place.name, place.place, pool, before, wanted, alive, seconds)))
    if alive is None:
        return
    if alive < wanted:
        raise Unavailable(
            f"{alive} of {wanted} trainers of pool {pool} are in the roster after {wait:g} s; "
            f"{LOOK[place.name]} shows what holds up the others"
        )
    if not as_json:
        print(f"{alive} trainers of pool {pool} are in the roster, {seconds:.1f} s after the command")


def _chosen(on: On | None, namespace: str | None, pool: str) -> Orchestrator:
    try:
        return chosen(on, namespace, (On.compose, On.kubernetes))
    except Nowhere as error:
        more = f"without either, each `python -m services.trainer --pool {pool}` is one trainer more"
        raise Nowhere(f"{error}; {more}") from None


class Joining:
    """Subscription to the registry's announcements of a pool's trainers, from its construction on."""

    def __init__(self, servers: Servers, pool: str) -> None:
        self._servers = servers
        self._pool = pool
        self._news: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()  # None: events may have been missed
        self._subscription = servers.bus.consume(
            topology.joining(secrets.token_hex(6), pool), self._news.put, on_ready=lambda: self._news.put(None)
        )
        self._alive()  # an unreachable Redis also fails here, before anything has changed

    def wait(self, wanted: int, deadline: float) -> int:
        """Number of trainers in the roster once it reaches `wanted`, or at the monotonic `deadline`."""
        told = 0
        while True:
            alive = self._alive()
            if alive != told:
                output.note(f"{alive} of {wanted} are in the roster")
                told = alive
            if alive >= wanted:
                break
            try:
                delivery = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if delivery is not None:
                delivery.ack()
        self._servers.bus.cancel(self._subscription)
        return alive

    def _alive(self) -> int:
        return sum(member.pool == self._pool for member in self._servers.roster.alive())
