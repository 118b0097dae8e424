"""RabbitMQ, S3 and the roster in memory, as much of them as the aggregator asks for, and with their manners.

A queue hands a message to one consumer, keeps it until it is settled, and gives it to another where its consumer dies.
Nothing fails here by itself: `tests.simulation.world` puts the faults in between.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import names
from shared.amqp.topology import Queue
from shared.errors import Refused, Unavailable
from shared.events import AnyEvent, BlobRef, decode, encode
from shared.redis.roster import Member
from shared.s3 import json_records
from shared.s3.store import Bytes, NotFound

LIMIT = 5  #: redeliveries, then a message is dead; as `deploy/definitions.json` has it


@dataclass
class Message:
    """On a queue, or in a consumer's hands."""

    type: str
    body: bytes
    returned: int = 0

    def decode(self) -> AnyEvent:
        return decode(self.type, self.body)


@dataclass
class Subscription:
    """A consumer, and what was handed to it; `lost` once it was cancelled or its connection broke."""

    queue: Queue
    on_ready: Callable[[], None]
    prefetch: int
    priority: int = 0
    held: list[Message] = field(default_factory=list)
    taken: list[Message] = field(default_factory=list)  # handed on, and not settled
    lost: bool = False


@dataclass
class Delivery:
    """What `shared.amqp.connection.Delivery` is to a handler."""

    broker: "Broker"
    subscription: Subscription
    message: Message

    @property
    def queue(self) -> str:
        return self.subscription.queue.name

    @property
    def type(self) -> str:
        return self.message.type

    @property
    def body(self) -> bytes:
        return self.message.body

    @property
    def attempt(self) -> int:
        return self.message.returned + 1

    def decode(self) -> AnyEvent:
        return self.message.decode()

    def ack(self) -> None:
        self._settle()

    def requeue(self) -> None:
        if self._settle():
            self.broker.give_back(self.queue, [self.message])

    def _settle(self) -> bool:
        # By identity: equal messages are two. One that went back to the queue is no longer ours to settle.
        taken = self.subscription.taken
        for place, message in enumerate(taken):
            if message is self.message:
                del taken[place]
                return True
        return False


class Broker:
    """The exchange `fedq.events` and its queues."""

    def __init__(self, random: Random) -> None:
        self.queues: dict[str, list[Message]] = {}
        self.subscriptions: list[Subscription] = []
        self.published: list[AnyEvent] = []
        self.dead: list[tuple[Message, str]] = []
        self.copies: Callable[[AnyEvent], int] = lambda _: 1  # how often a message arrives
        self.shuffled = False  # whether one may overtake others
        self._bindings: dict[str, tuple[str, ...]] = {}
        self._random = random

    def declare(self, *queues: Queue) -> None:
        for queue in queues:
            self.queues.setdefault(queue.name, [])
            self._bindings[queue.name] = queue.bindings

    def publish(self, event: AnyEvent, *, required: bool = True) -> None:
        message = Message(event.type, encode(event))
        heard = [name for name, keys in self._bindings.items() if any(matches(key, event.routing_key) for key in keys)]
        if required and not heard:
            raise Unavailable(f"RabbitMQ has no queue for {event.routing_key}")
        self.published.append(event)
        for name in heard:
            for _ in range(self.copies(event)):
                self.put(name, Message(message.type, message.body))

    def put(self, name: str, message: Message) -> None:
        waiting = self.queues[name]
        place = self._random.randint(0, len(waiting)) if self.shuffled else len(waiting)
        waiting.insert(place, message)

    def give_back(self, name: str, messages: list[Message]) -> None:
        """To the head of their queue, unless they came back too often."""
        for message in reversed(messages):
            message.returned += 1
            if message.returned > LIMIT:
                self.dead.append((message, "came back too often"))
            elif name in self.queues:
                self.queues[name].insert(0, message)

    def delete(self, name: str) -> None:
        self.queues.pop(name, None)
        self._bindings.pop(name, None)
        for subscription in self.subscriptions:
            if subscription.queue.name == name:
                subscription.held.clear()
                subscription.taken.clear()

    def depth(self, name: str) -> tuple[int, int] | None:
        waiting = self.queues.get(name)
        if waiting is None:
            return None
        return len(waiting), sum(subscription.queue.name == name for subscription in self.subscriptions)

    def consume(
        self,
        wanted: Queue,
        _: Callable[[Any], None],
        *,
        on_ready: Callable[[], None],
        prefetch: int = 16,
        priority: int = 0,
    ) -> Subscription:
        self.declare(wanted)
        subscription = Subscription(wanted, on_ready, prefetch, priority)
        self.subscriptions.append(subscription)
        on_ready()
        return subscription

    def cancel(self, subscription: Subscription) -> None:
        self.lose(subscription)
        subscription.lost = True
        if subscription in self.subscriptions:
            self.subscriptions.remove(subscription)

    def lose(self, subscription: Subscription) -> None:
        """Its connection broke: what it holds goes back to the queue."""
        self.give_back(subscription.queue.name, [*subscription.taken, *subscription.held])
        subscription.held.clear()
        subscription.taken.clear()

    def pump(self) -> None:
        """Hands waiting messages to whoever consumes their queue."""
        for name, waiting in self.queues.items():
            while waiting:
                free = [
                    subscription
                    for subscription in self.subscriptions
                    if subscription.queue.name == name
                    and len(subscription.held) + len(subscription.taken) < subscription.prefetch
                ]
                if not free:
                    break
                highest = max(subscription.priority for subscription in free)
                served = [subscription for subscription in free if subscription.priority == highest]
                self._random.choice(served).held.append(waiting.pop(0))

    def take(self, subscription: Subscription) -> Delivery:
        message = subscription.held.pop(0)
        subscription.taken.append(message)
        return Delivery(self, subscription, message)


class FakeBus:
    """What `shared.amqp.bus.Bus` is to the aggregator."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.publish = broker.publish
        self.declare = broker.declare
        self.declare_once = broker.declare
        self.delete = broker.delete
        self.depth = broker.depth
        self.consume = broker.consume

    def cancel(self, subscription: Subscription, *, delete: bool = False) -> None:
        self._broker.cancel(subscription)
        if delete:
            self._broker.delete(subscription.queue.name)

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        self._broker.declare(Queue(names.DEAD_LETTERS))
        self._broker.dead.append((delivery.message, reason))
        delivery.ack()


def matches(pattern: str, key: str) -> bool:
    """Whether a topic exchange sends `key` to what is bound by `pattern`."""
    return _matches(pattern.split("."), key.split("."))


def _matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return _matches(pattern[1:], words) or bool(words and _matches(pattern, words[1:]))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])


class FakeBlobs:
    """What `shared.s3.store.Blobs` is to the aggregator and to trainers."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[bytes, dict[str, str]]] = {}

    def put(self, key: str, body: Bytes, *, digest: str | None = None, metadata: Mapping[str, Any] = {}) -> BlobRef:
        content = bytes(body)
        found = hashlib.sha256(content).hexdigest()
        assert digest in (None, found), f"{key} is put under another digest"
        about = {name.lower(): str(value) for name, value in metadata.items()}
        self.held[key] = content, {**about, "digest": found}
        return BlobRef(key=key, size=len(content), digest=found)

    def put_json(self, key: str, record: Mapping[str, Any]) -> BlobRef:
        return self.put(key, json_records.dumps(record).encode())

    def get_into(self, ref: BlobRef, buffer: npt.NDArray[np.uint8]) -> None:
        content = self._content(ref.key)
        if len(content) != ref.size or hashlib.sha256(content).hexdigest() != ref.digest:
            raise Refused(f"{ref.key}: is not what was said")
        buffer[:] = np.frombuffer(content, np.uint8)

    def get(self, ref: BlobRef) -> npt.NDArray[np.uint8]:
        buffer = np.empty(ref.size, np.uint8)
        self.get_into(ref, buffer)
        return buffer

    def get_json(self, key: str) -> dict[str, Any]:
        return json_records.loads(key, self._content(key))

    def exists(self, key: str) -> bool:
        return key in self.held

    def stat(self, key: str) -> tuple[int, dict[str, str]]:
        return len(self._content(key)), dict(self.held[key][1])

    def folders(self, prefix: str) -> list[str]:
        found = (key[len(prefix) :].partition("/") for key in self.held if key.startswith(prefix))
        return sorted({name for name, slash, _ in found if slash})

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.held if key.startswith(prefix))

    def delete(self, prefix: str, *, holding: str = "") -> int:
        keys = [key for key in self.list(prefix) if holding in key]
        for key in keys:
            del self.held[key]
        return len(keys)

    def remove(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.held.pop(key, None)

    def get_span(self, ref: BlobRef, start: int, buffer: npt.NDArray[np.uint8]) -> None:
        buffer[:] = np.frombuffer(self._content(ref.key), np.uint8)[start : start + buffer.nbytes]

    def _content(self, key: str) -> bytes:
        if key not in self.held:
            raise NotFound(f"there is no {key}")
        return self.held[key][0]


class FakeRoster:
    """What `shared.redis.roster.Roster` is to the aggregator."""

    def __init__(self, alive: Callable[[], list[Member]]) -> None:
        self.alive = alive


class Inline(Executor):
    """Does its work at once; what kills a process kills whoever asked."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        try:
            done.set_result(call(*arguments, **options))
        except Exception as error:
            done.set_exception(error)
        return done
