"""RabbitMQ: publish events with confirms, consume them, and turn each outcome into its fate.

The only module that knows pika. A pika connection belongs to one thread, so each `Link` is a thread that owns one:
others hand it small functions. Publishing and consuming have a link each, because a broker in memory alarm blocks
publishers alone. A link that breaks is thrown away and made anew, with its queues and consumers.
"""

import functools
import queue
import random
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pika
import pika.exceptions
import structlog
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from shared import names
from shared.errors import BadMessage, QueueFull, Stale, Unavailable
from shared.events import AnyEvent, Event, Heartbeat, decode, encode
from shared.settings import Broker
from shared.topology import Queue

log = structlog.get_logger()

Result = TypeVar("Result")
Handler = Callable[[AnyEvent], None]

DEADLINE = 30.0  #: seconds that a publish may take in all, reconnects included
PREFETCH = 16
CANCELLING = 5.0  #: seconds to end a subscription; a connection that breaks ends it as well
HOLD = 60.0  #: seconds a message is held and tried again while a dependency is away
_BACKOFF = (0.5, 5.0)  #: seconds before the next connection, at first and at most; full jitter


@dataclass
class Delivery:
    """One message, not yet settled."""

    queue: str
    type: str | None
    body: bytes
    attempt: int  # 1 for the first delivery, where the queue counts
    _link: "Link"
    _channel: BlockingChannel
    _tag: int
    message_id: str | None = None

    def decode(self) -> AnyEvent:
        return decode(self.type, self.body)

    def ack(self) -> None:
        self._link.post(functools.partial(self._settle, "basic_ack"))

    def requeue(self) -> None:
        # reject and not nack: only a reject counts towards the delivery limit in every version.
        self._link.post(functools.partial(self._settle, "basic_reject", requeue=True))

    def _settle(self, method: str, **options: bool) -> None:
        # A tag is worth nothing on another channel: the broker has redelivered the message by then.
        if self._channel.is_open:
            getattr(self._channel, method)(self._tag, **options)


@dataclass
class Subscription:
    """A queue being consumed: `deliver` is called on the link's thread and must return at once."""

    queue: Queue
    deliver: Callable[[Delivery], None]
    prefetch: int
    on_ready: Callable[[], None] | None = None
    channel: BlockingChannel | None = field(default=None, repr=False)

    @property
    def connected(self) -> bool:
        """Whether the broker delivers to it now, as far as is known."""
        return self.channel is not None and bool(self.channel.is_open)


class Bus:
    """One process's place on the bus."""

    def __init__(self, settings: Broker, app: str, *, patience: float = DEADLINE) -> None:
        self._parameters = _parameters(settings.amqp_url.get_secret_value(), app)
        self._app = app
        self._patience = patience
        self._publishing = Link(self._parameters, f"{app}-publish")
        self._consuming = Link(self._parameters, f"{app}-consume")
        self._workers: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._declared: set[str] = set()
        self._inboxes: list[queue.SimpleQueue[Delivery | None]] = []

    @property
    def user(self) -> str:
        return str(self._parameters.credentials.username)

    @property
    def place(self) -> str:
        return self._publishing.place

    def publish(self, event: AnyEvent, *, required: bool = True) -> None:
        """Hands an event to the broker and returns when it is stored.

        Raises `Unavailable` where no queue takes an event that is `required`, `QueueFull`, or `Unavailable`
        when the broker stays away. Heartbeats are neither stored nor confirmed: the next one follows.
        """
        heartbeat = isinstance(event, Heartbeat)
        properties = pika.BasicProperties(
            content_type="application/msgpack",
            type=event.type,
            message_id=uuid.uuid4().hex,
            timestamp=int(time.time()),
            app_id=self._app,
            user_id=self.user,
            correlation_id=event.job if isinstance(event, Event) else None,
            delivery_mode=1 if heartbeat else 2,
        )
        self._send(
            names.EVENTS,
            event.routing_key,
            encode(event),
            properties,
            confirmed=not heartbeat,
            required=required and not heartbeat,
        )

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Puts a message where a person will find it, with the reason, and takes it off its queue."""
        properties = pika.BasicProperties(
            type=delivery.type,
            message_id=delivery.message_id,
            timestamp=int(time.time()),
            app_id=self._app,
            user_id=self.user,
            delivery_mode=2,
            headers={"x-fedq-reason": reason, "x-fedq-queue": delivery.queue},
        )
        self._send("", names.DEAD_LETTERS, delivery.body, properties, confirmed=True, required=True)
        delivery.ack()

    def declare(self, *queues: Queue) -> None:
        """Makes sure that the queues and their bindings exist."""

        def declare(channels: "Channels") -> None:
            for wanted in queues:
                _declare(channels.confirmed(), wanted)

        self._publishing.call(declare, self._patience)

    def declare_once(self, wanted: Queue) -> None:
        """Like `declare`, and nothing the next time, unless an event has found no queue since."""
        if wanted.name not in self._declared:
            self.declare(wanted)
            self._declared.add(wanted.name)

    def depth(self, name: str) -> tuple[int, int] | None:
        """(ready messages, consumers) of a queue, or None where there is no such queue."""

        def look(channels: "Channels") -> tuple[int, int] | None:
            channel = channels.disposable()
            try:
                found = channel.queue_declare(name, passive=True).method
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code == 404:
                    return None
                raise
            channel.close()
            return found.message_count, found.consumer_count

        return self._publishing.call(look, self._patience)

    def delete(self, name: str) -> None:
        """Removes a queue and what is in it."""
        self._publishing.call(lambda channels: channels.confirmed().queue_delete(name), self._patience)

    def server(self) -> str:
        """Product and version of the broker."""

        def look(channels: "Channels") -> str:
            properties = channels.connection._impl.server_properties or {}
            found = [properties.get(key, b"") for key in ("product", "version")]
            return " ".join(part.decode() if isinstance(part, bytes) else part for part in found)

        return self._publishing.call(look, self._patience)

    def consume(
        self,
        wanted: Queue,
        deliver: Callable[[Delivery], None],
        *,
        prefetch: int = PREFETCH,
        on_ready: Callable[[], None] | None = None,
    ) -> Subscription:
        """Calls `deliver` for each message of a queue, on the link's thread, from now until cancelled.

        `on_ready` is called there too, whenever consuming begins: at first, and after each lost connection, when
        events that an exclusive queue held are gone and the state must be read again.
        """
        subscription = Subscription(wanted, deliver, prefetch, on_ready)
        self._consuming.subscribe(subscription, self._patience)
        return subscription

    def cancel(self, subscription: Subscription, *, delete: bool = False) -> None:
        """Ends a subscription; its unsettled messages go back to the queue."""
        self._consuming.unsubscribe(subscription)
        if delete:
            self.delete(subscription.queue.name)

    def serve(self, wanted: Queue, handler: Handler, *, prefetch: int = 1) -> Subscription:
        """Consumes a queue on a thread of its own, settling each message by what `handler` raises."""
        inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        worker = threading.Thread(target=self._work, args=(inbox, handler), name=f"serve-{wanted.name}", daemon=True)
        self._inboxes.append(inbox)
        self._workers.append(worker)
        worker.start()
        return self.consume(wanted, inbox.put, prefetch=prefetch)

    def _work(self, inbox: "queue.SimpleQueue[Delivery | None]", handler: Handler) -> None:
        while (delivery := inbox.get()) is not None:
            settle(self, delivery, handler, self._stopping)

    def close(self, timeout: float = 10.0) -> None:
        """Lets handlers finish what they are doing, then closes both connections."""
        # Workers before connections: the consuming link keeps answering heartbeats while they finish.
        self._stopping.set()
        for inbox in self._inboxes:
            inbox.put(None)
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._consuming.close()
        self._publishing.close()

    def _send(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: pika.BasicProperties,
        *,
        confirmed: bool,
        required: bool,
    ) -> None:
        def send(channels: "Channels") -> None:
            channel = channels.confirmed() if confirmed else channels.unconfirmed()
            channel.basic_publish(exchange, routing_key, body, properties, mandatory=confirmed)

        try:
            self._publishing.call(send, self._patience)
        except pika.exceptions.UnroutableError as error:
            self._declared.clear()
            if required:
                raise Unavailable(
                    f"RabbitMQ has no queue for {routing_key}: the service that listens has never run"
                ) from error
        except pika.exceptions.NackError as error:
            raise QueueFull(
                f"RabbitMQ refuses {routing_key}: its queue is full; "
                "start what empties it, or raise max-length in the policy"
            ) from error


def settle(bus: Bus, delivery: Delivery, handler: Handler, stopping: threading.Event) -> None:
    """Handles one message; the class of what is raised is the message's fate. The one place that decides it.

    Bad message: to `dead-letters`, with the reason. Stale: acknowledged and logged. A dependency away: held and tried
    again with back-off, then requeued. Anything else: requeued up to the queue's delivery limit, then dead-lettered.
    """
    about = log.bind(queue=delivery.queue, event_type=delivery.type)
    deadline = time.monotonic() + HOLD
    delay = 0.2
    while True:
        try:
            handler(delivery.decode())
            delivery.ack()
        except BadMessage as error:
            about.warning("dead-lettered", reason=str(error))
            bus.dead_letter(delivery, str(error))
        except Stale as error:
            about.info("stale", reason=str(error))
            delivery.ack()
        except Unavailable as error:
            if time.monotonic() < deadline and not stopping.wait(delay * random.uniform(0.5, 1)):  # noqa: S311
                about.warning("dependency away, trying again", reason=str(error))
                delay = min(2 * delay, 5.0)
                continue
            about.error("requeued", reason=str(error))
            delivery.requeue()
        except Exception:
            about.exception("requeued", attempt=delivery.attempt)
            delivery.requeue()
        return


@dataclass
class Channels:
    """The channels of one connection, made when first asked for."""

    connection: BlockingConnection
    _confirmed: BlockingChannel | None = None
    _unconfirmed: BlockingChannel | None = None

    def confirmed(self) -> BlockingChannel:
        if self._confirmed is None or not self._confirmed.is_open:
            self._confirmed = self.connection.channel()
            self._confirmed.confirm_delivery()
        return self._confirmed

    def unconfirmed(self) -> BlockingChannel:
        if self._unconfirmed is None or not self._unconfirmed.is_open:
            self._unconfirmed = self.connection.channel()
        return self._unconfirmed

    def disposable(self) -> BlockingChannel:
        return self.connection.channel()


class Link:
    """A connection and the thread that owns it; made anew whenever it breaks, until closed."""

    def __init__(self, parameters: pika.ConnectionParameters, name: str) -> None:
        self._parameters = parameters
        self.place = f"amqp://{parameters.host}:{parameters.port}/{parameters.virtual_host}"
        self._name = name
        self._lock = threading.Condition()
        self._channels: Channels | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._pending: set[Future[Any]] = set()
        self._subscriptions: list[Subscription] = []
        self._why = f"{self.place} does not answer; is it running, and is FEDQ_AMQP_URL right?"

    def call(self, function: Callable[[Channels], Result], patience: float) -> Result:
        """Runs `function` on the link's thread, again after a broken connection, for `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            future = self._submit(function, deadline)
            try:
                return future.result(max(0.0, deadline - time.monotonic()))
            except FutureTimeout:
                raise Unavailable(f"{self.place} did not answer within {patience:g} s") from None
            except (pika.exceptions.UnroutableError, pika.exceptions.NackError):
                raise
            except (pika.exceptions.AMQPError, OSError) as error:
                # Not confirmed and perhaps stored: sending twice is harmless, not sending is not.
                # Missing rights (403) or another kind of queue (406) are an answer: asking again changes nothing.
                refused = isinstance(error, pika.exceptions.ChannelClosedByBroker) and error.reply_code in (403, 406)
                if refused or time.monotonic() >= deadline:
                    raise Unavailable(_explain(error, self._parameters)) from error
                if isinstance(error, pika.exceptions.ChannelClosedByBroker):
                    self._closing.wait(random.uniform(0.05, 0.2))  # noqa: S311 - the connection is there: no wait in it
            finally:
                with self._lock:
                    self._pending.discard(future)

    def post(self, function: Callable[[], None]) -> None:
        """Runs `function` on the link's thread some time soon, or never if the connection is gone."""
        with self._lock:
            channels = self._channels
        if channels is not None:
            try:
                channels.connection.add_callback_threadsafe(function)
            except pika.exceptions.ConnectionWrongStateError:
                log.debug("dropped: the connection is gone", link=self._name)

    def subscribe(self, subscription: Subscription, patience: float) -> None:
        def begin(channels: Channels) -> None:
            if subscription.channel is None or not subscription.channel.is_open:
                self._begin(channels, subscription)

        with self._lock:
            self._subscriptions.append(subscription)
        self.call(begin, patience)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription; when this returns, the broker knows."""

        def end(_channels: Channels) -> None:
            if subscription.channel is not None and subscription.channel.is_open:
                subscription.channel.close()

        with self._lock:
            if subscription not in self._subscriptions:
                return
            self._subscriptions.remove(subscription)
            connected = self._channels is not None
        if connected:
            # Waited for: who goes on to delete the queue would have the broker cancel a consumer that is still there.
            with _ignored(Unavailable):
                self.call(end, CANCELLING)

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            channels, thread = self._channels, self._thread
        if channels is not None:
            with _ignored(pika.exceptions.ConnectionWrongStateError):
                channels.connection.add_callback_threadsafe(lambda: None)  # wakes the loop
        if thread is not None:
            thread.join(10)

    def _submit(self, function: Callable[[Channels], Result], deadline: float) -> "Future[Result]":
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(channels))
            except BaseException as error:  # it is raised again where it is waited for
                if not future.done():
                    future.set_exception(error)

        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            ready = self._lock.wait_for(
                lambda: self._channels is not None or self._closing.is_set(),
                max(0.0, deadline - time.monotonic()),
            )
            if not ready or self._channels is None:
                raise Unavailable(self._why)
            channels = self._channels
            self._pending.add(future)
            try:
                channels.connection.add_callback_threadsafe(run)
            except pika.exceptions.AMQPError as error:
                future.set_exception(error)
        return future

    def _run(self) -> None:
        delay = _BACKOFF[0]
        while not self._closing.is_set():
            connection: BlockingConnection | None = None
            try:
                connection = BlockingConnection(self._parameters)
                channels = Channels(connection)
                for subscription in list(self._subscriptions):
                    self._begin(channels, subscription)
            except (pika.exceptions.AMQPError, OSError) as error:
                if connection is not None:
                    with _ignored(pika.exceptions.AMQPError, OSError):
                        connection.close()  # or it would keep an exclusive queue from the next one
                self._why = _explain(error, self._parameters)
                log.debug("no connection", link=self._name, reason=self._why)
                self._closing.wait(random.uniform(0.1, delay))  # noqa: S311 - jitter
                delay = min(2 * delay, _BACKOFF[1])
                continue
            with self._lock:
                self._channels = channels
                self._lock.notify_all()
            delay = _BACKOFF[0]
            broken: Exception | None = None
            try:
                while not self._closing.is_set():
                    channels.connection.process_data_events(time_limit=None)
            except (pika.exceptions.AMQPError, OSError) as error:
                broken = error
            self._drop(channels, broken)

    def _drop(self, channels: Channels, broken: Exception | None) -> None:
        reason = broken or pika.exceptions.ConnectionClosed(200, "closed")
        if broken is not None:
            self._why = _explain(broken, self._parameters)
            log.warning("connection lost", link=self._name, reason=self._why)
        with self._lock:
            self._channels = None
            pending, self._pending = self._pending, set()
        for future in pending:
            if not future.done():
                with _ignored(Exception):  # lost the race against its own result
                    future.set_exception(reason)
        with _ignored(pika.exceptions.AMQPError, OSError):
            channels.connection.close()

    def _begin(self, channels: Channels, subscription: Subscription) -> None:
        channel = channels.connection.channel()
        _declare(channel, subscription.queue)
        channel.basic_qos(prefetch_count=subscription.prefetch)

        def on_message(channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
            redelivered = int((properties.headers or {}).get("x-delivery-count", 0))
            subscription.deliver(
                Delivery(
                    queue=subscription.queue.name,
                    type=properties.type,
                    body=body,
                    attempt=1 + redelivered,
                    message_id=properties.message_id,
                    _link=self,
                    _channel=channel,
                    _tag=method.delivery_tag,
                )
            )

        def on_cancel(_frame: Any) -> None:
            # The broker cancels silently, when a queue is deleted say; a new connection declares it again.
            log.warning("consumer cancelled by the broker", queue=subscription.queue.name)
            channels.connection.close()

        channel.add_on_cancel_callback(on_cancel)
        channel.basic_consume(subscription.queue.name, on_message)
        subscription.channel = channel
        if subscription.on_ready is not None:
            subscription.on_ready()


def _declare(channel: BlockingChannel, wanted: Queue) -> None:
    channel.exchange_declare(names.EVENTS, "topic", durable=True)
    channel.queue_declare(
        wanted.name,
        durable=not wanted.exclusive,
        exclusive=wanted.exclusive,
        arguments=wanted.arguments,
    )
    for routing_key in wanted.bindings:
        channel.queue_bind(wanted.name, names.EVENTS, routing_key)


def _parameters(url: str, app: str) -> pika.ConnectionParameters:
    parts = urlsplit(url)
    return pika.ConnectionParameters(
        host=parts.hostname or "localhost",
        port=parts.port or (5671 if parts.scheme == "amqps" else 5672),
        virtual_host=unquote(parts.path[1:]) or "/",
        credentials=pika.PlainCredentials(unquote(parts.username or "guest"), unquote(parts.password or "guest")),
        ssl_options=pika.SSLOptions(ssl.create_default_context(), parts.hostname) if parts.scheme == "amqps" else None,
        heartbeat=30,
        blocked_connection_timeout=30,  # pika's default waits for ever on a broker in memory alarm
        socket_timeout=5,
        stack_timeout=10,
        client_properties={"connection_name": app},
    )


def _explain(error: BaseException, parameters: pika.ConnectionParameters) -> str:
    """The sentence for a person, from pika's many ways to say it."""
    place = f"RabbitMQ at {parameters.host}:{parameters.port}"
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError):
        return f"{place} refuses these credentials; check the user and password in FEDQ_AMQP_URL"
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError) or "NOT_ALLOWED" in str(error):
        return f"{place} refuses the vhost {parameters.virtual_host!r}; check FEDQ_AMQP_URL and the user's rights"
    if "ACCESS_REFUSED" in str(error):
        return f"{place} refuses what this user tries: {error}; check the user and its rights"
    if isinstance(error, pika.exceptions.AMQPConnectionError | OSError):
        causes = [getattr(cause, "exception", cause) for cause in (*reversed(error.args), error)]
        detail = next((str(cause) for cause in causes if str(cause)), type(error).__name__)
        return f"{place} cannot be reached ({detail}); is it running, and is FEDQ_AMQP_URL right?"
    return f"{place}: {error or type(error).__name__}"


@contextmanager
def _ignored(*errors: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        log.debug("ignored", error=repr(error))
