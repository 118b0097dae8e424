"""`python -m services.aggregator`: builds the edges, takes jobs, hands them over when asked to stop."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urlsplit

import structlog

from services.aggregator.owner import Owner
from services.aggregator.runner import Edges
from shared import console, failpoints, logs, service, settings
from shared.blobs import Blobs
from shared.bus import Bus
from shared.errors import BadInput
from shared.ledger import Ledger
from shared.redis_client import Redis
from shared.roster import Roster

log = structlog.get_logger()

GRACE = 20.0  #: seconds in which the jobs are handed over


def main() -> None:
    failpoints.arm()
    config = settings.load(settings.Aggregator)
    logs.configure(config, "aggregator")
    name = f"{socket.gethostname()}-{os.getpid()}"
    redis, bus, blobs = Redis(config), Bus(config, name), Blobs(config)
    ledger = Ledger(redis)
    with service.until_stopped() as stop, ThreadPoolExecutor(1, thread_name_prefix="later") as later:
        _check_policies(config, stop)
        service.at_start(ledger.now, stop)
        service.at_start(blobs.probe, stop)
        if stop.is_set():
            return
        edges = Edges(bus, blobs, ledger, Roster(redis), later)
        owner = Owner(name, edges, lease=config.lease_s, most=config.max_jobs)
        owner.start()
        log.info("ready", name=name, bus=bus.place, store=blobs.place, max_jobs=config.max_jobs)
        stop.wait()
        log.info("stopping")
        owner.stop(GRACE)
        bus.close()


def _check_policies(config: settings.Aggregator, stop: threading.Event) -> None:
    """`BadInput` where RabbitMQ lacks the policies that the queues rely on."""
    if config.rabbitmq_url is None:
        log.warning("policies not checked: FEDQ_RABBITMQ_URL is not set")
        return
    vhost = unquote(urlsplit(config.amqp_url.get_secret_value()).path[1:]) or "/"
    if missing := service.at_start(lambda: console.missing_policies(config, vhost), stop):
        raise BadInput(
            f"RabbitMQ's vhost {vhost} lacks the policies {', '.join(missing)}; load deploy/definitions.json into it"
        )


if __name__ == "__main__":
    service.run(main)
