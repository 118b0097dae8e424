"""What a stranger who has a trainer's password publishes to queues of tasks: dead letters, and the work goes on."""

import pickle
from typing import Any

import msgpack
from kombu import Connection, Exchange, Queue

from services.trainer.dispatch import tasks
from services.trainer.message import Task
from shared import names
from shared.events import BlobRef, RoundStart
from shared.jobs import JobSpec
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
