"""What a stranger who has a trainer's password publishes to queues of tasks: dead letters, and the work goes on."""

import pickle
import struct
import zlib
from typing import Any

import msgpack
import pika
import pika.data
import pytest
from kombu import Connection, Exchange, Queue

from services.trainer.parent.dispatch import tasks
from services.trainer.train_task import Task
from shared import names
from shared.events import BlobRef, RoundStart
from shared.job.job_spec import JobSpec
from tests.by_hand import Federation, digits, until

AFTER = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
STOP = {"task": "stop-training.any-aaaaaa", "args": ["said in the trainer's name"], "kwargs": {}, "options": {}}


def task(federation: Federation, base: BlobRef, client: str, spec: JobSpec, group: str = "cpu") -> Task:
    """A right one, for this client."""
    start = RoundStart(
        job=federation.job, group=group, round=1, attempt=1, base=base, cohort=(client,), spec=spec, deadline=0
    )
    return next(tasks(start, 0))


def after(task: Task, **following: Any) -> bytes:
    return bytes(msgpack.packb(((task.argument,), {}, {**AFTER, **following})))


def test_celery_obeys_nothing_but_its_task(federation: Federation) -> None:
    """A51, A52, A53, A54, A55: chains, callbacks, pickles, dates, limits and other tasks.

    Each is a dead letter at once; the trainer, its slot and its next task are as if nobody had sent them.
    """
    trainer = federation.start("--pool", "cpu")
    base = federation.initial(digits())
    right = task(federation, base, "client-7", digits())
    forged: list[dict[str, Any]] = [
        {"headers": {"eta": "2099-01-01T00:00:00+00:00"}},
        {"headers": {"expires": "2099-01-01T00:00:00+00:00"}},
        {"headers": {"timelimit": [0.1, 0.1]}},
        {"headers": {"retries": 4}},
        {"headers": {"group": "g"}},
        {"headers": {"origin": "gen1@elsewhere"}},
        {"headers": {"task": "os.system"}},
        {"headers": {"x-delivery-count": "many"}},
        {"reply_to": "aggregator.commands"},
        {"body": after(right, chain=[STOP])},
        {"body": after(right, callbacks=[STOP])},
        {"body": after(right, errbacks=[STOP])},
        {"body": after(right, chord=STOP)},
        {"body": pickle.dumps(((right.argument,), {}, AFTER)), "content_type": "application/x-python-serialize"},
    ]
    for changes in forged:
        federation.publish_task(right, **changes)
    until(lambda: federation.bus.depth(names.DEAD_LETTERS) == (len(forged), 0), "each is a dead letter")
    federation.ask(1, "client-1", base=base, spec=digits())

    assert (federation.update().client, trainer.poll()) == ("client-1", None)
    assert federation.updates.empty()
    assert "TimeLimitExceeded" not in federation.log()
    assert federation.log().count("no task, and a dead letter now") == len(forged)


class Raw(bytes):
    """A header's value as it lies on the wire."""


def nested(depth: int) -> Raw:
    """An array in an array in an array."""
    value = b"V"
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return Raw(value)


FAR_AWAY = Raw(b"T" + struct.pack(">Q", 10**12))  #: a date that Python does not have
FARTHER = Raw(b"T" + struct.pack(">Q", 2**63))


def publish(federation: Federation, exchange: str, key: str | bytes, body: bytes, **properties: Any) -> None:
    """A message in bytes that no client of ours would send."""
    with pika.BlockingConnection(pika.URLParameters(federation.servers.environment("trainer")["FEDQ_AMQP_URL"])) as one:
        one.channel().basic_publish(exchange, key, body, pika.BasicProperties(**properties))  # type: ignore[arg-type]


@pytest.fixture
def raw_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = pika.data.encode_value

    def encoded(pieces: list[bytes], value: Any) -> int:
        if not isinstance(value, Raw):
            return int(encode(pieces, value))
        pieces.append(value)
        return len(value)

    monkeypatch.setattr(pika.data, "encode_value", encoded)


@pytest.mark.usefixtures("raw_headers")
def test_what_cannot_be_read_of_a_task_ends_no_trainer(federation: Federation) -> None:
    """Headers of no value, texts of no letters, a bomb, a codec that takes hours: each is a dead letter at once."""
    trainer = federation.start("--pool", "cpu")
    base = federation.initial(digits())
    queue = names.tasks_queue("cpu")
    right = task(federation, base, "client-7", digits())
    bomb = zlib.compressobj(9)
    forged: list[dict[str, Any]] = [
        {"headers": {"a": FAR_AWAY}},
        {"headers": {"a": FARTHER}},
        {"headers": {"a": nested(20_000)}},
        {"headers": {"compression": "none that there is"}},
        {"headers": {**right.headers, "compression": "application/x-gzip"}, "body": zlib.compress(right.body)},
        {
            "headers": {"compression": "application/x-gzip"},
            "body": b"".join(bomb.compress(bytes(1 << 24)) for _ in range(8)) + bomb.flush(),
        },
        {"headers": right.headers, "content_encoding": "punycode", "body": b"a-" + b"9" * 900_000},
        {"message_id": b"\xff\xfe"},
        {"type": b"\xff\xfe"},
        {"exchange": "", "key": b"\xff\xfe", "headers": {"CC": [queue]}},
    ]
    for changes in forged:
        message = {"exchange": names.TASKS, "key": queue, "body": b"", **changes}
        publish(federation, **message, delivery_mode=2)
    until(lambda: federation.bus.depth(names.DEAD_LETTERS) == (len(forged), 0), "each is a dead letter")
    federation.ask(1, "client-1", base=base, spec=digits())

    assert (federation.update().client, trainer.poll()) == ("client-1", None)
    assert federation.updates.empty()
    assert "Trying to re-establish" not in federation.log()
    assert federation.log().count("no task, and a dead letter now") == len(forged)
    assert len(federation.bus.peek(names.DEAD_LETTERS, 20)) == len(forged)


@pytest.mark.usefixtures("raw_headers")
def test_headers_that_cannot_be_read_break_no_connection(federation: Federation) -> None:
    """Nobody goes by the headers of an event: it is what its body says."""
    federation.start("--pool", "cpu")
    for value in (FAR_AWAY, FARTHER, nested(20_000)):
        publish(federation, names.EVENTS, "round-start.cpu", b"", headers={"a": value}, type="round-start")
    until(lambda: federation.bus.depth(names.DEAD_LETTERS) == (3, 0), "each is a dead letter")

    assert "connection lost" not in federation.log()


def test_a_silo_takes_no_task_from_any_queue(federation: Federation) -> None:
    """A02, A19, A51, A53: nobody reads its tasks or gives it one, though a queue has the name."""
    federation.start("--client", "north")
    spec = digits(data={"name": "own_job:Ward"}, pool=None, silos=["north"], select={"name": "all"})
    spy = names.tasks_queue("north")
    with Connection(federation.servers.environment("trainer")["FEDQ_AMQP_URL"]) as connection:
        exchange = Exchange(names.TASKS, "topic", durable=True)
        queue = Queue(spy, exchange, routing_key="#", queue_arguments={"x-queue-type": "quorum"})
        queue(connection.default_channel).declare()
    base = federation.initial(spec, group="north")
    assert federation.bus.depth(spy) == (0, 0)

    right = task(federation, base, "north", spec, group="north")
    federation.publish_task(right, queue=spy)
    federation.publish_task(right, queue=spy, headers={"eta": "2099-01-01T00:00:00+00:00"})
    federation.publish_task(right, queue=spy, body=after(right, chain=[STOP]))
    federation.ask(2, "north", base=base, spec=spec, group="north")
    update = federation.update()

    assert (update.round, update.error) == (2, None)
    assert federation.updates.empty()
    assert federation.bus.depth(spy) == (3, 0)
