"""The bus on a real broker: what a person sees, each error's fate, and what happens when connections break."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pika.exceptions
import pytest
from pydantic import SecretStr

from deploy.native.stack import Role
from shared import names
from shared.amqp import topology
from shared.amqp.bus import Bus, settle
from shared.amqp.connection import Delivery, Link
from shared.errors import BadMessage, Fenced, QueueFull, Stale, Unavailable
from shared.events import Heartbeat, JobStatus, ModelUpdate, StartTraining, StopTraining, TrainerJoined, encode
from shared.job import job_spec
from shared.job.job_spec import JobSpec
from shared.process import settings
from tests.conftest import Servers

SECONDS = 60.0
JOB = "t-abc234"

Inbox = queue.SimpleQueue


def spec(**changes: Any) -> JobSpec:
    return job_spec.parse(
        {
            "name": "t",
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": 4},
            "rounds": {"count": 2},
            "pool": "cpu",
        }
        | changes
    )


def command(job: str = JOB) -> StartTraining:
    return StartTraining(job=job, spec=spec())


def heartbeat() -> Heartbeat:
    return Heartbeat(
        trainer="one", pool="cpu", client=None, host="h", pid=1, device="cpu", slots=2, busy=0, sent_at=0.0
    )


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
    return found


@contextmanager
def raw(servers: Servers, role: Role = "operator") -> Iterator[Any]:
    """A channel of pika's own, to see what the broker has."""
    connection = pika.BlockingConnection(pika.URLParameters(servers.environment(role)["FEDQ_AMQP_URL"]))
    try:
        yield connection.channel()
    finally:
        connection.close()


def get(channel: Any, name: str) -> tuple[Any, bytes]:
    """The properties and the body of the next message in a queue."""
    _, properties, body = until(
        lambda: found if (found := channel.basic_get(name, auto_ack=True))[0] else None, f"a message in {name}"
    )
    return properties, body


def connections(servers: Servers) -> list[str]:
    """The broker's names of all connections that this test has open: the port is in them."""
    found = servers.stack.rabbitmq.call("GET", "connections/username/operator")
    return sorted(connection["name"] for connection in found if connection["vhost"] == servers.vhost)


def close_connections(servers: Servers) -> list[str]:
    """Has the broker close them, as an administrator would; gives their names."""
    closed = connections(servers)
    # By user and not by name: those the management API knows only seconds after they were opened.
    servers.stack.rabbitmq.call("DELETE", "connections/username/operator")
    return closed


def set_policy(servers: Servers, pattern: str, **definition: Any) -> None:
    body = {"pattern": pattern, "definition": definition, "apply-to": "queues", "priority": 10}
    servers.stack.rabbitmq.call("PUT", f"policies/{servers.vhost}/of-a-test", body)


def impatient(servers: Servers, url: str | None = None, role: Role = "operator") -> Bus:
    """A bus that gives up after a second."""
    own = servers.settings(settings.Broker, role)
    if url is not None:
        own = own.model_copy(update={"amqp_url": SecretStr(url)})
    bus = Bus(own, "impatient", patience=1.0)
    servers.buses.append(bus)
    return bus


def test_peeking_does_not_wait_for_a_broker_that_is_silent(servers: Servers) -> None:
    """It may read for long; whoever is asked to wait for that is told at once that nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bus = impatient(servers, f"amqp://u:p@127.0.0.1:{silent.getsockname()[1]}/fedq")
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"(does|did) not answer"):
            bus.peek(names.DEAD_LETTERS, 10)
    assert time.monotonic() - began < 15


# --- publishing -------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [command(), StopTraining(job=JOB, reason="enough")], ids=lambda event: event.type)
def test_a_message_shows_a_person_what_it_is(servers: Servers, event: Any) -> None:
    """Type, job, sender, time and id stand in the AMQP properties; the body alone is msgpack, and it is on disk."""
    bus = servers.bus("sender")
    wanted = topology.commands() if event.type == "start-training" else topology.updates(JOB)
    bus.declare(wanted)
    before = int(time.time())
    bus.publish(event)
    bus.publish(event)
    with raw(servers) as channel:
        properties, body = get(channel, wanted.name)
        other, _ = get(channel, wanted.name)

    assert (properties.type, properties.correlation_id, properties.app_id) == (event.type, JOB, "sender")
    assert (properties.user_id, properties.content_type) == ("operator", "application/msgpack")
    assert before <= properties.timestamp <= time.time()
    assert properties.delivery_mode == 2
    assert len(properties.message_id) == 32
    assert properties.message_id != other.message_id
    assert body == encode(event)


def test_a_heartbeat_is_not_kept_on_disk(servers: Servers) -> None:
    """It belongs to no job, and the next one follows."""
    bus = servers.bus("sender")
    bus.declare(topology.heartbeats())
    bus.publish(heartbeat())
    with raw(servers) as channel:
        properties, body = get(channel, names.HEARTBEATS)

    assert (properties.type, properties.correlation_id, properties.delivery_mode) == ("heartbeat", None, 1)
    assert body == encode(heartbeat())


def test_what_is_published_is_consumed(servers: Servers) -> None:
    """Events of several types come out of the job's queue as they went in, in order."""
    bus = servers.bus()
    inbox: Inbox[Delivery] = Inbox()
    bus.consume(topology.updates(JOB), inbox.put)
    sent = [
        StopTraining(job=JOB, reason="grüße"),
        TrainerJoined(trainer="one", group="cpu"),
        ModelUpdate(
            job=JOB, round=1, attempt=1, client="c", trainer="one", base="0" * 64, update=None, examples=3,
            metrics={"loss": 0.5}, error="no",
        ),
    ]  # fmt: skip
    for event in sent:
        bus.publish(event)
    received = [inbox.get(timeout=SECONDS) for _ in sent]

    assert [delivery.decode() for delivery in received] == sent
    assert [delivery.type for delivery in received] == [event.type for event in sent]
    assert {(delivery.queue, delivery.attempt) for delivery in received} == {(names.updates_queue(JOB), 1)}


def test_an_event_that_nobody_takes_is_an_error_where_it_is_required(servers: Servers) -> None:
    """The sentence names the routing key; where it is not required, and for heartbeats, it is nothing."""
    bus = servers.bus()
    bus.declare(topology.updates(JOB))
    with pytest.raises(Unavailable, match=r"RabbitMQ has no queue for stop-training\.other-abc234"):
        bus.publish(StopTraining(job="other-abc234", reason=""))
    bus.publish(JobStatus(job=JOB, status="running", detail=""), required=False)
    bus.publish(heartbeat())

    bus.publish(StopTraining(job=JOB, reason=""))
    until(lambda: bus.depth(names.updates_queue(JOB)) == (1, 0), "the event that has a queue")


def test_a_queue_that_is_gone_is_declared_again_once_an_event_has_found_none(servers: Servers) -> None:
    """`declare_once` remembers only as long as that is true."""
    bus = servers.bus()
    bus.declare_once(topology.commands())
    bus.delete(names.COMMANDS)
    bus.declare_once(topology.commands())
    with pytest.raises(Unavailable, match="no queue for start-training"):
        bus.publish(command())
    bus.declare_once(topology.commands())
    bus.publish(command())

    until(lambda: bus.depth(names.COMMANDS) == (1, 0), "the command")


def test_a_full_queue_refuses(servers: Servers) -> None:
    """The publisher is told, by its own class of `Unavailable`, and may go on when the queue has been emptied."""
    bus = servers.bus()
    bus.declare(topology.commands())
    set_policy(servers, r"^aggregator\.commands$", **{"max-length": 2, "overflow": "reject-publish"})

    def refused() -> QueueFull | None:
        try:
            bus.publish(command())
        except QueueFull as error:
            return error
        return None

    error = until(refused, "a refusal")
    assert "RabbitMQ refuses start-training: its queue is full" in str(error)
    assert isinstance(error, Unavailable)

    with raw(servers) as channel:
        channel.queue_purge(names.COMMANDS)
    until(lambda: refused() is None, "room")


def test_an_event_that_is_too_long_is_not_sent(servers: Servers) -> None:
    """16 KiB is the end of a job, for the sender already, so that its rounds fit 64; just below it is fine."""
    bus = servers.bus()
    bus.declare(topology.commands())

    def of(length: int) -> StartTraining:
        return StartTraining(job=JOB, spec=spec(model={"name": "m:f", "args": {"text": "x" * length}}))

    room = 16 * 1024 - len(encode(of(10_000))) + 10_000
    bus.publish(of(room))
    with pytest.raises(BadMessage, match=r"start-training has 16385 bytes; it has at most 16384"):
        bus.publish(of(room + 1))

    until(lambda: bus.depth(names.COMMANDS) == (1, 0), "the one event that fits")


# --- fates ------------------------------------------------------------------------------------


def publish_raw(servers: Servers, kind: str, body: bytes, routing_key: str = "start-training") -> None:
    with raw(servers) as channel:
        channel.confirm_delivery()
        properties = pika.BasicProperties(type=kind, message_id="m-1")
        channel.basic_publish(names.EVENTS, routing_key, body, properties, mandatory=True)


def test_a_body_that_is_no_event_is_dead_lettered(servers: Servers) -> None:
    """With the reason, the queue and the body as it came; the next message is handled."""
    bus = servers.bus("worker")
    handled: Inbox[Any] = Inbox()
    bus.declare(topology.dead_letters())
    bus.serve(topology.commands(), handled.put)
    publish_raw(servers, "no-such-event", b"\x80")
    bus.publish(command())

    assert handled.get(timeout=SECONDS) == command()
    with raw(servers) as channel:
        properties, body = get(channel, names.DEAD_LETTERS)
    assert "unknown event type 'no-such-event'" in properties.headers["x-fedq-reason"]
    assert properties.headers["x-fedq-queue"] == names.COMMANDS
    assert (properties.type, properties.message_id, properties.app_id) == ("no-such-event", "m-1", "worker")
    assert (properties.delivery_mode, body) == (2, b"\x80")
    until(lambda: bus.depth(names.COMMANDS) == (0, 1), "an empty queue")


def test_what_a_handler_calls_bad_is_dead_lettered(servers: Servers) -> None:
    """An event that is right and in the wrong place has the same fate."""
    bus = servers.bus()

    def handler(event: Any) -> None:
        raise BadMessage(f"{event.type} is not for us")

    bus.declare(topology.dead_letters())
    bus.serve(topology.commands(), handler)
    bus.publish(command())
    with raw(servers) as channel:
        properties, _ = get(channel, names.DEAD_LETTERS)

    assert properties.headers["x-fedq-reason"] == "start-training is not for us"


def test_a_bad_message_finds_its_place_or_makes_it(servers: Servers) -> None:
    """Where `dead-letters` is missing, or was deleted since, no consumer falls over it and nothing is lost."""
    bus, other = servers.bus("worker"), servers.bus("other")
    handled: Inbox[Any] = Inbox()
    bus.serve(topology.commands(), handled.put)
    for job in ("a-abc234", "b-abc234"):
        publish_raw(servers, "no-such-event", job.encode())
        bus.publish(command(job))

        assert handled.get(timeout=SECONDS) == command(job)
        with raw(servers) as channel:
            assert get(channel, names.DEAD_LETTERS)[1] == job.encode()
        other.delete(names.DEAD_LETTERS)


def test_who_was_fenced_off_hears_it_and_the_message_goes_on(servers: Servers) -> None:
    """The job's new owner has the message: nothing was acknowledged in its name."""
    bus = servers.bus()
    deliveries: Inbox[Delivery] = Inbox()
    bus.consume(topology.commands(), deliveries.put)
    bus.publish(command())

    def handler(event: Any) -> None:
        raise Fenced("job belongs to another aggregator now")

    with pytest.raises(Fenced):
        settle(bus, deliveries.get(timeout=SECONDS), handler, threading.Event())
    assert deliveries.get(timeout=SECONDS).decode() == command()


def test_what_is_stale_is_acknowledged(servers: Servers) -> None:
    """One at a time: the second comes when the first is settled, and the first never again."""
    bus = servers.bus()
    handled: Inbox[str] = Inbox()

    def handler(event: Any) -> None:
        handled.put(event.job)
        raise Stale("its round is over")

    bus.declare(topology.dead_letters())
    subscription = bus.serve(topology.commands(), handler, prefetch=1)
    for job in ("a-abc234", "b-abc234", "c-abc234"):
        bus.publish(command(job))
    assert [handled.get(timeout=SECONDS) for _ in range(3)] == ["a-abc234", "b-abc234", "c-abc234"]

    bus.close()
    looking = servers.bus()
    assert not subscription.connected
    assert looking.depth(names.COMMANDS) == (0, 0)
    assert looking.depth(names.DEAD_LETTERS) == (0, 0)
    assert handled.empty()


def test_a_dependency_that_is_away_is_tried_again_in_place(servers: Servers) -> None:
    """The message is held meanwhile, so that no delivery is counted, and acknowledged in the end."""
    bus = servers.bus()
    deliveries: Inbox[Delivery] = Inbox()
    bus.consume(topology.commands(), deliveries.put)
    bus.publish(command())
    delivery = deliveries.get(timeout=SECONDS)
    calls = []

    def handler(event: Any) -> None:
        calls.append(event)
        if len(calls) < 3:
            raise Unavailable("the store is away")

    settle(bus, delivery, handler, threading.Event())

    assert calls == [command()] * 3
    assert deliveries.empty()
    bus.close()
    assert servers.bus().depth(names.COMMANDS) == (0, 0)


def test_who_stops_gives_a_held_message_back(servers: Servers) -> None:
    """The next one has it at once instead of after the hold; nothing is lost."""
    bus = servers.bus()
    deliveries: Inbox[Delivery] = Inbox()
    bus.consume(topology.commands(), deliveries.put)
    bus.publish(command())
    stopping = threading.Event()

    def handler(event: Any) -> None:
        stopping.set()
        raise Unavailable("the store is away")

    settle(bus, deliveries.get(timeout=SECONDS), handler, stopping)
    again = deliveries.get(timeout=SECONDS)

    assert (again.decode(), again.attempt) == (command(), 2)


def test_what_nobody_foresaw_is_tried_up_to_the_limit(servers: Servers) -> None:
    """A handler with a bug sees its message six times; then the broker dead-letters it and says why."""
    bus = servers.bus()
    deliveries: Inbox[Delivery] = Inbox()
    bus.declare(topology.dead_letters())
    bus.consume(topology.commands(), deliveries.put)
    bus.publish(command())

    def handler(event: Any) -> None:
        raise ZeroDivisionError

    attempts = []
    for _ in range(6):
        delivery = deliveries.get(timeout=SECONDS)
        attempts.append(delivery.attempt)
        settle(bus, delivery, handler, threading.Event())
    with raw(servers) as channel:
        properties, body = get(channel, names.DEAD_LETTERS)

    assert attempts == [1, 2, 3, 4, 5, 6]
    (death,) = properties.headers["x-death"]
    assert (death["reason"], death["queue"]) == ("delivery_limit", names.COMMANDS)
    assert body == encode(command())
    assert deliveries.empty()


def test_a_bug_in_a_handler_does_not_stop_the_queue(servers: Servers) -> None:
    """The messages behind it are handled, the poisoned one ends in dead-letters."""
    bus = servers.bus()
    handled: Inbox[Any] = Inbox()

    def handler(event: Any) -> None:
        if event.job == "bad-abc234":
            raise KeyError("bug")
        handled.put(event.job)

    bus.declare(topology.dead_letters())
    bus.serve(topology.commands(), handler)
    for job in ("bad-abc234", "good-abc234", "fine-abc234"):
        bus.publish(command(job))

    assert {handled.get(timeout=SECONDS) for _ in range(2)} == {"good-abc234", "fine-abc234"}
    with raw(servers) as channel:
        assert get(channel, names.DEAD_LETTERS)[0].correlation_id == "bad-abc234"


def test_closing_lets_a_handler_finish(servers: Servers) -> None:
    """And its message is acknowledged: the next consumer does not see it again."""
    bus = servers.bus()
    begun, go_on = threading.Event(), threading.Event()

    def handler(event: Any) -> None:
        begun.set()
        assert go_on.wait(SECONDS)

    bus.serve(topology.commands(), handler)
    bus.publish(command())
    assert begun.wait(SECONDS)
    closing = threading.Thread(target=bus.close)
    closing.start()
    go_on.set()
    closing.join(SECONDS)

    assert servers.bus().depth(names.COMMANDS) == (0, 0)


# --- connections ------------------------------------------------------------------------------


def test_closing_does_not_wait_for_a_connection_that_broke_meanwhile(servers: Servers) -> None:
    """What was to end it went with that connection; nobody makes another one."""
    link = Link(servers.environment()["FEDQ_AMQP_URL"], "one", "one")
    link.call(lambda channels: channels.depth(names.COMMANDS), SECONDS)
    begun, breaks = threading.Event(), threading.Event()

    def broken() -> None:
        begun.set()
        assert breaks.wait(SECONDS)
        raise pika.exceptions.StreamLostError("as the test wants it")

    link.post(broken)
    assert begun.wait(SECONDS)
    closing = threading.Thread(target=link.close, args=(SECONDS,))
    closing.start()
    closing.join(0.2)  # it has asked, and waits
    breaks.set()
    closing.join(SECONDS / 2)

    assert not closing.is_alive()


def test_closed_connections_lose_nothing(servers: Servers) -> None:
    """An administrator closes every connection, again and again: publishing and consuming go on by themselves."""
    consumer, publisher = servers.bus("consumer"), servers.bus("publisher")
    received: Inbox[str] = Inbox()
    ready: Inbox[None] = Inbox()

    def deliver(delivery: Delivery) -> None:
        received.put(delivery.decode().job)  # type: ignore[union-attr]
        delivery.ack()

    consumer.consume(topology.commands(), deliver, on_ready=lambda: ready.put(None))
    sent = [f"j{number}-abc234" for number in range(300)]
    done = threading.Event()

    def publish() -> None:
        for job in sent:
            publisher.publish(command(job))
        done.set()

    publishing = threading.Thread(target=publish)
    publishing.start()
    seen: set[str] = set()
    closed: set[str] = set()
    for _ in range(3):
        ready.get(timeout=SECONDS)  # consuming has begun, anew
        seen.add(received.get(timeout=SECONDS))
        closed.update(close_connections(servers))
    until(lambda: seen.add(received.get(timeout=SECONDS)) or len(seen) == len(sent), "every event")
    publishing.join(SECONDS)

    assert done.is_set()
    assert seen == set(sent)
    assert len(closed) >= 3
    assert closed.isdisjoint(connections(servers))


def test_a_message_in_hand_when_the_connection_breaks_comes_again(servers: Servers) -> None:
    """Its old acknowledgement is worth nothing, and harms neither the new connection nor the new delivery."""
    bus = servers.bus()
    deliveries: Inbox[Delivery] = Inbox()
    bus.consume(topology.commands(), deliveries.put)
    bus.publish(command())
    first = deliveries.get(timeout=SECONDS)
    close_connections(servers)
    second = deliveries.get(timeout=SECONDS)
    first.ack()
    first.requeue()
    second.ack()
    bus.publish(command("next-abc234"))

    assert second.decode() == first.decode() == command()
    assert deliveries.get(timeout=SECONDS).decode() == command("next-abc234")
    assert deliveries.empty()


def test_a_queue_deleted_under_its_consumer_is_declared_again(servers: Servers) -> None:
    """Whoever tidied up too much stops no service: the consumer is there again, with the bindings."""
    bus, other = servers.bus("consumer"), servers.bus("other")
    deliveries: Inbox[Delivery] = Inbox()
    ready: Inbox[None] = Inbox()
    bus.consume(topology.commands(), deliveries.put, on_ready=lambda: ready.put(None))
    ready.get(timeout=SECONDS)
    for number in range(2):
        other.delete(names.COMMANDS)
        ready.get(timeout=SECONDS)
        other.publish(command(f"j{number}-abc234"))

        assert deliveries.get(timeout=SECONDS).decode() == command(f"j{number}-abc234")


def test_ending_one_subscription_disturbs_no_other(servers: Servers) -> None:
    """Jobs end all day: their queues go, and the connection and everybody else on it stay."""
    bus = servers.bus()
    deliveries: Inbox[Delivery] = Inbox()
    ready: Inbox[None] = Inbox()
    bus.consume(topology.commands(), deliveries.put, on_ready=lambda: ready.put(None))
    ready.get(timeout=SECONDS)
    bus.publish(command("held-abc234"))
    held = deliveries.get(timeout=SECONDS)  # a reconnect would deliver it again
    before = connections(servers)
    for number in range(20):
        job = f"j{number}-abc234"
        ending = bus.consume(topology.updates(job), lambda _: None)
        assert ending.connected
        bus.cancel(ending, delete=True)
        assert not ending.connected
        assert bus.depth(names.updates_queue(job)) is None
    bus.publish(command())

    assert deliveries.get(timeout=SECONDS).decode() == command()
    assert ready.empty()
    assert connections(servers) == before
    assert len(before) == 2
    held.ack()
    bus.cancel(ending, delete=True)  # once more is harmless


def test_cancelling_gives_back_what_is_not_settled(servers: Servers) -> None:
    """Two messages in hand, one acknowledged: the other one is in the queue again, which stays."""
    bus = servers.bus()
    deliveries: Inbox[Delivery] = Inbox()
    subscription = bus.consume(topology.commands(), deliveries.put)
    for job in ("a-abc234", "b-abc234"):
        bus.publish(command(job))
    first, _ = (deliveries.get(timeout=SECONDS) for _ in range(2))
    first.ack()
    bus.cancel(subscription)

    until(lambda: bus.depth(names.COMMANDS) == (1, 0), "the unsettled message")


def test_a_refused_subscription_harms_no_other(servers: Servers) -> None:
    """What a user may not consume is refused once, and the bus still finds its way back after a lost connection."""
    operator, bus = servers.bus("operator"), impatient(servers, role="trainer")
    operator.declare(topology.commands())
    deliveries: Inbox[Delivery] = Inbox()
    ready: Inbox[None] = Inbox()
    bus.consume(topology.rounds("cpu"), deliveries.put, on_ready=lambda: ready.put(None))
    ready.get(timeout=SECONDS)
    with pytest.raises(Unavailable, match="refuses what this user tries"):
        bus.consume(topology.commands(), deliveries.put)
    servers.stack.rabbitmq.call("DELETE", "connections/username/trainer")
    ready.get(timeout=SECONDS)
    publish_raw(servers, "any", b"\x80", "round-start.cpu")

    assert deliveries.get(timeout=SECONDS).body == b"\x80"
    assert ready.empty()


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("password", "refuses these credentials; check the user and password in FEDQ_AMQP_URL"),
        ("vhost", "refuses the vhost 'nowhere'; check FEDQ_AMQP_URL and the user's rights"),
        ("port", "cannot be reached .*refused.*; is it running, and is FEDQ_AMQP_URL right"),
    ],
)
def test_a_wrong_address_is_explained(servers: Servers, mistake: str, sentence: str) -> None:
    """Each mistake has its sentence, and none has the password in it."""
    right = servers.environment()["FEDQ_AMQP_URL"]
    password = servers.stack.state.secret("operator")
    url = {
        "password": right.replace(password, f"{password}x"),
        "vhost": right.replace(servers.vhost, "nowhere"),
        "port": right.replace(f":{servers.stack.state.ports['amqp']}/", ":1/"),
    }[mistake]
    with pytest.raises(Unavailable, match=sentence) as caught:
        impatient(servers, url).publish(command())

    assert password not in str(caught.value)


# --- rights, and looking ------------------------------------------------------------------------


def test_a_trainer_cannot_take_what_is_the_aggregators(servers: Servers) -> None:
    """Neither by declaring the queue, nor by consuming or reading one that is there."""
    servers.bus().declare(topology.commands())
    trainer = impatient(servers, role="trainer")
    with pytest.raises(Unavailable, match=r"ACCESS_REFUSED.*aggregator\.commands.*'trainer'"):
        trainer.declare(topology.commands())

    for method in ("basic_consume", "basic_get"):
        with raw(servers, "trainer") as channel:
            arguments = (names.COMMANDS, lambda *_: None) if method == "basic_consume" else (names.COMMANDS,)
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
                getattr(channel, method)(*arguments)


def test_a_trainer_can_do_its_work(servers: Servers) -> None:
    """It consumes its pool's rounds and its notices, and publishes updates and dead letters."""
    operator, trainer = servers.bus("operator"), servers.bus("trainer", "trainer")
    operator.declare(topology.updates(JOB))
    trainer.declare(topology.dead_letters(), topology.rounds("cpu"))
    trainer.serve(topology.rounds("cpu"), lambda _: None)
    trainer.consume(topology.notices("one"), lambda _: None)
    trainer.publish(
        ModelUpdate(job=JOB, round=0, attempt=1, client="c", trainer="one", base=None, update=None, examples=0)
    )
    with raw(servers) as channel:
        channel.basic_publish(names.EVENTS, "round-start.cpu", b"\x80", pika.BasicProperties(type="nonsense"))
        properties, _ = get(channel, names.DEAD_LETTERS)
        update, _ = get(channel, names.updates_queue(JOB))

    assert (properties.user_id, properties.headers["x-fedq-queue"]) == ("trainer", "trainer.rounds.cpu")
    assert (update.user_id, update.type) == ("trainer", "model-update")


def test_a_missing_queue_has_no_depth(servers: Servers) -> None:
    """However often it is asked for: no channel is left behind, and the connection is the same."""
    bus = servers.bus()
    bus.declare(topology.commands())
    before = connections(servers)

    def channels() -> int:
        """White box: what the broker says of channels is seconds old."""
        return bus._publishing.call(lambda found: len(found.connection._impl._channels), SECONDS)

    open_before = channels()
    for _ in range(20):
        assert bus.depth("nowhere") is None
        assert bus.depth(names.COMMANDS) == (0, 0)

    assert channels() == open_before
    assert connections(servers) == before


def test_depth_counts_messages_and_consumers(servers: Servers) -> None:
    """Ready messages only: what somebody has in hand is not waiting."""
    bus = servers.bus()
    bus.declare(topology.commands())
    for _ in range(3):
        bus.publish(command())
    until(lambda: bus.depth(names.COMMANDS) == (3, 0), "three messages")
    deliveries: Inbox[Delivery] = Inbox()
    bus.consume(topology.commands(), deliveries.put, prefetch=2)
    for _ in range(2):
        deliveries.get(timeout=SECONDS)

    until(lambda: bus.depth(names.COMMANDS) == (1, 1), "one message left")
    assert deliveries.empty()
