"""The trainer's parent process: a Celery worker that hands tasks to warm slots and never imports torch.

Celery's insides are known here and in the two consumers, `pool_consumer` and `silo_tasks`, and in no other module. They
are those of Celery 5.7.
"""

import logging
import os
import select
import signal
import socket
import ssl
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from amqp.exceptions import AMQPError
from billiard.exceptions import RestartFreqExceeded
from celery import Celery, bootsteps
from celery.apps import worker as celery_worker
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool
from celery.exceptions import SecurityWarning
from celery.utils.threads import bound_open_broker_sockets
from celery.worker import state
from celery.worker.components import Pool
from kombu.asynchronous import get_event_loop
from kombu.entity import Exchange, Queue

from services.trainer.parent import pool_consumer
from services.trainer.signals import Signals
from shared import names
from shared.amqp import topology
from shared.errors import BadInput, FedqError, Unavailable, tls_trouble
from shared.process.probes import Loop
from shared.process.settings import Trainer

WARM_UP = 120.0  #: seconds a slot may take to import torch
LOST = 1.0  #: seconds in which the result of a slot that died may still come from its pipe
CLOSING = 1.0  #: seconds that the broker may take for each answer while we stop


def make_app(settings: Trainer, group: str, trainer: str, signals: Path, *, silo: bool = False) -> Celery:
    """The Celery app of one trainer: of a pool, with one quorum queue and nothing else; of a silo, without a broker."""
    app = Celery("trainer", set_as_current=False)
    app.conf.update(_without_broker() if silo else _with_queue(app, settings, group))
    app.conf.update(
        include=["services.trainer.slot.tasks"],
        task_create_missing_queues=False,
        task_acks_late=True,
        task_acks_on_failure=False,  # a failed task is a dead letter: tasks answer errors of training themselves
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_serializer="msgpack",
        accept_content=["msgpack"],
        worker_prefetch_multiplier=1,
        worker_pool_start_method="spawn",  # CUDA does not survive a fork
        worker_pool=f"{__name__}:SlotPool",
        worker_proc_alive_timeout=WARM_UP,
        worker_lost_wait=LOST,
        worker_enable_remote_control=False,
        # A lost connection costs the acknowledgement, not the training: the update goes out by another connection.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        slot={  # facts for `tasks.warm_up`
            "parent": os.getpid(),
            "place": {
                "trainer": trainer,
                "signals": str(signals),
                "silo": silo,
            },
        },
    )
    app.steps["worker"].add(WarmUp)
    return app


def _without_broker() -> dict[str, Any]:
    # A transport without a broker: Celery asks every transport for the classes of its errors.
    return {"broker_url": "memory://", "worker_consumer": "services.trainer.parent.silo_tasks:SiloConsumer"}


def _with_queue(app: Celery, settings: Trainer, group: str) -> dict[str, Any]:
    queue = Queue(  # type: ignore[no-untyped-call]
        names.tasks_queue(group),
        Exchange(names.TASKS, "topic", durable=True),  # type: ignore[no-untyped-call]
        routing_key=names.tasks_queue(group),
        queue_arguments=dict(topology.QUORUM),
    )
    url = settings.amqp_url.get_secret_value()
    if url.startswith("amqps:"):
        # Without a host name any server's valid certificate would pass; kombu by itself takes 127.0.0.1 for localhost.
        app.conf.broker_use_ssl = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": urlsplit(url).hostname}
    return {
        "broker_url": url,
        "broker_heartbeat": settings.amqp_heartbeat_s,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # no limit
        "task_queues": [queue],
        "task_default_queue": queue.name,
        "task_default_exchange": names.TASKS,
        "task_default_exchange_type": "topic",
        "task_default_routing_key": queue.name,
        "worker_consumer": f"{pool_consumer.__name__}:PoolConsumer",
    }


class Slots(AsynPool):  # type: ignore[misc]
    """Celery's processes; one that died is replaced at once, and its task goes back as soon as it may.

    By itself Celery would see to either when it looks the next time, every five seconds.
    """

    def _event_process_exit(self, hub: Any, proc: Any) -> None:
        proc._popen.wait()  # its pipe closes a moment before `waitpid` sees its end, and Celery looks only once
        super()._event_process_exit(hub, proc)

    def on_job_process_lost(self, job: Any, pid: int, exitcode: int) -> None:
        super().on_job_process_lost(job, pid, exitcode)
        hub = get_event_loop()
        if hub is not None:
            hub.call_later(LOST + 0.01, self.maintain_pool)  # type: ignore[no-untyped-call]


class SlotPool(TaskPool):  # type: ignore[misc]
    Pool = Slots


class Worker(celery_worker.Worker):  # type: ignore[misc]
    """A Celery worker inside our process: our signals, our logs."""

    def __init__(
        self, app: Celery, signals: Signals, trainer: str, slots: int, on_ready: Callable[[], None], turning: Loop
    ) -> None:
        self.signals = signals
        self.turning = turning  # Celery's event loop
        self.device = ""  # the device that the slots train on, known when they are warm
        self.failure: FedqError | None = None
        self.begun = False
        self.stops_at = 0.0  # deadline on the monotonic clock, set when the trainer is asked to stop
        self._on_ready = on_ready
        # Celery warns of unpickling as root; this app unpickles no message.
        warnings.filterwarnings("ignore", category=SecurityWarning)
        super().__init__(
            app=app,
            hostname=f"{trainer}@{socket.gethostname()}",
            concurrency=slots,
            loglevel="WARNING",
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            task_events=False,
            use_eventloop=True,
        )

    def start(self) -> None:
        self.begun = True
        try:
            super().start()
        finally:
            self.kill_slots()  # after any error: Python would wait for them at its exit

    def install_platform_tweaks(self, worker: Any) -> None:
        """Installs no signal handlers: ours call `request_stop`."""

    def on_close(self) -> None:
        """Lets Celery wait for the slots; a second signal ends all at once, and the broker hands the tasks on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        self.turning.end()
        # Celery waits without end for a broker that hangs to confirm that the consumer is cancelled.
        if self.consumer.connection is not None:
            bound_open_broker_sockets(self.consumer.connection, CLOSING)
        super().on_close()

    def on_consumer_ready(self, consumer: Any) -> None:  # noqa: ARG002 - Celery passes it
        """Tells that Celery consumes the task queue from now on."""
        self._on_ready()

    def request_stop(self, until: float) -> None:
        """Lets the slots finish what they train by then, and ends `start`; callable from any thread."""
        self.stops_at = until
        state.should_stop = os.EX_OK
        self.signals.tell("stop")  # heard while the slots warm up
        if self.hub is not None:
            self.hub.call_soon(lambda: None)  # wakes the loop, which then sees `should_stop`

    def kill_slots(self) -> None:
        """Kills the slots, which ignore milder signals; tasks are not acknowledged, so the broker hands them on."""
        for process in self.slots:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    @property
    def slots(self) -> list[Any]:
        """The processes of the pool, as long as there is one."""
        started = self.pool is not None and self.pool._pool is not None
        # Celery's pool wraps billiard's pool, which has the list of processes.
        return list(self.pool._pool._pool) if started else []

    @property
    def busy(self) -> int:
        """Tasks being executed now."""
        return len(state.active_requests)


class WarmUp(bootsteps.StartStopStep):  # type: ignore[misc]
    """Holds the worker back until each slot has imported torch: a trainer that says it is alive is ready to train."""

    requires = (Pool,)

    def start(self, worker: Worker) -> None:
        with worker.signals.listen() as words:
            try:
                worker.device = self._wait(worker, words)
            except FedqError as error:
                worker.failure = error
                raise SystemExit(error.exit_code) from error  # Celery's way to end
        worker.hub.call_repeatedly(worker.turning.interval, worker.turning.turned)

    def stop(self, worker: Worker) -> None:
        """Tells the slots to stop, between consumer and pool: a task put back now does not come here again."""
        worker.signals.stop(worker.stops_at)

    def _wait(self, worker: Worker, words: int) -> str:
        # A sentinel is readable once its process died.
        sentinels = [process._popen.sentinel for process in worker.slots]
        heard, warm = b"", 0
        while True:
            ready, _, _ = select.select([words, *sentinels], [], [], WARM_UP)
            if words in ready:
                heard += os.read(words, 65536)
            worker.turning.turned()
            *lines, heard = heard.split(b"\n")
            for line in lines:
                word, _, rest = line.decode().partition(" ")
                if word == "away":
                    raise Unavailable(rest)
                if word == "failed":
                    raise BadInput(rest)
                if word == "stop":
                    raise SystemExit(os.EX_OK)
                warm += 1
                if warm == len(sentinels):
                    return rest
            if words not in ready:
                raise FedqError("a slot died while it was starting" if ready else f"no slot was warm in {WARM_UP:g} s")


class _Forward(logging.Handler):
    """Celery's log records as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        event = structlog.get_logger().bind(logger=record.name)
        level, cause = record.levelno, record.exc_info
        if cause and isinstance(cause[1], OSError | AMQPError | RestartFreqExceeded):
            level, cause = logging.WARNING, None  # a connection was lost, and the message says all of it
        message = record.getMessage().split("\n")[0]
        for part in record.args or ():  # the arguments include the error of a failed connection
            if isinstance(part, BaseException) and (trouble := tls_trouble(part, "FEDQ_AMQP_URL")):
                message = f"RabbitMQ: {trouble}"
        event.log(level, message, exc_info=cause)


def forward_logs() -> None:
    """Lets Celery's warnings through to our log and nothing below."""
    for name in ("celery", "kombu", "amqp", "multiprocessing"):
        logger = logging.getLogger(name)
        logger.handlers = [_Forward()]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
