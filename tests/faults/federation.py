"""A federation under test: what an undisturbed job ends in, and whether a disturbed one ends in the same."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from deploy.native.processes import Process
from services.cli.jobs import starting
from shared.job import job_spec
from shared.redis.ledger import JobRecord
from tests.conftest import Servers
from tests.harness import Services, until

LEASE = 3.0
SETTINGS = {
    "FEDQ_LEASE_S": str(LEASE),
    "FEDQ_AMQP_HEARTBEAT_S": "6",
    "FEDQ_S3_TIMEOUT_S": "3",
    "FEDQ_HEARTBEAT_S": "0.5",
    "FEDQ_GRACE_S": "5",
    "FEDQ_THREADS": "1",
    "FEDQ_LOG": "json",
}
ROUNDS = 5
TAKEOVER = 20.0  #: seconds until a job goes on after its aggregator died

_undisturbed: dict[str, list[str]] = {}  # a job's document → its rounds' digests


@dataclass
class Row:
    """One line of the table; filled in by its test."""

    name: str
    fired: list[str] = field(default_factory=list)
    promises: str = ""
    recovery: float | None = None
    _at: float = 0.0

    def fire(self, what: str) -> None:
        """The fault has happened, seen by its effect and not by the order for it."""
        self.fired.append(what)
        self._at = time.monotonic()

    def recovered(self) -> float:
        """The job goes on; seconds since the fault."""
        self.recovery = round(time.monotonic() - self._at, 1)
        return self.recovery


class Federation(Services):
    """Registry and trainers of the pool `cpu`, and a job to disturb."""

    def __init__(self, servers: Servers, logs: Path) -> None:
        super().__init__(servers, logs, settings=dict(SETTINGS))
        self.pool: list[Process] = []
        self._operator = SimpleNamespace(bus=servers.bus("operator"), blobs=servers.blobs(), ledger=servers.ledger())

    def begin(self, trainers: int = 2) -> None:
        self.registry = self.start("registry")
        self.pool = self.trainers(trainers)

    def close(self) -> None:
        for process in self.started:
            if process.alive():
                os.kill(process.pid, signal.SIGCONT)
        self.stop()
        assert not any(process.alive() for process in self.started)

    def aggregator(self, **environment: str) -> Process:
        return self.start("aggregator", **environment)

    def owner(self, job: str, replicas: list[Process]) -> Process:
        """Which of the aggregators has the job."""
        name = self.servers.ledger().required(job).owner
        return next(replica for replica in replicas if name.endswith(f"-{replica.pid}"))

    # --- jobs -------------------------------------------------------------------------------

    def document(self, **changes: Any) -> dict[str, Any]:
        """A small job whose rounds take about half a second each."""
        return {
            "name": "fault",
            "seed": 3,
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": 4},
            "train": {"name": "tests.faults.step:train", "args": {"seconds": 0.2}},
            "rounds": {"count": ROUNDS, "deadline": "60s"},
            "evaluate": {"every": 0},
            "keep_updates": True,
            "pool": "cpu",
        } | changes

    def submit(self, **changes: Any) -> str:
        """Starts a job as the command line does, without the second that a process takes; its id."""
        job = job_spec.new_job_id("fault")
        starting.start(self._operator, job, job_spec.parse(self.document(**changes)))  # type: ignore[arg-type]
        return job

    def undisturbed(self, **changes: Any) -> list[str]:
        """The digests of a job's rounds when nothing happens to it; run once a session."""
        key = json.dumps(self.document(**changes), sort_keys=True)
        if key not in _undisturbed:
            aggregator = self.aggregator()
            job = self.submit(**changes)
            record = self.ended(job)
            assert record.status == "finished", record.detail
            _undisturbed[key] = self.digests(job)
            self.stop(aggregator)
        return _undisturbed[key]

    def reached(self, job: str, number: int, seconds: float = 60) -> JobRecord:
        """The job's record once round `number` is committed."""

        def found() -> JobRecord | None:
            record = self.record(job)
            return record if record and record.round >= number else None

        return until(found, seconds, f"round {number} of {job}", detail=self.tails)

    def accepted(self, job: str, number: int, count: int, seconds: float = 60) -> None:
        """Returns once an open round has so many accepted updates."""
        ledger = self.servers.ledger()

        def found() -> bool:
            record = ledger.round(job, number)
            return record is not None and len(record.accepted) >= count

        until(found, seconds, f"{count} updates in round {number} of {job}", detail=self.tails)

    def holds(self, job: str, digests: list[str] | None = None, outcome: str = "finished", seconds: float = 90) -> None:
        """The job ends as it should, in the undisturbed digests, and every promise holds."""
        record = self.ended(job, seconds)
        assert record.status == outcome, f"{record.status}: {record.detail}\n{self.tails()}"
        if digests is not None:
            assert self.digests(job) == digests, self.tails()
        verdict = self.json("verify", job)
        assert verdict["holds"], json.dumps(verdict, indent=1)

    def faults(self, job: str) -> set[str]:
        """The names in the job's log."""
        return {line["fault"] for line in self.servers.ledger().log(job)}

    # --- hurting ----------------------------------------------------------------------------

    @contextmanager
    def frozen(self, *pids: int) -> Iterator[None]:
        """SIGSTOP for them and all below them, for as long as the block lasts."""
        family = [one for pid in pids for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
        for one in family:
            one.suspend()
        try:
            yield
        finally:
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.resume()

    def died(self, process: Process, seconds: float = 60) -> None:
        """Returns when a process has died at its failpoint."""
        until(lambda: not process.alive(), seconds, f"the death of {process.name}", detail=self.tails)
        assert '"event": "failpoint"' in process.tail(5), process.tail(30)

    def slots(self, trainer: Process) -> list[psutil.Process]:
        """The processes below a trainer that train."""
        return [
            child
            for child in psutil.Process(trainer.pid).children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline())
        ]

    def queues(self) -> dict[str, int]:
        """Messages in each queue."""
        found = self.servers.stack.rabbitmq.call("GET", f"queues/{self.servers.vhost}")
        return {queue["name"]: queue.get("messages", 0) for queue in found}


def while_away(seconds: float) -> None:
    """How long a fault lasts: the one kind of waiting that is for a time, for the fault is defined by it."""
    time.sleep(seconds)
