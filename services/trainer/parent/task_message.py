"""The one shape of a task's message. Celery would obey much more, and a trainer gives it nothing else.

Celery follows what a message says of itself: a date before which it holds a task, a time after which it kills the
slot, tasks to publish when this one is done. Whoever may publish to a queue of tasks could have that done in a
trainer's name. So a message is looked at before Celery sees it, and one that has more than fedq's is a dead letter.
"""

from typing import Any, NamedTuple

import msgpack

from shared.amqp.connection import COUNTS
from shared.events import MAX_BODY
from shared.text import plain

KINDS = ("train", "evaluate")
CONTENT_TYPE, CONTENT_ENCODING = "application/x-msgpack", "binary"

_BROKERS = (*COUNTS, "x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason")
_FOLLOWING = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}  # nothing follows


class Task(NamedTuple):
    """Work for a slot."""

    kind: str  # one of `KINDS`
    identity: str  # the same for the same work, whoever publishes it
    description: str  # what a person sees in the RabbitMQ console
    argument: dict[str, Any]  # an `Order` or an `EvaluateModel`

    @property
    def headers(self) -> dict[str, Any]:
        return {"lang": "py", "task": self.kind, "id": self.identity, "argsrepr": self.description}

    @property
    def body(self) -> bytes:
        """Celery's, of protocol 2: positional arguments, named ones, and what follows."""
        packed: bytes = msgpack.packb(((self.argument,), {}, _FOLLOWING))
        return packed


def fault(message: Any) -> str | None:
    """The first difference of a message (kombu's) from a task of ours, in a sentence; None where there is none."""
    try:
        if len(message.body) > MAX_BODY:
            return f"it has {len(message.body)} bytes"
        if "unreadable" in message.headers:
            return f"its headers cannot be read: {plain(str(message.headers['unreadable']))[:100]}"
        own = {name: value for name, value in message.headers.items() if name not in _BROKERS}
        (argument,), _, _ = msgpack.unpackb(message.body, strict_map_key=True)
        task = Task(own["task"], own["id"], own["argsrepr"], argument)
        if task.kind not in KINDS or any(type(message.headers.get(name, 0)) is not int for name in COUNTS):
            return "its task or the count of its deliveries is none"
        properties = {name: value for name, value in message.properties.items() if name not in _TOLD}
        parts = {
            "headers": (own, task.headers),
            "properties": (properties, {"correlation_id": task.identity, "delivery_mode": 2, "priority": 0}),
            "encoding": ((message.content_type, message.content_encoding), (CONTENT_TYPE, CONTENT_ENCODING)),
            "body": (message.body, task.body),  # msgpack's shortest form: the same value, the same bytes
        }
    except Exception as error:  # a stranger's message: whatever it brings out of a parser is its fault
        return f"it cannot be read: {type(error).__name__}: {plain(str(error))[:100]}"
    return next((f"its {name} has more or else" for name, (found, ours) in parts.items() if found != ours), None)


#: Kept by kombu beside what was said of the same.
_TOLD = ("content_type", "content_encoding", "application_headers")
