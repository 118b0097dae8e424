"""Hurts a federation at random, from a seed: kills, freezes and restarts its processes and servers."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

from deploy.native.processes import Process
from tests.faults.federation import Federation, while_away

SETTLED = 5.0  #: seconds after a job's start in which the broker is let alone: RabbitMQ 3.10 may lose a queue that
# was declared in the moment of its death


class Nemesis:
    """Aggregators and trainers come in pairs, of which it kills the second: the first shows what a long life does."""

    def __init__(self, federation: Federation, seed: int) -> None:
        self.federation = federation
        self.random = random.Random(seed)  # noqa: S311 - it must be repeatable
        self.done: Counter[str] = Counter()
        self.started = time.monotonic()  # when a job was started last
        self.aggregators = [federation.aggregator() for _ in range(2)]
        self.trainers = list(federation.pool)
        self.registry = federation.registry
        self.actions: dict[str, Callable[[], None]] = {
            "aggregator killed": self.kill_aggregator,
            "aggregator frozen": lambda: self.freeze(self.random.choice(self.aggregators)),
            "trainer killed": self.kill_trainer,
            "slot killed": self.kill_slot,
            "trainer frozen": lambda: self.freeze(self.random.choice(self.trainers)),
            "trainer restarted": self.restart_trainer,
            "registry killed": self.kill_registry,
            "Redis restarted": self.restart_redis,
            "Redis frozen": lambda: self.freeze(federation.servers.stack.redis.process),
            "Redis flushed": self.flush_redis,
            "broker restarted": self.restart_broker,
            "broker frozen": lambda: self.freeze(federation.servers.stack.rabbitmq.process),
            "store restarted": self.restart_store,
            "store frozen": lambda: self.freeze(federation.servers.stack.s3.process),
        }

    def strike(self) -> str:
        """One act at random, and a while in which the federation lives with it."""
        name = self.random.choice(sorted(self.actions))
        if name == "broker restarted" and time.monotonic() - self.started < SETTLED:
            name = "broker frozen"
        self.actions[name]()
        self.done[name] += 1
        while_away(self.random.uniform(1, 6))
        return name

    def freeze(self, process: Process) -> None:
        with self.federation.frozen(process.pid):
            while_away(self.random.uniform(1, 6))

    def kill_aggregator(self) -> None:
        self.federation.kill(self.aggregators[1])
        self.aggregators[1] = self.federation.ready(self.federation.aggregator())

    def kill_trainer(self) -> None:
        self.federation.kill(self.trainers[1])
        self.trainers[1] = self.start_trainer()

    def restart_trainer(self) -> None:
        self.federation.stop(self.trainers[1])
        self.trainers[1] = self.start_trainer()

    def start_trainer(self) -> Process:
        return self.federation.ready(self.federation.start("trainer", "--pool", "cpu", role="trainer"))

    def kill_slot(self) -> None:
        for slot in self.federation.slots(self.trainers[1])[:1]:
            os.kill(slot.pid, signal.SIGKILL)

    def kill_registry(self) -> None:
        self.federation.kill(self.registry)
        self.registry = self.federation.ready(self.federation.start("registry"))

    def restart_redis(self) -> None:
        self.federation.servers.stack.redis.kill()
        self.federation.servers.stack.redis.start()

    def flush_redis(self) -> None:
        self.federation.servers.redis().flushall()

    def restart_broker(self) -> None:
        self.federation.servers.stack.rabbitmq.kill()
        self.federation.servers.stack.rabbitmq.start()

    def restart_store(self) -> None:
        self.federation.servers.stack.s3.kill()
        self.federation.servers.stack.s3.start()
