"""A task's message: the one that fedq publishes passes, and any that has more or else is none."""

import struct
from typing import Any

import amqp
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.message import Message

from services.trainer.parent.pool_consumer import Content
from services.trainer.train_task import CONTENT_ENCODING, CONTENT_TYPE, Task, fault
from shared.events import MAX_BODY

TASK = Task("train", "2813d126-3e1b-50ee-9f63-a801a635de88", "client-2, round 2", {"job": "t-abc234", "round": 2})
OURS = ("lang", "task", "id", "argsrepr")
COUNTS = ("x-delivery-count", "x-acquired-count")
AFTER = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
of_celery = st.sampled_from(
    ["eta", "expires", "timelimit", "retries", "group", "group_index", "root_id", "parent_id", "origin", "shadow",
     "ignore_result", "kwargsrepr", "stamps", "stamped_headers", "replaced_task_nesting", "compression"]
)  # fmt: skip


def message(**changes: Any) -> Message:
    """Our own, as kombu has it, with some of its parts changed."""
    properties = {"correlation_id": TASK.identity, "delivery_mode": 2, "priority": 0}
    parts = {
        "body": TASK.body,
        "headers": TASK.headers,
        "properties": properties,
        "content_type": CONTENT_TYPE,
        "content_encoding": CONTENT_ENCODING,
    }
    return Message(**{**parts, **changes})


def packed(arguments: Any = (TASK.argument,), named: Any = {}, after: Any = AFTER) -> bytes:  # noqa: B006
    return bytes(msgpack.packb((arguments, named, after)))


def test_our_own_passes() -> None:
    """Delivered for the first time, and again."""
    assert fault(message()) is None
    assert fault(message(headers={**TASK.headers, "x-delivery-count": 3, "x-acquired-count": 4})) is None


@settings(max_examples=300, deadline=None)
@given(name=of_celery | st.text(max_size=12).filter(lambda name: name not in (*OURS, *COUNTS)), value=anything)
def test_any_header_more_makes_it_none(name: str, value: Any) -> None:
    """Whatever it is called and whatever it says, null included."""
    assert fault(message(headers={**TASK.headers, name: value})) is not None


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([*OURS, *COUNTS]), value=anything)
def test_any_other_value_makes_it_none(name: str, value: Any) -> None:
    """But for the number of its deliveries, and what is shown of it to a person."""
    changed = {**TASK.headers, name: value}
    if name == "argsrepr" or (name in COUNTS and type(value) is int) or changed == TASK.headers:
        return
    assert fault(message(headers=changed)) is not None


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(["reply_to", "expiration", "type", "user_id"]) | st.text(max_size=9), value=anything)
def test_any_property_more_makes_it_none(name: str, value: Any) -> None:
    """Answers to a queue of somebody's choice, an expiry, or what a later broker may think of."""
    if name in ("content_type", "content_encoding", "application_headers"):
        return
    properties = {"correlation_id": TASK.identity, "delivery_mode": 2, "priority": 0}
    if properties.get(name, ...) == value:
        return
    assert fault(message(properties={**properties, name: value})) is not None


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([*AFTER, "more"]), value=anything.filter(lambda value: value is not None))
def test_nothing_follows_a_task(name: str, value: Any) -> None:
    """No chain, chord, callback or errback, nor what a later Celery may think of."""
    assert fault(message(body=packed(after={**AFTER, name: value}))) is not None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100) | anything.map(msgpack.packb))
def test_any_body_is_looked_at_and_never_raises(body: bytes) -> None:
    assert fault(message(body=body)) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"content_type": "application/x-python-serialize"},
        {"content_type": "application/json"},
        {"content_type": None},
        {"content_encoding": "utf-8"},
        {"headers": None},
        {"headers": {}},
        {"headers": {**TASK.headers, "task": "os.system"}},
        {"headers": {**TASK.headers, "task": "celery.chain"}},
        {"properties": {}},
        {"body": packed(arguments=(TASK.argument, 1))},
        {"body": packed(arguments=())},
        {"body": packed(named={"order": TASK.argument})},
        {"body": TASK.body + b"\xc0"},
        {"body": b"\x91" * 3000},
        {"body": bytes(MAX_BODY + 1)},
    ],
)
def test_other_messages_are_none(changes: dict[str, Any]) -> None:
    """Other encodings, other tasks, other arguments, and what is too long."""
    found = fault(message(**changes))
    assert found is not None
    assert found.isprintable()


@pytest.mark.parametrize("consumer", ["1", "None4", "ctag1.0123456789"])
@pytest.mark.parametrize("delivery", [1, 128, 255, 0x8081_8283_8485_8687])
def test_only_the_routing_key_of_a_delivery_is_made_readable(consumer: str, delivery: int) -> None:
    """Its number has bytes that are no letters from the 128th on; acknowledged by another, it ends the trainer."""

    def frame(key: bytes) -> bytes:
        head = struct.pack(">HHB", *amqp.spec.Basic.Deliver, len(consumer)) + consumer.encode()
        return head + struct.pack(">QB", delivery, 0) + b"\x05tasks" + bytes([len(key)]) + key

    def read(key: bytes) -> bytes:
        return bytes(Content(amqp.spec.Basic.Deliver, memoryview(frame(key))).frame_args)

    assert read(b"trainer.tasks.cpu") == frame(b"trainer.tasks.cpu")
    assert read(b"a\xff\xfeb") == frame(b"a??b")
