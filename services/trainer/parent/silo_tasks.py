"""Tasks of a silo, on their way to its slots without a queue that others can reach.

Each event that a silo hears is one task. The parent keeps the event unacknowledged until that task is done, and hands
the task to Celery's pool as if Celery had received it. If the silo fails, the broker hands the event out again, and
counts how often; and there is no queue of tasks to read, to fill, or to empty.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import structlog
from celery import bootsteps
from celery.worker import consumer as celery_consumer
from celery.worker import state
from kombu.message import Message

from services.trainer.parent.dispatch import tasks
from services.trainer.train_task import CONTENT_ENCODING, CONTENT_TYPE, Task
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.amqp.connection import Delivery, Subscription
from shared.errors import BadMessage, Stale, Unavailable
from shared.events import AnyEvent, EvaluateModel, RoundStart
from shared.process.failpoints import failpoint

log = structlog.get_logger()


class SiloSteps(celery_consumer.Consumer.Blueprint):  # type: ignore[misc]  # Celery has no types
    """The one step that a silo's consumer needs."""

    default_steps = (f"{__name__}:Turning",)


class SiloConsumer(celery_consumer.Consumer):  # type: ignore[misc]
    """Celery's loop without a broker: tasks come from `SiloTasks`."""

    connection = task_consumer = event_dispatcher = qos = None
    Blueprint = SiloSteps


class Turning(bootsteps.StartStopStep):  # type: ignore[misc]
    """The event loop, until the worker is asked to stop."""

    def start(self, consumer: SiloConsumer) -> None:
        consumer.update_strategies()
        consumer.controller.register_with_event_loop(consumer.hub)
        consumer.on_ready()
        while consumer.blueprint.state == bootsteps.RUN:
            for _ in consumer.hub.create_loop():  # the loop ends if the pipe of a slot has gone meanwhile
                state.maybe_shutdown()


class SiloTasks:
    """Takes the events of one silo, and settles each by the outcome of its task."""

    def __init__(self, bus: Bus, worker: Any, client: str, slots: int) -> None:
        self._bus, self._worker, self._client, self._slots = bus, worker, client, slots
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # calls for a thread that may wait
        self._closed = threading.Event()

    def begin(self) -> Subscription:
        """Hears of work from now on; `Unavailable` if the broker is away."""
        found = self._bus.consume(
            topology.rounds(self._client),
            lambda delivery: self._inbox.put(lambda: self._take(delivery)),
            prefetch=self._slots,
        )
        threading.Thread(target=self._work, name="handover", daemon=True).start()
        return found

    def close(self) -> None:
        """Takes no more events: those that are not begun go back to the queue."""
        self._closed.set()

    def _work(self) -> None:
        while True:
            try:
                self._inbox.get()()
            except Unavailable as error:
                log.error("not settled", reason=str(error))
            except Exception:
                log.exception("not settled")

    def _take(self, delivery: Delivery) -> None:
        about = log.bind(queue=delivery.queue, event_type=delivery.type)
        if self._closed.is_set():
            return delivery.requeue()
        failpoint("trainer.heard")
        try:
            event = delivery.decode()
            task = self._task(event)
        except BadMessage as error:
            about.warning("dead-lettered", reason=str(error))
            return self._dead_letter(delivery, str(error))
        except Stale as error:
            about.info("stale", reason=str(error))
            return delivery.ack()
        except Exception:  # a fault of ours; an unsettled event would take a slot's place in the prefetch for good
            about.exception("requeued", attempt=delivery.attempt)
            return delivery.requeue()
        # Handed to Celery's own thread, as no other may touch its pool.
        self._worker.hub.call_soon(self._begin, delivery, task)
        failpoint("trainer.dispatched")
        about.info(event.type, job=getattr(event, "job", None), round=getattr(event, "round", None), tasks=1)
        return None

    def _task(self, event: AnyEvent) -> Task:
        match event:
            case RoundStart() if (event.group, event.cohort) == (self._client, (self._client,)):
                pass
            case EvaluateModel() if event.group == self._client and event.clients in ((), (self._client,)):
                pass
            case _:
                raise BadMessage(f"{event.type} asks {self._client} for what is not its own work")
        (task,) = tasks(event, time.time())
        return task

    def _begin(self, delivery: Delivery, task: Task) -> None:
        """Gives a task to the pool."""

        def reject(_logger: object, _errors: object, requeue: bool) -> None:
            if requeue:
                delivery.requeue()
            else:
                reason = f"given up by a trainer of {self._client}; its log says why"
                self._inbox.put(lambda: self._dead_letter(delivery, reason))

        message = Message(
            body=task.body,
            content_type=CONTENT_TYPE,
            content_encoding=CONTENT_ENCODING,
            headers={**task.headers, "x-delivery-count": delivery.attempt - 1},
            properties={"correlation_id": task.identity},
            delivery_info={"redelivered": delivery.attempt > 1},
            accept={CONTENT_TYPE},
        )  # type: ignore[no-untyped-call]
        strategy = cast("Any", self._worker.consumer).strategies[task.kind]
        strategy(message, None, lambda *_: delivery.ack(), reject, ())

    def _dead_letter(self, delivery: Delivery, reason: str) -> None:
        try:
            self._bus.dead_letter(delivery, reason)
        except Unavailable:
            delivery.requeue()
            raise
