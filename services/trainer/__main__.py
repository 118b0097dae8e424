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
        _serve(arguments, configuration, signals, probes, stop)


def _check_states(directory: Path) -> None:
    """`BadInput` if the states of a silo's clients could not be written."""
    try:
        private_directory(directory.expanduser(), "FEDQ_STATE_DIR")
    except RuntimeError as error:
        raise BadInput(f"FEDQ_STATE_DIR: {directory} has no meaning here: {error}") from error


def _serve(
    arguments: argparse.Namespace,
    configuration: settings.Trainer,
    signals: Signals,
    probes: Probes,
    stop: threading.Event,
) -> None:
    name, slots = arguments.name, arguments.slots
    group, silo = arguments.pool or arguments.client, arguments.pool is None
    log = structlog.get_logger().bind(trainer=name)
    began = time.monotonic()
    bus = Bus(configuration, name, patience=PATIENCE)
    ended = threading.Event()

    def describe(leaving: bool) -> events.Heartbeat:
        return events.Heartbeat(
            trainer=name,
            pool=arguments.pool,
            client=arguments.client,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=worker.device[:64],
            slots=slots,
            busy=min(worker.busy, slots),
            leaving=leaving,
            sent_at=time.time(),
        )

    def on_ready() -> None:
        # Last of all: from the first heartbeat on, aggregators may give this trainer work.
        threading.Thread(target=listen, name="listen", daemon=True).start()

    def listen() -> None:
        rounds = None
        while rounds is None:
            try:
                rounds = work.begin()
            except Unavailable as error:
                log.warning("not listening yet", reason=str(error))
                if stop.wait(RETRY):
                    return
        heartbeat.start()
        probes.serving()
        log.info("ready", group=group, slots=slots, device=worker.device, seconds=round(time.monotonic() - began, 2))
        stop.wait()
        bus.cancel(rounds, settling=True)

    app = make_app(configuration, group, name, signals.directory, silo=silo)
    heartbeat = HeartbeatThread(bus, configuration.heartbeat_s, describe, probes)
    worker = Worker(app, signals, name, slots, on_ready, probes.loop())
    work = SiloTasks(bus, worker, group, slots) if silo else Dispatch(bus, app, group)

    stopping = (stop, ended, configuration.grace_s, worker, work, probes)
    threading.Thread(target=_stop_in_time, args=stopping, name="stop", daemon=True).start()
    queues = (topology.dead_letters(), topology.rounds(group))
    if not service.at_start(stop, {"FEDQ_AMQP_URL": lambda: bus.declare(*queues, patience=service.TRY)}):
        return
    bus.serve(topology.notices(name), functools.partial(on_notice, signals), prefetch=16)
    worker.start()
    heartbeat.stop()
    bus.close(CLOSING)
    ended.set()
    if worker.failure is not None:
        raise worker.failure
    log.info("stopped", seconds=round(time.monotonic() - began, 2))
    sys.exit(worker.exitcode or 0)


def _stop_in_time(
    stop: threading.Event,
    ended: threading.Event,
    grace: float,
    worker: Worker,
    work: Dispatch | SiloTasks,
    probes: Probes,
) -> None:
    """Once `stop` is set: lets the slots finish for `grace` seconds, and has the process end soon after in any case."""
    stop.wait()
    log = structlog.get_logger()
    log.info("stopping", busy=worker.busy)
    probes.stopping()
    if worker.begun:
        worker.request_stop(time.monotonic() + grace)
        work.close()
        if ended.wait(grace + HEED):
            return
        if worker.busy:
            log.warning("killed what did not stop in time", busy=worker.busy)
        worker.kill_slots()
        if ended.wait(LEAVE):
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
