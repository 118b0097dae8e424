"""Watching of a job until its end, by its events, and by its record if events may have been missed."""

import queue
import secrets
from collections.abc import Iterable
from typing import Protocol

from services.cli.report import history
from services.cli.report.progress import JobProgress
from services.cli.servers import Servers
from shared.amqp import topology
from shared.amqp.connection import Delivery, Subscription
from shared.errors import BadMessage, Unavailable
from shared.events import AnyEvent, TrainingEnd
from shared.redis.ledger import ENDED

QUIET = 15.0  #: seconds without an event before the record is read again, which is only a safety net
RECENT = 10  #: number of past rounds that a late watcher is shown
PREFETCH = 64


class View(Protocol):
    """View of a watched job."""

    def show(self, progress: JobProgress, sentence: str, event: AnyEvent | None = None, /) -> None:
        """Shows `sentence`, which describes the news, and its source: `event`, or the record if that is None."""


class Watch:
    """Watch of one job for one view.

    A resumed job has ended before: an end event with the fence `after` or a lower one is therefore ignored.
    """

    def __init__(self, servers: Servers, job: str, view: View) -> None:
        self._servers = servers
        self._view = view
        self._job = job
        self.after = -1
        self._progress = JobProgress(job, 0)
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()  # None means: read the record
        self._subscription: Subscription | None = None

    def subscribe(self) -> None:
        """Subscribes to the job's events; after a broken connection, which may lose some, the record is read again."""
        queue_of_mine = topology.watcher(secrets.token_hex(6), self._job)
        self._subscription = self._servers.bus.consume(
            queue_of_mine, self._inbox.put, prefetch=PREFETCH, on_ready=lambda: self._inbox.put(None)
        )

    def follow(self) -> TrainingEnd:
        """Shows the job until it ends, and returns its end."""
        end = self._begin()
        while end is None:
            try:
                delivery = self._inbox.get(timeout=QUIET)
            except queue.Empty:
                delivery = None
            end = self._hear(delivery) if delivery is not None else self._read_again()
        if self._subscription is not None:
            self._servers.bus.cancel(self._subscription)
        return end

    def _begin(self) -> TrainingEnd | None:
        """The end of a job that is already over, from Redis or the store; subscribes and returns None otherwise."""
        if self._subscription is not None:
            return None  # the caller subscribed before it started the job
        blobs, ledger = self._servers.blobs, self._servers.ledger
        record = ledger.job(self._job)
        end = history.end(blobs, self._job) if record is None else None
        if end is None:
            record = ledger.required(self._job)
            if record.status not in ENDED:
                self.subscribe()
                return None
            end = history.end_of(blobs, record)
        self._progress.count = record.rounds if record else end.rounds
        self._tell([end])
        return end

    def _hear(self, delivery: Delivery) -> TrainingEnd | None:
        delivery.ack()
        try:
            event = delivery.decode()
            if not (isinstance(event, TrainingEnd) and event.fence <= self.after):
                self._tell([event])
        except BadMessage as error:
            self._note(f"an event cannot be read: {error}")
        return self._progress.end

    def _read_again(self) -> TrainingEnd | None:
        """Reads the record again; if a server is unreachable, the job continues, and so does watching it."""
        try:
            return self._read()
        except Unavailable as error:
            self._note(str(error))
            return None

    def _read(self) -> TrainingEnd | None:
        ledger = self._servers.ledger
        record = ledger.job(self._job)
        if record is None:
            self._note("Redis has no record of the job; waiting for its aggregator to write it again")
            return None
        self._progress.count = record.rounds
        self._catch_up(record.round)
        if record.status in ENDED:
            self._tell([history.end_of(self._servers.blobs, record)])
            return self._progress.end
        if self._subscription is not None and not self._subscription.connected:
            self._note(f"RabbitMQ at {self._servers.bus.place} is away; waiting for it")
        elif record.status == "queued":
            self._note(self._servers.why_queued())
        elif record.status == "paused":
            self._note(f"paused: {record.detail}; `fedq resume {self._job}` continues it")
        else:
            self._progress.note = ""
            self._view.show(self._progress, self._progress.recall(record, ledger.round(self._job, record.round + 1)))
        return None

    def _catch_up(self, committed: int) -> None:
        """Shows the latest committed rounds whose events were missed, from the store."""
        first = max(self._progress.committed, committed + 1 - RECENT, 0)
        if committed > self._progress.committed:
            for past in history.rounds(self._servers.blobs, self._job, first, committed):
                self._tell(past.events())

    def _tell(self, events: Iterable[AnyEvent]) -> None:
        for event in events:
            if sentence := self._progress.apply(event):
                self._progress.note = ""
                self._view.show(self._progress, sentence, event)

    def _note(self, sentence: str) -> None:
        """Shows once what the watch is waiting for."""
        if sentence != self._progress.note:
            self._progress.note = sentence
            self._view.show(self._progress, sentence)
