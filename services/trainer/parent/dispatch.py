"""Dispatch of a pool's work: a round-start that the trainer hears becomes a task for each client, or each batch."""

import threading
import time
from collections.abc import Iterator

import structlog
from amqp.exceptions import MessageNacked
from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

from services.trainer.signals import ROUND, Signals
from services.trainer.train_task import CONTENT_ENCODING, CONTENT_TYPE, Task, task_id, train_tasks
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.amqp.connection import Subscription
from shared.errors import QueueFull, Stale, Unavailable
from shared.events import AnyEvent, EvaluateModel, RoundEnd, RoundStart, TrainingEnd
from shared.process.failpoints import failpoint

log = structlog.get_logger()

CLOSING = 2.0  #: seconds to finish the event in hand when the trainer stops


class Dispatch:
    """Publishes tasks, each confirmed by the broker before the event is acknowledged."""

    def __init__(self, bus: Bus, app: Celery, group: str) -> None:
        self._bus, self._app, self._group = bus, app, group
        (self._queue,) = app.amqp.queues.values()  # the task queue of the group is the only one
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._begun: tuple[AnyEvent, int] | None = None  # an event that failed half-way, and its tasks sent so far

    def begin(self) -> Subscription:
        """Hears of work from now on; `Unavailable` if the broker is away."""
        return self._bus.serve(topology.rounds(self._group), self)

    def __call__(self, event: AnyEvent) -> None:
        """Handles a `RoundStart` or `EvaluateModel`; `Unavailable` if the broker is away."""
        with self._lock:
            if self._closed:
                raise Unavailable("this trainer is stopping")
            self._publish(event)

    def close(self) -> None:
        """Lets the event in hand be finished, unless the broker hangs; the next ones stay on their queue."""
        self._closed = True
        if self._lock.acquire(timeout=CLOSING):
            try:
                self._disconnect()
            finally:
                self._lock.release()

    def _publish(self, event: AnyEvent) -> None:
        began = time.monotonic()
        failpoint("trainer.heard")
        found = list(tasks(event, time.time()))
        done = self._begun[1] if self._begun is not None and self._begun[0] == event else 0
        while done < len(found):
            self._begun = (event, done)
            self._send(found[done])
            done += 1
        self._begun = None
        failpoint("trainer.dispatched")
        log.info(
            event.type,
            job=getattr(event, "job", None),
            round=getattr(event, "round", None),
            tasks=len(found),
            seconds=round(time.monotonic() - began, 4),
        )

    def _send(self, task: Task) -> None:
        # No thread reads from this connection, so it dies unnoticed, and the queue that it declared may be gone since.
        # A second attempt makes a new connection, which declares the queue again.
        for last in (False, True):
            connection = self._connection = self._connection or self._connect()
            try:
                Producer(connection, auto_declare=False).publish(  # type: ignore[no-untyped-call]
                    task.body,
                    content_type=CONTENT_TYPE,
                    content_encoding=CONTENT_ENCODING,
                    headers=task.headers,
                    correlation_id=task.identity,
                    exchange=self._queue.exchange,
                    routing_key=self._queue.routing_key,
                    declare=[self._queue],
                    mandatory=True,  # RabbitMQ returns a task that no queue takes
                )
            except MessageNacked as error:
                raise QueueFull("RabbitMQ refuses a task: the task queue is full; start more trainers") from error
            except (OperationalError, *connection.connection_errors, *connection.channel_errors) as error:
                self._disconnect()
                if last:
                    raise Unavailable(f"RabbitMQ did not take a task: {error}") from error
            else:
                return

    def _connect(self) -> Connection:
        # A connection apart from the worker's: one that waits for confirms does not notice that the broker hangs.
        options = {"confirm_publish": True, "read_timeout": 10, "write_timeout": 10}
        connection: Connection = self._app.connection_for_write(heartbeat=0, transport_options=options)
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.collect(socket_timeout=1)  # type: ignore[no-untyped-call]


def on_notice(signals: Signals, event: AnyEvent) -> None:
    """Handles `RoundEnd` and `TrainingEnd`: the slots see at once which work is not wanted."""
    match event:
        case RoundEnd(outcome="committed"):
            # In asynchronous rounds, work of the last `lag` rounds is still wanted.
            if event.round >= event.lag:
                signals.end(event.job, event.round - event.lag)
                signals.tell_slots(ROUND)
        case RoundEnd():
            signals.end(event.job, event.round, event.fence, event.attempt)
            signals.tell_slots(ROUND)
        case TrainingEnd():
            # A later owner may resume the job, so only the rounds up to the last committed one end for all fences.
            following = 0 if event.model is None else event.rounds + 1
            signals.end(event.job, following, event.fence)
            signals.tell_slots(f"{event.fence} {event.job}")
        case _:
            raise Stale(f"{event.type} is no notice")


def tasks(event: AnyEvent, now: float) -> Iterator[Task]:
    """The tasks of an event that is heard `now`, in seconds since the epoch; `Stale` if the event is no work."""
    match event:
        case RoundStart():
            for task in train_tasks(event, now):
                others = f" and {len(task.members) - 1} more" if len(task.members) > 1 else ""
                description = f"{task.client}{others}, round {task.round} of {task.job}"
                yield Task("train", task.identity, description, task.model_dump(mode="json"))
        case EvaluateModel():
            identity = task_id(event.job, event.round, 0, event.model.digest, *event.clients[:1])
            yield Task("evaluate", identity, f"round {event.round} of {event.job}", event.model_dump(mode="json"))
        case _:
            raise Stale(f"{event.type} is no work for a trainer")
