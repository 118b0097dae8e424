"""The bus: publish events with confirms, consume them, and settle each message by the outcome of its handler.

Publishing and consuming have separate connections, because a broker in memory alarm blocks only those that publish.
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import structlog

from shared import names
from shared.amqp import topology
from shared.amqp.connection import Channels, Delivery, Link, Message, Peeked, Subscription
from shared.amqp.topology import Queue
from shared.errors import BadMessage, Fenced, Stale, Unavailable
from shared.events import AnyEvent, Event, Heartbeat, encode
from shared.process.retry import Retry
from shared.process.settings import Broker

log = structlog.get_logger()

Handler = Callable[[AnyEvent], None]

DEADLINE = 30.0  #: seconds that a publish may take in all, reconnects included
PREFETCH = 16
HOLD = 60.0  #: seconds for which a message is held and tried again while a dependency is away


class Bus:
    """Access of one process to the bus."""

    def __init__(self, settings: Broker, app: str, *, patience: float = DEADLINE) -> None:
        url = settings.amqp_url.get_secret_value()
        self._app = app
        self._patience = patience
        self._publishing = Link(url, app, f"{app}-publish", settings.amqp_heartbeat_s)
        self._consuming = Link(url, app, f"{app}-consume", settings.amqp_heartbeat_s)
        self._workers: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._declared: set[str] = set()
        self._inboxes: list[queue.SimpleQueue[Delivery | None]] = []

    @property
    def place(self) -> str:
        return self._publishing.place

    def publish(self, event: AnyEvent, *, required: bool = True) -> None:
        """Hands an event to the broker and returns when it is stored.

        Raises `Unavailable` if no queue takes an event that is `required` or if the broker stays away, and `QueueFull`
        if the queue is full. Heartbeats are neither stored nor confirmed, because the next one follows.
        """
        heartbeat = isinstance(event, Heartbeat)
        message = Message(
            names.EVENTS,
            event.routing_key,
            encode(event),
            self._properties(
                type=event.type,
                content_type="application/msgpack",
                message_id=uuid.uuid4().hex,
                correlation_id=event.job if isinstance(event, Event) else None,
                delivery_mode=1 if heartbeat else 2,
            ),
            confirmed=not heartbeat,
        )
        if not self._publishing.send(message, self._patience):
            self._declared.clear()
            if required:
                raise Unavailable(
                    f"RabbitMQ has no queue for {event.routing_key}: the service that listens has never run"
                )

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Moves a message from its queue to the dead letters, with the reason, where an operator finds it."""
        properties = self._properties(
            type=delivery.type,
            message_id=delivery.message_id,
            delivery_mode=2,
            headers={"x-fedq-reason": reason, "x-fedq-queue": delivery.queue},
        )
        self.declare_once(topology.dead_letters())
        if not self._publishing.send(Message("", names.DEAD_LETTERS, delivery.body, properties), self._patience):
            self._declared.clear()
            raise Unavailable(f"RabbitMQ has no queue {names.DEAD_LETTERS}")
        delivery.ack()

    def declare(self, *queues: Queue, patience: float | None = None) -> None:
        """Makes sure that the queues and their bindings exist; `Unavailable` if that takes too long."""

        def declare(channels: Channels) -> None:
            for wanted in queues:
                channels.declare(wanted)

        self._publishing.call(declare, self._patience if patience is None else patience)

    def declare_once(self, wanted: Queue) -> None:
        """Declares a queue the first time, and again after an event has found no queue."""
        if wanted.name not in self._declared:
            self.declare(wanted)
            self._declared.add(wanted.name)

    def depth(self, name: str) -> tuple[int, int] | None:
        """(ready messages, consumers) of a queue, or None if there is no such queue."""
        return self._publishing.call(lambda channels: channels.depth(name), self._patience)

    def peek(self, name: str, most: int) -> list[Peeked]:
        """The first `most` messages of a queue, which stay on it."""
        self._publishing.call(Channels.server, self._patience)  # fails sooner than a long peek
        return self._publishing.call(lambda channels: channels.peek(name, most), DEADLINE)

    def delete(self, name: str) -> None:
        """Removes a queue with its messages."""
        self._publishing.call(lambda channels: channels.delete(name), self._patience)

    def server(self) -> str:
        """Product and version of the broker."""

        return self._publishing.call(Channels.server, self._patience)

    def consume(
        self,
        wanted: Queue,
        deliver: Callable[[Delivery], None],
        *,
        prefetch: int = PREFETCH,
        on_ready: Callable[[], None] | None = None,
        priority: int = 0,
    ) -> Subscription:
        """Calls `deliver` for each message of a queue, on the link's thread, from now until cancelled.

        If a queue has two consumers, the one with the higher `priority` gets the messages as long as it takes them.

        `on_ready` is called on that thread too, whenever consuming begins: at first, and after each lost connection.
        Events that an exclusive queue held are gone by then, so the state must be read again.
        """
        subscription = Subscription(wanted, deliver, prefetch, on_ready, priority)
        self._consuming.subscribe(subscription, self._patience)
        return subscription

    def cancel(self, subscription: Subscription, *, delete: bool = False, settling: bool = False) -> None:
        """Ends a subscription; its unsettled messages go back to the queue, or are settled later if `settling`."""
        self._consuming.unsubscribe(subscription, settling=settling)
        if delete:
            self.delete(subscription.queue.name)

    def serve(self, wanted: Queue, handler: Handler, *, prefetch: int = 1) -> Subscription:
        """Consumes a queue on a separate thread and settles each message by the error that `handler` raises, if any."""
        inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        worker = threading.Thread(target=self._work, args=(inbox, handler), name=f"serve-{wanted.name}", daemon=True)
        subscription = self.consume(wanted, inbox.put, prefetch=prefetch)
        self._inboxes.append(inbox)
        self._workers.append(worker)
        worker.start()
        return subscription

    def _work(self, inbox: "queue.SimpleQueue[Delivery | None]", handler: Handler) -> None:
        while (delivery := inbox.get()) is not None:
            settle(self, delivery, handler, self._stopping)

    def close(self, timeout: float = 10.0) -> None:
        """Lets handlers finish their messages, then closes both connections, all within `timeout` seconds."""
        # Workers end before connections, because the consuming link answers the broker's heartbeats while they finish.
        self._stopping.set()
        for inbox in self._inboxes:
            inbox.put(None)
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        for link in (self._consuming, self._publishing):
            link.close(max(0.1, deadline - time.monotonic()))

    def _properties(self, **own: Any) -> dict[str, Any]:
        return {"timestamp": int(time.time()), "app_id": self._app, "user_id": self._publishing.user, **own}


def settle(bus: Bus, delivery: Delivery, handler: Handler, stopping: threading.Event) -> None:
    """Handles one message and settles it by the class of the error raised; no other place decides that.

    `BadMessage`: moved to `dead-letters`, with the reason. `Stale`: acknowledged and logged. `Unavailable`: held and
    tried again with back-off, then requeued. `Fenced`: requeued for the new owner, and raised. Any other error:
    requeued up to the queue's delivery limit, then dead-lettered.
    """
    about = log.bind(queue=delivery.queue, event_type=delivery.type)
    retry = Retry(0.2, 5.0, patience=HOLD)
    while True:
        try:
            try:
                handler(delivery.decode())
            except BadMessage as error:
                about.warning("dead-lettered", reason=str(error))
                bus.dead_letter(delivery, str(error))
                return
            delivery.ack()
        except Fenced:
            delivery.requeue()
            raise
        except Stale as error:
            about.info("stale", reason=str(error))
            delivery.ack()
        except Unavailable as error:
            if not retry.is_over and not stopping.wait(retry.pause()):
                about.warning("dependency away, trying again", reason=str(error))
                continue
            about.error("requeued", reason=str(error))
            delivery.requeue()
        except Exception:
            about.exception("requeued", attempt=delivery.attempt)
            delivery.requeue()
        return
