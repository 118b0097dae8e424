"""RabbitMQ restarts, freezes, loses queues or refuses to store: events are doorbells, and somebody rings again."""

import time

import pytest

from shared import names
from tests.faults.federation import Federation, Row, while_away
from tests.harness import until


@pytest.mark.row("broker stopped and started", "P1 P2 P3 P5")
def test_a_restart_of_the_broker(federation: Federation, row: Row) -> None:
    """In order, in the middle of a round."""
    digests = federation.undisturbed()
    federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 2, 1)
    broker = federation.servers.stack.rabbitmq
    broker.stop()
    row.fire("stopped in round 2")
    broker.start()
    federation.reached(job, 3, seconds=90)
    row.recovered()

    federation.holds(job, digests)


@pytest.mark.row("broker killed -9 and started", "P1 P2 P3 P5")
def test_a_crash_of_the_broker(federation: Federation, row: Row) -> None:
    """What it confirmed is on its disk; a queue declared in the last second may not be, so it is not."""
    digests = federation.undisturbed()
    federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 3, 1)
    broker = federation.servers.stack.rabbitmq
    broker.kill()
    row.fire("SIGKILL in round 3")
    broker.start()
    federation.reached(job, 4, seconds=90)
    row.recovered()

    federation.holds(job, digests)


@pytest.mark.row("broker frozen for 20 s", "P5")
def test_a_freeze_of_the_broker(federation: Federation, row: Row) -> None:
    """Longer than two and a half heartbeats of 6 s: everybody notices, and everybody comes back."""
    digests = federation.undisturbed()
    aggregator = federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 2, 1)
    with federation.frozen(federation.servers.stack.rabbitmq.pid):
        row.fire("SIGSTOP for 20 s in round 2")
        while_away(20)
    federation.reached(job, 3, seconds=75)
    row.recovered()

    federation.holds(job, digests)
    assert aggregator.alive()
    assert all(trainer.alive() for trainer in federation.pool)


@pytest.mark.row("queues deleted by an operator", "P1 P5")
@pytest.mark.parametrize(
    "which",
    [
        "aggregator.updates.{job}",
        "aggregator.commands",
        "trainer.rounds.cpu",
        "trainer.tasks.cpu",
        "registry.heartbeats",
    ],
)
def test_a_deleted_queue(federation: Federation, row: Row, which: str) -> None:
    """Whoever consumed it is cancelled silently, notices, declares it again; what was in it is asked for again."""
    digests = federation.undisturbed()
    federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 2, 1)
    name = which.format(job=job)
    broker, vhost = federation.servers.stack.rabbitmq, federation.servers.vhost
    broker.call("DELETE", f"queues/{vhost}/{name}")
    row.name += f": {which}"
    row.fire("deleted in round 2")
    federation.reached(job, 3, seconds=60)
    row.recovered()

    federation.holds(job, digests)
    again = federation.submit(rounds={"count": 1, "deadline": "60s"})
    assert federation.ended(again).status == "finished"
    if which != "aggregator.updates.{job}":
        until(lambda: name in federation.queues(), 20, f"queue {name}")


@pytest.mark.row("broker in memory alarm for 10 s", "P5")
def test_a_memory_alarm(federation: Federation, row: Row) -> None:
    """Publishers are blocked: nobody waits without end, and the job goes on when it is over."""
    digests = federation.undisturbed()
    federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 2, 1)
    broker = federation.servers.stack.rabbitmq
    limit(federation, "0.00000001")
    try:
        alarmed = until(lambda: any(node["mem_alarm"] for node in broker.call("GET", "nodes")), 20, "the alarm")
        assert alarmed
        row.fire("publishers blocked for 10 s in round 2")
        while_away(10)
    finally:
        limit(federation, "0.4")
    federation.reached(job, 3)
    row.recovered()

    federation.holds(job, digests)


def limit(federation: Federation, fraction: str) -> None:
    """Sets the broker's memory limit, as an operator would."""
    federation.servers.stack.rabbitmq.control("set_vm_memory_high_watermark", fraction)


@pytest.mark.row("an update's event is lost", "P1 P2")
def test_a_doorbell_that_never_rang(federation: Federation, row: Row) -> None:
    """The update lies in the store, its event was purged: the round is looked at again, and nobody trains twice."""
    digests = federation.undisturbed()
    first = federation.aggregator()
    job = federation.submit(train={"name": "tests.faults.step:train", "args": {"seconds": 0.2}})
    federation.reached(job, 1)
    with federation.frozen(first.pid):
        prefix = names.updates_prefix(job, 2)
        until(lambda: len(federation.servers.blobs().list(prefix)) == 4, 30, "the updates", detail=federation.tails)
        time.sleep(0.2)  # the last event is on its way
        federation.servers.stack.rabbitmq.call(
            "DELETE", f"queues/{federation.servers.vhost}/{names.updates_queue(job)}"
        )
        row.fire("4 updates in the store, their events deleted")
    federation.reached(job, 2)
    row.recovered()

    federation.holds(job, digests)
