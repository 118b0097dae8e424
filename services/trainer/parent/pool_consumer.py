"""The consumer of a pool's queue of tasks: Celery's, but it obeys no part of a message before `fault` has seen it.

It stands on Celery 5.7.
"""

import logging
from collections.abc import Callable
from typing import Any

import amqp
from amqp import method_framing
from amqp.exceptions import NotFound, ResourceLocked
from celery.utils.threads import bound_open_broker_sockets
from celery.worker import consumer as celery_consumer
from celery.worker import state
from kombu.common import ignore_errors

from services.trainer.train_task import CONTENT_ENCODING, fault
from shared.errors import Unavailable

log = logging.getLogger("celery.worker")  # forwarded to ours, with its hints

SILENCE = 30.0  #: seconds that the broker may take for each answer


class Content(amqp.Message):  # type: ignore[misc]
    """A message as it comes; no part of it is obeyed before `fault` has seen it.

    Celery would end at headers or a routing key that it cannot read. By itself it would also unpack a body, to any
    length, and decode it by any codec that the message names.
    """

    properties: dict[str, Any]

    def __init__(self, frame_method: tuple[int, int], frame_args: memoryview) -> None:
        super().__init__(frame_method=frame_method, frame_args=_with_readable_key(frame_method, frame_args))

    def _load_properties(self, class_id: int, buf: memoryview, offset: int) -> int:
        try:
            after: int = super()._load_properties(class_id, buf, offset)
        except Exception as error:  # a stranger's bytes may make a parser raise anything
            self.properties = {"application_headers": {"unreadable": f"{type(error).__name__}: {error}"}}
            return offset
        headers = self.properties.get("application_headers", {})
        if "compression" in headers:
            headers["compressed"] = headers.pop("compression")
        if self.properties.get("content_encoding") != CONTENT_ENCODING:
            self.properties.pop("content_encoding", None)
        return after


def _with_readable_key(method: tuple[int, int], arguments: memoryview) -> memoryview | bytes:
    """The arguments of a delivery; its routing key, the last of them, has '?' for what is no text."""
    if method != amqp.spec.Basic.Deliver:
        return arguments
    raw = bytes(arguments)
    tag = 4  # the consumer's tag lies behind the method's two numbers
    exchange = tag + 1 + raw[tag] + 9  # behind the consumer's tag, the delivery's tag and the flag `redelivered`
    key = exchange + 1 + raw[exchange] + 1
    text = raw[key:].decode("ascii", "replace").replace("\ufffd", "?")
    return raw[:key] + text.encode()


method_framing.Message = Content


class PoolSteps(celery_consumer.Consumer.Blueprint):  # type: ignore[misc]  # Celery has no types
    """The steps of Celery that a pool's consumer needs.

    Left out is the step that declares 28 queues for delayed tasks as soon as one queue is a quorum queue, and with it
    those for remote control and monitoring events.
    """

    default_steps = (
        "celery.worker.consumer.connection:Connection",
        "celery.worker.consumer.tasks:Tasks",
        "celery.worker.consumer.consumer:Evloop",
    )


class PoolConsumer(celery_consumer.Consumer):  # type: ignore[misc]
    """A consumer of tasks and nothing else."""

    Blueprint = PoolSteps

    def start(self) -> None:
        # A quorum queue without a leader for a moment is not found, or is locked; so these errors are tried again.
        self.connection_errors = (*self.connection_errors, NotFound, ResourceLocked)  # type: ignore[has-type]
        try:
            super().start()
        except self.channel_errors as error:  # Celery ends at this error, and tells it to its log alone
            self.controller.failure = Unavailable(
                f"RabbitMQ refuses the queue of tasks: {error}; check the rights of the user in FEDQ_AMQP_URL"
            )
            raise

    def connect(self) -> Any:
        """A connection on which no call waits without end for a broker that hangs."""
        self.controller.turning.turned()  # if a queue has no leader, Celery fails once connected and begins again here
        connection = super().connect()
        bound_open_broker_sockets(connection, SILENCE)
        return connection

    def ensure_connected(self, conn: Any) -> Any:
        """Waits for the broker, as Celery does; its loop stands still meanwhile, so this reports the turns instead."""

        def failed(error: Exception, seconds: float) -> None:
            log.error("Cannot connect to %s (%s), trying again in %g s", conn.as_uri(), error, seconds)

        def turn() -> None:
            self.controller.turning.turned()
            state.maybe_shutdown()

        return conn.ensure_connection(failed, callback=turn)

    def create_task_handler(self) -> Callable[[Any], None]:
        """Celery's handler, for messages that are ours to the last header; any other is a dead letter at once."""
        handle = super().create_task_handler()

        def received(message: Any) -> None:
            if (reason := fault(message)) is None:
                handle(message)
            else:
                log.error("no task, and a dead letter now: %s", reason)
                message.reject_log_error(log, self.connection_errors)

        return received

    def shutdown(self) -> None:
        """Closes the connection; Celery would cancel the consumer twice more, each time waiting for an answer."""
        connection, self.connection = self.connection, None  # type: ignore[has-type]
        if connection is not None:
            ignore_errors(connection, connection.close)  # type: ignore[no-untyped-call]
