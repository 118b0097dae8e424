"""Context of a job under its owner: the servers, the fence, the job's arrays, and the reporting of its faults."""

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

UNREPORTED = 100  #: number of faults kept while Redis is away


@dataclass(frozen=True)
class Edges:
    """Servers that an aggregator works with, its background thread, and its clock."""

    bus: Bus
    blobs: Blobs
    ledger: Ledger
    roster: Roster
    later: Executor  # a thread for work that no round waits for
    clock: Callable[[], float] = time.monotonic  # seconds


class Faults:
    """Reports a job's faults to Redis: to the job's log, and to the counts over all jobs."""

    def __init__(self, ledger: Ledger, job: str) -> None:
        self._ledger, self._job = ledger, job
        self._unreported: list[tuple[str, Sequence[str], int]] = []  # fault, details, round

    def note(self, fault: str, detail: str, number: int = -1) -> None:
        """Counts a fault and writes it into the job's log, now or once Redis is back; `number` is its round, if any."""
        self.note_all(fault, [detail], number)

    def note_all(self, fault: str, details: Sequence[str], number: int = -1) -> None:
        """Reports a fault that occurred several times, with a detail for each."""
        self._unreported.append((fault, details, number))
        try:
            while self._unreported:
                first_fault, first_details, first_number = self._unreported[0]
                self._ledger.note_all(first_fault, first_details, self._job, first_number)
                del self._unreported[0]
        except Unavailable:
            del self._unreported[:-UNREPORTED]


class Clearing:
    """Removal of a committed round's leftovers on the background thread."""

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
    """Everything that one owner needs to run a job, except the job's state, which `job_state` holds."""

    edges: Edges
    job: str
    fence: int
    spec: JobSpec
    faults: Faults
    subscription: Subscription | None
    accumulator: Accumulator
    turnout: Turnout  # of the rounds that this owner committed; at the job's end, of all rounds
    clearing: Clearing
    log: Any

    @classmethod
    def of(
        cls, edges: Edges, job: str, fence: int, spec: JobSpec, faults: Faults, subscription: Subscription | None
    ) -> "JobContext":
        """Returns the context of a job that was just claimed."""
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
