"""Runs a trainer: `python -m services.trainer --pool cpu --slots 2`, or `--client hospital-a` for a silo."""

from shared.process import early

if __name__ == "__main__":
    early.heed_signals()  # before the imports that take long

import argparse
import functools
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import structlog

from services.trainer.parent.dispatch import Dispatch, on_notice
from services.trainer.parent.heartbeat import HeartbeatThread
from services.trainer.parent.silo_tasks import SiloTasks
from services.trainer.parent.worker import Worker, make_app
from services.trainer.signals import Signals, private_directory
from shared import events
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.errors import BadInput, Unavailable
from shared.names import CLIENT_NAME
from shared.process import failpoints, logs, service, settings
from shared.process.probes import Probes

PATIENCE = 30.0  #: seconds that RabbitMQ may be away while an event is published
RETRY = 1.0  #: seconds until a trainer that could not listen tries again
HEED = 3.0  #: seconds after its grace until a slot that is still at work is killed
LEAVE = 5.0  #: seconds after that until the process ends, even if a library still waits for a server
CLOSING = 2.0  #: seconds to settle the events in hand on the bus when all else has ended


def main() -> None:
    arguments = _arguments()
    configuration = settings.load(settings.Trainer)
    logs.configure(configuration, "trainer")
    service.mention_unknown_settings()
    failpoints.arm()
    if arguments.client is not None:
        _check_states(configuration.state_dir)
    with (
        Probes(configuration.probe_dir, configuration.probe_s) as probes,
        Signals.create(configuration.cache_dir / "trainers", arguments.name) as signals,
        service.until_stopped() as stop,
    ):
        Parent(arguments, configuration, signals, probes, stop).serve()


def _check_states(directory: Path) -> None:
    """`BadInput` if the states of a silo's clients could not be written."""
    try:
        private_directory(directory.expanduser(), "FEDQ_STATE_DIR")
    except RuntimeError as error:
        raise BadInput(f"FEDQ_STATE_DIR: {directory} has no meaning here: {error}") from error


class Parent:
    """The parent process of one trainer: it hears rounds, reports how busy it is, and stops in time."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        configuration: settings.Trainer,
        signals: Signals,
        probes: Probes,
        stop: threading.Event,
    ) -> None:
        self._arguments, self._signals, self._probes, self._stop = arguments, signals, probes, stop
        self._grace = configuration.grace_s
        self._group, silo = arguments.pool or arguments.client, arguments.pool is None
        self._log = structlog.get_logger().bind(trainer=arguments.name)
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._bus = Bus(configuration, arguments.name, patience=PATIENCE)
        app = make_app(configuration, self._group, arguments.name, signals.directory, silo=silo)
        self._worker = Worker(app, signals, arguments.name, arguments.slots, self._on_ready, probes.loop())
        self._work: Dispatch | SiloTasks = (
            SiloTasks(self._bus, self._worker, self._group, arguments.slots)
            if silo
            else Dispatch(self._bus, app, self._group)
        )
        self._heartbeat = HeartbeatThread(self._bus, configuration.heartbeat_s, self._describe, probes)

    def serve(self) -> None:
        """Trains until it is asked to stop, then ends the process; `Unavailable` if a server refuses it at first."""
        threading.Thread(target=self._stop_in_time, name="stop", daemon=True).start()
        queues = (topology.dead_letters(), topology.rounds(self._group))
        declare = functools.partial(self._bus.declare, *queues, patience=service.TRY)
        if not service.at_start(self._stop, {"FEDQ_AMQP_URL": declare}):
            return
        on_event = functools.partial(on_notice, self._signals)
        self._bus.serve(topology.notices(self._arguments.name), on_event, prefetch=16)
        self._worker.start()
        self._heartbeat.stop()
        self._bus.close(CLOSING)
        self._ended.set()
        if self._worker.failure is not None:
            raise self._worker.failure
        self._log.info("stopped", seconds=round(time.monotonic() - self._began, 2))
        sys.exit(self._worker.exitcode or 0)

    def _describe(self, leaving: bool) -> events.Heartbeat:
        slots = self._arguments.slots
        return events.Heartbeat(
            trainer=self._arguments.name,
            pool=self._arguments.pool,
            client=self._arguments.client,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self._worker.device[:64],
            slots=slots,
            busy=min(self._worker.busy, slots),
            leaving=leaving,
            sent_at=time.time(),
        )

    def _on_ready(self) -> None:
        # Last of all: from the first heartbeat on, aggregators may give this trainer work.
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def _listen(self) -> None:
        """Hears rounds until this trainer is asked to stop."""
        rounds = None
        while rounds is None:
            try:
                rounds = self._work.begin()
            except Unavailable as error:
                self._log.warning("not listening yet", reason=str(error))
                if self._stop.wait(RETRY):
                    return
        self._heartbeat.start()
        self._probes.serving()
        self._log.info(
            "ready",
            group=self._group,
            slots=self._arguments.slots,
            device=self._worker.device,
            seconds=round(time.monotonic() - self._began, 2),
        )
        self._stop.wait()
        self._bus.cancel(rounds, settling=True)

    def _stop_in_time(self) -> None:
        """Waits for `stop`, lets the slots finish for the grace period, and has the process end soon after anyway."""
        self._stop.wait()
        log, worker = structlog.get_logger(), self._worker
        log.info("stopping", busy=worker.busy)
        self._probes.stopping()
        if worker.begun:
            worker.request_stop(time.monotonic() + self._grace)
            self._work.close()
            if self._ended.wait(self._grace + HEED):
                return
            if worker.busy:
                log.warning("killed what did not stop in time", busy=worker.busy)
            worker.kill_slots()
            if self._ended.wait(LEAVE):
                return
        # A library waits for a server that hangs. Tasks that are not acknowledged go to another trainer.
        log.warning("leaving at once")
        worker.signals.remove()
        os._exit(os.EX_OK)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer", description="Train clients as rounds ask for them."
    )
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--pool", type=_name, help="train clients of this pool, beside its other trainers")
    group.add_argument("--client", type=_name, help="be this silo, whose data stays here")
    parser.add_argument("--slots", type=_slots, default=1, help="clients trained at the same time (default: 1)")
    host = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname()).strip("-_")[:50]
    parser.add_argument(
        "--name",
        type=_name,
        default=f"{host or 'trainer'}-{os.getpid()}",
        help="of this trainer (default: <host>-<pid>)",
    )
    return parser.parse_args()


def _name(text: str) -> str:
    if not re.fullmatch(CLIENT_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: letters, digits, - and _, at most 63")
    return text


def _slots(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= events.MAX_SLOTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {events.MAX_SLOTS}")
    return int(text)


if __name__ == "__main__":
    service.run(main)
