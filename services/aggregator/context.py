"""Context of a job under its owner: the servers, the fence, the job's arrays, and the way of its faults to the log."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import structlog

from services.aggregator.accumulator import Accumulator
from services.aggregator.turnout import Turnout
from shared.amqp.bus import Bus
from shared.amqp.connection import Subscription
from shared.errors import Unavailable
from shared.job.catalog.selection import SelectAll
from shared.job.job_spec import JobSpec
from shared.redis.ledger import Ledger
from shared.redis.roster import Roster
from shared.s3.store import Blobs

UNSAID = 100  #: faults remembered while Redis is not there to be told of them


@dataclass(frozen=True)
class Edges:
    """The servers, a thread for work that nobody waits for, and a clock in seconds."""

    bus: Bus
    blobs: Blobs
    ledger: Ledger
    roster: Roster
    later: Executor
    clock: Callable[[], float] = time.monotonic


class Faults:
    """A job's faults on their way to its log and to the counts that are everybody's."""

    def __init__(self, ledger: Ledger, job: str) -> None:
        self._ledger, self._job = ledger, job
        self._unsaid: list[tuple[str, Sequence[str], int]] = []

    def note(self, fault: str, detail: str, number: int = -1) -> None:
        """Counts a fault and writes it into the job's log, now or when Redis is there again."""
        self.note_all(fault, [detail], number)

    def note_all(self, fault: str, details: Sequence[str], number: int = -1) -> None:
        """The same fault several times, each with a detail of its own."""
        self._unsaid.append((fault, details, number))
        try:
            while self._unsaid:
                name, texts, of = self._unsaid[0]
                self._ledger.note_all(name, texts, self._job, of)
                del self._unsaid[0]
        except Unavailable:
            del self._unsaid[:-UNSAID]


class Clearing:
    """Removal of a committed round's leftovers, on another thread."""

    def __init__(self, later: Executor) -> None:
        self._later = later
        self._running: Future[None] | None = None

    def start(self, clear: Callable[[], None]) -> None:
        """Runs `clear` while the next round runs."""
        self._running = self._later.submit(clear)

    def wait(self) -> None:
        """Waits until the last round's leftovers are gone."""
        if self._running is not None:
            self._running.result()


@dataclass(frozen=True)
class JobContext:
    """Everything one owner works on a job with: servers, fence, spec, arrays. Where the job stands is `job_state`'s."""

    edges: Edges
    job: str
    fence: int
    spec: JobSpec
    faults: Faults
    subscription: Subscription | None
    accumulator: Accumulator
    turnout: Turnout  # counts the rounds that this owner committed, and at the end all
    clearing: Clearing
    log: Any

    @classmethod
    def of(
        cls, edges: Edges, job: str, fence: int, spec: JobSpec, faults: Faults, subscription: Subscription | None
    ) -> "JobContext":
        """The context of a job that was just claimed."""
        everybody = spec.silos is not None and isinstance(spec.select, SelectAll)
        return cls(
            edges,
            job,
            fence,
            spec,
            faults,
            subscription,
            Accumulator(edges.blobs, job, spec, edges.clock),
            Turnout(spec.clients, everybody=everybody),
            Clearing(edges.later),
            structlog.get_logger().bind(job=job),
        )
