"""Runs a trainer: `python -m services.trainer --pool cpu --slots 2`, or `--client hospital-a` for a silo."""

import argparse
import functools
import os
import re
import socket
import sys
import threading
import time

import structlog

from services.trainer.board import Board
from services.trainer.dispatch import Dispatch, on_notice
from services.trainer.heartbeat import Heartbeat
from services.trainer.worker import Worker, make_app
from shared import events, logs, service, settings, topology
from shared.bus import Bus
from shared.errors import Unavailable
from shared.jobs import CLIENT_NAME

PATIENCE = 30.0  #: seconds that RabbitMQ may be away at the start
RETRY = 1.0  #: seconds until a trainer that could not listen tries again


def main() -> None:
    arguments = _arguments()
    configuration = settings.load(settings.Trainer)
    logs.configure(configuration, "trainer")
    with (
        Board.create(configuration.cache_dir / "trainers", arguments.name) as board,
        service.until_stopped() as stop,
    ):
        _serve(arguments, configuration, board, stop)


def _serve(arguments: argparse.Namespace, configuration: settings.Trainer, board: Board, stop: threading.Event) -> None:
    name, slots = arguments.name, arguments.slots
    group = arguments.pool or arguments.client
    log = structlog.get_logger().bind(trainer=name)
    began = time.monotonic()
    bus = Bus(configuration, name, patience=PATIENCE)
    bus.declare(topology.dead_letters(), topology.rounds(group))
    bus.serve(topology.notices(name), functools.partial(on_notice, board), prefetch=16)

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
        # Last of all: who hears of this trainer may give it work.
        threading.Thread(target=listen, name="listen", daemon=True).start()

    def listen() -> None:
        rounds = None
        while rounds is None:
            try:
                rounds = bus.serve(topology.rounds(group), dispatch)
            except Unavailable as error:
                log.warning("not listening yet", reason=str(error))
                if stop.wait(RETRY):
                    return
        heartbeat.start()
        log.info("ready", group=group, slots=slots, device=worker.device, seconds=round(time.monotonic() - began, 2))
        stop.wait()
        bus.cancel(rounds)

    app = make_app(configuration, group, name, slots, board.directory)
    dispatch = Dispatch(app, name)
    heartbeat = Heartbeat(bus, configuration.heartbeat_s, describe)
    worker = Worker(app, board, name, slots, on_ready)

    def stop_worker() -> None:
        stop.wait()
        log.info("stopping", busy=worker.busy)
        board.stop()
        dispatch.close()
        worker.request_stop()

    threading.Thread(target=stop_worker, name="stop", daemon=True).start()
    worker.start()
    heartbeat.stop()
    bus.close()
    if worker.failure is not None:
        raise worker.failure
    log.info("stopped", seconds=round(time.monotonic() - began, 2))
    sys.exit(worker.exitcode or 0)


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
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 256")
    return int(text)


if __name__ == "__main__":
    service.run(main)
