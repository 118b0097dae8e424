"""`python -m services.registry`: receives heartbeats, keeps the roster, and answers over HTTP until asked to stop."""

from shared.process import early

if __name__ == "__main__":
    early.heed_signals()  # before the imports that take long

import argparse
import os
import socket
import threading
from urllib.parse import urlsplit

import structlog
import uvicorn

from services.registry import api
from services.registry.handlers import Registrar, lease
from services.registry.metrics import Metrics
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.errors import Unavailable
from shared.process import logs, service, settings
from shared.process.probes import Probes
from shared.redis.client import Redis
from shared.redis.ledger import Ledger
from shared.redis.roster import Roster

log = structlog.get_logger()

PREFETCH = 32  #: heartbeats on their way while one is handled


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m services.registry", description="Keep the roster of trainers, and answer for the whole."
    ).parse_args()
    config = settings.load(settings.Registry)
    logs.configure(config, "registry")
    service.mention_unknown_settings()
    listener = _listen(config.registry_url.get_secret_value())
    redis, bus = Redis(config), Bus(config, f"registry-{socket.gethostname()}-{os.getpid()}")
    queues = (topology.heartbeats(), topology.dead_letters())
    with Probes(config.probe_dir, config.probe_s) as probes, service.until_stopped() as stop:
        checks = {
            "FEDQ_AMQP_URL": lambda: bus.declare(*queues, patience=service.TRY),
            "FEDQ_REDIS_URL": redis.probe,
        }
        if service.at_start(stop, checks):
            _serve(config, redis, bus, listener, probes, stop)


def _serve(
    config: settings.Registry, redis: Redis, bus: Bus, listener: socket.socket, probes: Probes, stop: threading.Event
) -> None:
    roster, ledger = Roster(redis), Ledger(redis)
    lasts = lease(config.heartbeat_s, config.patience)
    registrar = Registrar(bus, roster, lasts, probes)
    heartbeats = bus.serve(topology.heartbeats(), registrar.on_heartbeat, prefetch=PREFETCH)

    def away() -> list[str]:
        reasons = [] if heartbeats.connected else [f"RabbitMQ at {bus.place} is away: no heartbeats are received"]
        try:
            redis.ping()
        except Unavailable as error:
            reasons.append(str(error))
        return reasons

    turning = probes.loop()

    async def turned() -> None:
        turning.turned()

    app = api.create(roster, ledger, Metrics(roster, ledger, registrar.counts), away)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
            callback_notify=turned,
            timeout_notify=1,  # s
        )
    )
    # Uvicorn on a second thread leaves the signals to the main thread, which heeds them from the first moment on.
    web = threading.Thread(target=server.run, args=([listener],), name="web")
    registrar.start()
    web.start()
    probes.serving()
    log.info(
        "ready",
        url=config.registry_url.get_secret_value(),
        bus=bus.place,
        lease=lasts,
    )
    stop.wait()
    log.info("stopping")
    probes.stopping()
    server.should_exit = True
    web.join()
    registrar.stop()
    bus.close(timeout=1)


def _listen(url: str) -> socket.socket:
    """A socket that listens at the host and port of `url`, or the reason why there is none."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # before uvicorn does, so that of two registries that start at one address, one fails
    except OSError as error:
        raise Unavailable(f"{url} cannot be served ({error.strerror}); change FEDQ_REGISTRY_URL") from error
    return listener


if __name__ == "__main__":
    service.run(main)
