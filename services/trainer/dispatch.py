"""Turns what a trainer hears into what its slots do: a round-start into a task for each client, or each batch."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import structlog
from amqp.exceptions import MessageNacked
from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from services.trainer.board import Board
from services.trainer.orders import orders, task_id
from shared.errors import QueueFull, Stale, Unavailable
from shared.events import AnyEvent, EvaluateModel, RoundEnd, RoundStart, TrainingEnd
from shared.failpoints import failpoint

CLOSING = 2.0  #: seconds that an event in hand may take to be finished when the trainer stops

Task = tuple[str, str, str, dict[str, Any]]  # its kind, id, description and argument


class Dispatch:
    """Publishes tasks, each confirmed by the broker before the event is acknowledged."""

    def __init__(self, app: Celery, trainer: str) -> None:
        self._app = app
        self._log = structlog.get_logger().bind(trainer=trainer)
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._begun: tuple[AnyEvent, int] | None = None  # an event that failed half-way, and where

    def __call__(self, event: AnyEvent) -> None:
        """Handles a `RoundStart` or `EvaluateModel`; `Unavailable` where the broker is away."""
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
        tasks = list(_tasks(event, time.time()))
        done = self._begun[1] if self._begun is not None and self._begun[0] == event else 0
        while done < len(tasks):
            self._begun = (event, done)
            self._send(*tasks[done])
            done += 1
        self._begun = None
        failpoint("trainer.dispatched")
        self._log.info(
            event.type,
            job=getattr(event, "job", None),
            round=getattr(event, "round", None),
            tasks=len(tasks),
            seconds=round(time.monotonic() - began, 4),
        )

    def _send(self, kind: str, identity: str, description: str, argument: dict[str, Any]) -> None:
        # A connection that nobody reads from dies unnoticed, and the queue that it declared may be gone since: so a
        # second one, made now, which declares it again, before giving up.
        for last in (False, True):
            connection = self._connection = self._connection or self._connect()
            try:
                self._app.send_task(
                    kind,
                    (argument,),
                    task_id=identity,
                    argsrepr=description,  # what a person sees in the RabbitMQ console
                    connection=connection,
                    ignore_result=True,
                    retry=False,
                    mandatory=True,  # a task that no queue takes is an error
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
        # Not the worker's: a worker whose connection waits for confirms does not notice that the broker hangs.
        options = {"confirm_publish": True, "read_timeout": 10, "write_timeout": 10}
        connection: Connection = self._app.connection_for_write(heartbeat=0, transport_options=options)
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.collect(socket_timeout=1)  # type: ignore[no-untyped-call]


def on_notice(board: Board, event: AnyEvent) -> None:
    """Handles `RoundEnd` and `TrainingEnd`: the slots see at once what nobody waits for."""
    match event:
        case RoundEnd(outcome="committed"):
            # Where rounds do not wait for each other, work of the last few is still wanted.
            if event.round >= event.lag:
                board.end(event.job, event.round - event.lag)
        case RoundEnd():
            board.end(event.job, event.round, event.fence, event.attempt)
        case TrainingEnd():
            # Not for ever: a later owner may resume the job, at the round after the last committed one, if any was.
            following = 0 if event.model is None else event.rounds + 1
            board.end(event.job, following, event.fence)
        case _:
            raise Stale(f"{event.type} is no notice")


def _tasks(event: AnyEvent, now: float) -> Iterator[Task]:
    match event:
        case RoundStart():
            for order in orders(event, now):
                others = f" and {len(order.members) - 1} more" if len(order.members) > 1 else ""
                description = f"{order.client}{others}, round {order.round} of {order.job}"
                yield "train", order.identity, description, order.model_dump(mode="json")
        case EvaluateModel():
            identity = task_id(event.job, event.round, 0, event.model.digest, *event.clients[:1])
            yield "evaluate", identity, f"round {event.round} of {event.job}", event.model_dump(mode="json")
        case _:
            raise Stale(f"{event.type} is no work for a trainer")
