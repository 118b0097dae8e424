"""`python -m services.aggregator`: builds the edges, takes jobs, hands them over when asked to stop."""

from shared.process import early

if __name__ == "__main__":
    early.heed_signals()  # before the imports that take long

import argparse
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urlsplit

import structlog

from services.aggregator.coordinator import Edges
from services.aggregator.leases import JobLeases
from shared.amqp import management, topology
from shared.amqp.bus import Bus
from shared.errors import BadInput
from shared.job import user_code
from shared.process import failpoints, logs, service, settings
from shared.process.probes import Probes
from shared.redis.client import Redis
from shared.redis.ledger import Ledger
from shared.redis.roster import Roster
from shared.s3.store import Blobs

log = structlog.get_logger()

GRACE = 20.0  #: seconds that handing over the jobs may take


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m services.aggregator",
        description="Run the jobs that are started, and share them with other aggregators.",
    ).parse_args()
    failpoints.arm()
    config = settings.load(settings.Aggregator)
    logs.configure(config, "aggregator")
    service.mention_unknown_settings()
    name = f"{socket.gethostname()}-{os.getpid()}"
    user_code.permit(config.allow, f"the aggregator {name}")
    redis, bus, blobs = Redis(config), Bus(config, name), Blobs(config)
    with (
        Probes(config.probe_dir, config.probe_s) as probes,
        service.until_stopped() as stop,
        ThreadPoolExecutor(1, thread_name_prefix="later") as later,
    ):
        if not service.at_start(stop, _checks(config, redis, bus)):
            return
        edges = Edges(bus, blobs, Ledger(redis), Roster(redis), later)
        owner = JobLeases(name, edges, probes, lease=config.lease_s, most=config.max_jobs)
        owner.start()
        probes.serving()
        log.info("ready", name=name, bus=bus.place, store=blobs.place, max_jobs=config.max_jobs)
        stop.wait()
        log.info("stopping")
        probes.stopping()
        owner.stop(GRACE)
        bus.close()


def _checks(config: settings.Aggregator, redis: Redis, bus: Bus) -> dict[str, service.Check]:
    """Returns the checks that must pass before jobs are taken, by the variable that configures each server."""
    queues = (topology.commands(), topology.dead_letters())
    checks: dict[str, service.Check] = {
        "FEDQ_AMQP_URL": lambda: bus.declare(*queues, patience=service.TRY),
        "FEDQ_REDIS_URL": redis.probe,
        "FEDQ_S3_URL": Blobs(config, patience=service.TRY).probe,
    }
    if config.rabbitmq_url is None:
        log.warning("policies not checked: FEDQ_RABBITMQ_URL is not set")
    else:
        checks["FEDQ_RABBITMQ_URL"] = lambda: _check_policies(config)
    return checks


def _check_policies(config: settings.Aggregator) -> None:
    """Raises `BadInput` if RabbitMQ lacks the policies that the queues rely on."""
    vhost = unquote(urlsplit(config.amqp_url.get_secret_value()).path[1:]) or "/"
    if missing := management.missing_policies(config, vhost):
        raise BadInput(
            f"RabbitMQ's vhost {vhost}, which FEDQ_AMQP_URL names, lacks the policies {', '.join(missing)}; "
            "let `fedq setup` load them, or load deploy/definitions.json"
        )


if __name__ == "__main__":
    service.run(main)
