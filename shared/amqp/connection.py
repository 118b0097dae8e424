"""A connection to RabbitMQ and the thread that owns it and connects again whenever the connection breaks.

The only module that knows pika. A pika connection belongs to one thread; other threads hand it small functions.
"""

import functools
import random
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pika
import pika.data
import pika.exceptions
import structlog
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from shared import names
from shared.amqp.topology import Queue
from shared.errors import QueueFull, Unavailable, tls_trouble
from shared.events import AnyEvent, decode
from shared.process.retry import Retry

log = structlog.get_logger()

Result = TypeVar("Result")

CANCELLING = 5.0  #: seconds to end a subscription; a connection that breaks ends it as well
_BACKOFF = (0.5, 5.0)  #: seconds before the next connection, at first and at most, before jitter


@dataclass(frozen=True)
class Message:
    """A message to publish; `properties` are AMQP's, by pika's names."""

    exchange: str
    routing_key: str
    body: bytes
    properties: dict[str, Any]
    confirmed: bool = True


@dataclass
class Delivery:
    """One message, not yet settled."""

    queue: str
    type: str | None
    body: bytes
    attempt: int  # 1 for the first delivery; later ones count only on queues that count deliveries
    _link: "Link"
    _channel: BlockingChannel
    _tag: int
    message_id: str | None = None

    def decode(self) -> AnyEvent:
        return decode(self.type, self.body)

    def ack(self) -> None:
        self._link.post(functools.partial(self._settle, "basic_ack"))

    def requeue(self) -> None:
        # A reject and not a nack, because only a reject counts towards the delivery limit in every RabbitMQ version.
        self._link.post(functools.partial(self._settle, "basic_reject", requeue=True))

    def _settle(self, method: str, **options: bool) -> None:
        # A delivery tag is valid only on its channel: if that is gone, the broker has redelivered the message.
        if self._channel.is_open:
            getattr(self._channel, method)(self._tag, **options)


@dataclass(frozen=True)
class Peeked:
    """A message that was read and stays on its queue."""

    type: str | None
    correlation_id: str | None
    headers: dict[str, Any]
    body: bytes


@dataclass
class Subscription:
    """A queue being consumed: `deliver` is called on the link's thread and must return at once."""

    queue: Queue
    deliver: Callable[[Delivery], None]
    prefetch: int
    on_ready: Callable[[], None] | None = None
    priority: int = 0
    channel: BlockingChannel | None = field(default=None, repr=False)
    tag: str = ""  # the consumer's, on that channel

    @property
    def connected(self) -> bool:
        """True if the broker delivers to this subscription now, as far as is known."""
        return self.channel is not None and bool(self.channel.is_open)


@dataclass
class Channels:
    """The channels of one connection, each opened on first use."""

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

    def declare(self, wanted: Queue) -> None:
        """Makes sure that a queue and its bindings exist."""
        _declare(self.confirmed(), wanted)

    def depth(self, name: str) -> tuple[int, int] | None:
        """(ready messages, consumers) of a queue, or None if there is no such queue."""
        channel = self.connection.channel()  # a separate one, because the broker closes it if the queue is missing
        try:
            found = channel.queue_declare(name, passive=True).method
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code == 404:
                return None
            raise
        channel.close()
        return found.message_count, found.consumer_count

    def peek(self, name: str, most: int) -> list[Peeked]:
        """The first messages of a queue, which stay on it; an empty list if there is no such queue."""
        if self.depth(name) is None:
            return []
        found: list[Peeked] = []
        channel = self.connection.channel()
        while len(found) < most:
            method, properties, body = channel.basic_get(name)
            if method is None:
                break
            found.append(Peeked(properties.type, properties.correlation_id, dict(properties.headers or {}), body))
        if found:
            # A nack, not a reject or a closed channel, because RabbitMQ 4.3 does not count it as a failed delivery.
            # Earlier versions do, so the policy of a queue that is peeked needs a limit beyond any number of peeks.
            channel.basic_nack(0, multiple=True, requeue=True)
        channel.close()
        return found

    def delete(self, name: str) -> None:
        self.confirmed().queue_delete(name)

    def server(self) -> str:
        """Product and version of the broker."""
        properties = self.connection._impl.server_properties or {}
        found = [properties.get(key, b"") for key in ("product", "version")]
        return " ".join(part.decode() if isinstance(part, bytes) else part for part in found)


class Link:
    """A connection and the thread that owns it; the thread reconnects whenever it breaks, until closed."""

    def __init__(self, url: str, app: str, name: str, heartbeat: int = 30) -> None:
        self._parameters = parameters = _parameters(url, app, heartbeat)
        self.place = f"{urlsplit(url).scheme}://{parameters.host}:{parameters.port}/{parameters.virtual_host}"
        self.user = str(parameters.credentials.username)
        self._name = name
        self._lock = threading.Condition()
        self._channels: Channels | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._leaves = False  # closing: waits until all settlements are sent, or can no longer be
        self._pending: set[Future[Any]] = set()
        self._subscriptions: list[Subscription] = []
        self._why = f"{self.place} does not answer; is it running, and is FEDQ_AMQP_URL right?"

    def call(self, function: Callable[[Channels], Result], patience: float) -> Result:
        """Runs `function` on the link's thread, and again if the connection breaks, for `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            future = self._submit(function, deadline)
            try:
                return future.result(max(0.0, deadline - time.monotonic()))
            except FutureTimeout:
                raise Unavailable(
                    f"{self.place} did not answer within {patience:g} s; is FEDQ_AMQP_URL right?"
                ) from None
            except (pika.exceptions.UnroutableError, pika.exceptions.NackError):
                raise
            except (pika.exceptions.AMQPError, OSError) as error:
                # An unconfirmed message may be stored or not: sending it twice is harmless, losing it is not.
                # Missing rights (403) or another kind of queue (406) are final answers: a retry changes nothing.
                refused = isinstance(error, pika.exceptions.ChannelClosedByBroker) and error.reply_code in (403, 406)
                if refused or time.monotonic() >= deadline:
                    raise Unavailable(_explain(error, self._parameters)) from error
                if isinstance(error, pika.exceptions.ChannelClosedByBroker):
                    self._closing.wait(random.uniform(0.05, 0.2))  # noqa: S311 - `_submit` does not wait here
            finally:
                with self._lock:
                    self._pending.discard(future)

    def send(self, message: Message, patience: float) -> bool:
        """Publishes a message; false if no queue takes it, `QueueFull` if its queue takes no more.

        A confirmed message is stored when this returns.
        """
        properties = pika.BasicProperties(**message.properties)

        def send(channels: Channels) -> None:
            channel = channels.confirmed() if message.confirmed else channels.unconfirmed()
            channel.basic_publish(
                message.exchange, message.routing_key, message.body, properties, mandatory=message.confirmed
            )

        try:
            self.call(send, patience)
        except pika.exceptions.UnroutableError:
            return False
        except pika.exceptions.NackError as error:
            raise QueueFull(
                f"RabbitMQ refuses {message.routing_key}: its queue is full; "
                "start what empties it, or raise max-length in the policy"
            ) from error
        return True

    def post(self, function: Callable[[], None]) -> None:
        """Runs `function` on the link's thread soon, or never if the connection is gone."""
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
        try:
            self.call(begin, patience)
        except Unavailable:
            # The caller tries again with another subscription, so this one must not come back with a new connection.
            self.unsubscribe(subscription)
            raise

    def unsubscribe(self, subscription: Subscription, *, settling: bool = False) -> None:
        """Ends a subscription; when this returns, the broker knows.

        Delivered messages go back to the queue, unless `settling`: then they may be settled until the connection ends.
        """

        def end(_channels: Channels) -> None:
            if subscription.channel is not None and subscription.channel.is_open:
                if settling:
                    subscription.channel.basic_cancel(subscription.tag)
                else:
                    subscription.channel.close()

        with self._lock:
            if subscription not in self._subscriptions:
                return
            self._subscriptions.remove(subscription)
            connected = self._channels is not None
        if connected:
            # This waits, because a caller that deletes the queue next would make the broker cancel a live consumer.
            with _ignored(Unavailable):
                self.call(end, CANCELLING)

    def close(self, timeout: float = 10.0) -> None:
        """Closes the connection, and waits for that at most `timeout` seconds: a broker that hangs does not answer."""
        with self._lock:
            self._leaves = True
            channels, thread = self._channels, self._thread
        try:
            if channels is not None:  # the link's thread does this after all settlements posted so far
                channels.connection.add_callback_threadsafe(self._closing.set)
            else:
                self._closing.set()
        except pika.exceptions.ConnectionWrongStateError:
            self._closing.set()
        if thread is not None:
            thread.join(timeout)
        self._closing.set()

    def _submit(self, function: Callable[[Channels], Result], deadline: float) -> "Future[Result]":
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(channels))
            except BaseException as error:  # the waiting thread raises it again
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
        retry = Retry(*_BACKOFF, least=0.02)
        while not self._closing.is_set():
            try:
                channels = self._connect()
            except Exception as error:  # any error at all: only this thread can connect again, so it goes on
                self._why = _explain(error, self._parameters)
                log.debug("no connection", link=self._name, reason=self._why)
                self._closing.wait(retry.pause())
                continue
            retry.succeeded()
            broken: Exception | None = None
            try:
                while not self._closing.is_set():
                    channels.connection.process_data_events(time_limit=None)
            except Exception as error:
                broken = error
            self._drop(channels, broken)

    def _connect(self) -> Channels:
        connection = BlockingConnection(self._parameters)
        try:
            channels = Channels(connection)
            for subscription in list(self._subscriptions):
                self._begin(channels, subscription)
        except BaseException:
            with _ignored(pika.exceptions.AMQPError, OSError):
                connection.close()  # an open one would keep its exclusive queues from the next connection
            raise
        with self._lock:
            self._channels = channels
            self._lock.notify_all()
        return channels

    def _drop(self, channels: Channels, broken: Exception | None) -> None:
        reason = broken or pika.exceptions.ConnectionClosed(200, "closed")
        if broken is not None:
            self._why = _explain(broken, self._parameters)
            log.warning("connection lost", link=self._name, reason=self._why)
        with self._lock:
            self._channels = None
            pending, self._pending = self._pending, set()
            if self._leaves:  # the callback that would have set it is lost with the connection
                self._closing.set()
        for future in pending:
            if not future.done():
                with _ignored(Exception):  # its result may have arrived since the check
                    future.set_exception(reason)
        with _ignored(pika.exceptions.AMQPError, OSError):
            channels.connection.close()

    def _begin(self, channels: Channels, subscription: Subscription) -> None:
        channel = channels.connection.channel()
        _declare(channel, subscription.queue)
        channel.basic_qos(prefetch_count=subscription.prefetch)

        def on_message(channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
            subscription.deliver(
                Delivery(
                    queue=subscription.queue.name,
                    type=properties.type,
                    body=body,
                    attempt=deliveries(properties.headers or {}),
                    message_id=properties.message_id,
                    _link=self,
                    _channel=channel,
                    _tag=method.delivery_tag,
                )
            )

        def on_cancel(_frame: Any) -> None:
            # The broker cancels a consumer if its queue is deleted, for example; a new connection declares it again.
            log.warning("consumer cancelled by the broker", queue=subscription.queue.name)
            channels.connection.close()

        channel.add_on_cancel_callback(on_cancel)
        arguments = {"x-priority": subscription.priority} if subscription.priority else None
        subscription.tag = channel.basic_consume(subscription.queue.name, on_message, arguments=arguments)
        subscription.channel = channel
        if subscription.on_ready is not None:
            subscription.on_ready()


#: RabbitMQ's headers with the count of earlier deliveries. From 4.0 on there is a second one, which also counts those
#: that ended with their connection; from 4.3 on there is only that one.
COUNTS = ("x-delivery-count", "x-acquired-count")


def deliveries(headers: Mapping[str, Any]) -> int:
    """Number of deliveries of a message, this one included, from headers that are absent on the first.

    A header that is not a count comes from an unknown publisher and is ignored.
    """
    counts = [headers.get(name) for name in COUNTS]
    # The type is tested with `isinstance`, because pika has a subclass of int for AMQP's 64-bit integers.
    return 1 + max(count if isinstance(count, int) and count > 0 else 0 for count in counts)


def _table(encoded: bytes, offset: int) -> tuple[dict[Any, Any], int]:
    """Headers as pika reads them, or none if it cannot.

    Its error, on a date too far away for example, would end the connection, and the message would come again on the
    next one. No code here relies on headers of an unknown publisher.
    """
    try:
        found: tuple[dict[Any, Any], int] = _as_pika_reads(encoded, offset)
    except Exception:  # a hostile header may raise any error in the parser
        (size,) = struct.unpack_from(">I", encoded, offset)
        return {}, offset + 4 + size
    return found


_as_pika_reads = pika.data.decode_table
pika.data.decode_table = _table


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


def _parameters(url: str, app: str, heartbeat: int) -> pika.ConnectionParameters:
    parts = urlsplit(url)
    return pika.ConnectionParameters(
        host=parts.hostname or "localhost",
        port=parts.port or (5671 if parts.scheme == "amqps" else 5672),
        virtual_host=unquote(parts.path[1:]) or "/",
        credentials=pika.PlainCredentials(unquote(parts.username or "guest"), unquote(parts.password or "guest")),
        ssl_options=pika.SSLOptions(ssl.create_default_context(), parts.hostname) if parts.scheme == "amqps" else None,
        heartbeat=heartbeat,
        blocked_connection_timeout=30,  # by default pika waits forever on a broker in memory alarm
        socket_timeout=5,
        stack_timeout=10,
        client_properties={"connection_name": app},
    )


def _explain(error: BaseException, parameters: pika.ConnectionParameters) -> str:
    """The sentence for users that stands for one of pika's many errors."""
    place = f"RabbitMQ at {parameters.host}:{parameters.port}"
    if trouble := tls_trouble(error, "FEDQ_AMQP_URL"):
        return f"{place}: {trouble}"
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError):
        return f"{place} refuses these credentials; check the user and password in FEDQ_AMQP_URL"
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError) or "NOT_ALLOWED" in str(error):
        return f"{place} refuses the vhost {parameters.virtual_host!r}; check FEDQ_AMQP_URL and the user's rights"
    if "ACCESS_REFUSED" in str(error):
        return f"{place} refuses what this user tries: {error}; check the rights of the user in FEDQ_AMQP_URL"
    if isinstance(error, pika.exceptions.AMQPConnectionError | OSError):
        causes = [getattr(cause, "exception", cause) for cause in (*reversed(error.args), error)]
        detail = next((str(cause) for cause in causes if str(cause)), type(error).__name__)
        return f"{place} cannot be reached ({detail}); is it running, and is FEDQ_AMQP_URL right, amqp:// or amqps://?"
    return f"{place}: {error or type(error).__name__}"


@contextmanager
def _ignored(*errors: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        log.debug("ignored", error=repr(error))
