"""Checks of every server and service, with a remedy for each problem."""

import email.utils
import math
import queue
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

from rich.text import Text

from services.cli.report.tables import MAX_SKEW, skewed
from services.cli.servers import PATIENCE, Servers
from services.cli.ui import output
from shared import names
from shared.amqp import management, topology
from shared.amqp.connection import Delivery
from shared.errors import FedqError, Unavailable
from shared.events import JobStatus
from shared.redis.roster import groups

OLDEST_REDIS = (7, 0)


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    about: str
    state: Literal["fine", "wrong", "away", "unknown"]
    sentence: str
    remedy: str = ""


def examine(servers: Servers, as_json: bool) -> int:
    """Prints all findings as they come, and returns the exit code that summarizes them."""
    terminal = output.Terminal()
    findings = []
    for finding in _findings(servers):
        findings.append(finding)
        if not as_json:
            mark, colour = _MARKS[finding.state]
            terminal.print(Text(mark, colour), Text(f"{finding.about}:", "bold"), finding.sentence)
            if finding.remedy:
                terminal.print(f"    → {finding.remedy}")
    states = {finding.state for finding in findings}
    code = 3 if "away" in states else 1 if "wrong" in states else 0
    if as_json:
        output.emit({"exit_code": code, "findings": [asdict(finding) for finding in findings]})
    return code


_MARKS = {"fine": ("✓", "green"), "wrong": ("✗", "red"), "away": ("✗", "red"), "unknown": ("?", "yellow")}


def _findings(servers: Servers) -> Iterator[Check]:
    broker = yield from _guarded("RabbitMQ", _broker(servers))
    yield from _guarded("policies", _policies(servers))
    redis = yield from _guarded("Redis", _redis(servers))
    yield from _guarded("object store", _store(servers))
    for about, check, server, answers in (
        ("aggregator", _aggregator(servers), "RabbitMQ", broker),
        ("registry", _registry(servers), "RabbitMQ", broker),
        ("trainers", _trainers(servers), "Redis", redis),
        ("dead letters", _dead_letters(servers), "RabbitMQ", broker),
    ):
        if answers:
            yield from _guarded(about, check)
        else:
            yield Check(about, "unknown", f"not looked at: {server} does not answer")


def _guarded(about: str, check: Iterator[Check]) -> Generator[Check, None, bool]:
    """Yields a check's results and returns whether its server answers; a check that fails does not end the others."""
    try:
        yield from check
    except FedqError as error:
        yield Check(about, "away", str(error))
        return False
    except Exception as error:  # an unexpected error of a driver is a finding too
        yield Check(about, "wrong", f"unexpected {type(error).__name__}: {error}")
        return False
    return True


def _broker(servers: Servers) -> Iterator[Check]:
    """Checks the broker: one event sent and received exercises every permission that an operator needs."""
    bus = servers.bus
    product = bus.server()
    bus.declare(topology.commands(), topology.dead_letters())
    job = f"doctor-{secrets.token_hex(3)}"
    inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    subscription = bus.consume(topology.watcher(secrets.token_hex(6), job), inbox.put)
    began = time.monotonic()
    bus.publish(JobStatus(job=job, status="running", detail="fedq doctor"))
    try:
        inbox.get(timeout=PATIENCE).ack()
    except queue.Empty:
        raise Unavailable(f"{bus.place} took an event and did not deliver it within {PATIENCE:g} s") from None
    elapsed = time.monotonic() - began
    bus.cancel(subscription)
    yield Check("RabbitMQ", "fine", f"{product} at {bus.place}, an event there and back in {1000 * elapsed:.0f} ms")


def _policies(servers: Servers) -> Iterator[Check]:
    if servers.settings.rabbitmq_url is None:
        yield Check(
            "policies",
            "unknown",
            "not looked at: FEDQ_RABBITMQ_URL is not set",
            "set it to RabbitMQ's management API, such as http://localhost:15672",
        )
        return
    vhost = unquote(urlsplit(servers.settings.amqp_url.get_secret_value()).path[1:]) or "/"
    missing = management.missing_policies(servers.settings, vhost)
    if missing:
        sentence = f"vhost {vhost} lacks {', '.join(missing)}"
        yield Check("policies", "wrong", sentence, "load deploy/definitions.json into the vhost")
    else:
        yield Check("policies", "fine", f"all {len(topology.POLICIES)} hold in vhost {vhost}")


def _redis(servers: Servers) -> Iterator[Check]:
    product = servers.ledger.server()
    began = time.monotonic()
    servers.redis.set(names.PROBE, "fedq", px=1000)
    elapsed = time.monotonic() - began
    place = f"{product} at {servers.redis.place}"
    version = tuple(int(part) for part in product.split()[-1].split(".")[:2])
    if version < OLDEST_REDIS:
        yield Check("Redis", "wrong", f"{place} is too old", "fedq needs Redis 7.0 or newer")
    else:
        yield Check("Redis", "fine", f"{place}, a write in {1000 * elapsed:.0f} ms")
    yield _clock("Redis", servers.ledger.now())


def _store(servers: Servers) -> Iterator[Check]:
    began = time.monotonic()
    product = servers.blobs.probe()
    elapsed = time.monotonic() - began
    sentence = f"{product} at {servers.blobs.place}, a blob put, read and removed in {1000 * elapsed:.0f} ms"
    yield Check("object store", "fine", sentence)
    date = _date_of(servers.settings.s3_url.get_secret_value())
    if date is not None:
        yield _clock("the object store", date)


def _aggregator(servers: Servers) -> Iterator[Check]:
    if count := servers.aggregators():
        yield Check("aggregator", "fine", f"{count} {'takes' if count == 1 else 'take'} jobs")
    else:
        yield Check("aggregator", "wrong", "none takes jobs", "start one with `python -m services.aggregator`")


def _registry(servers: Servers) -> Iterator[Check]:
    found = servers.bus.depth(names.HEARTBEATS)
    if found is not None and found[1]:
        yield Check("registry", "fine", f"{found[1]} {'hears' if found[1] == 1 else 'hear'} heartbeats")
    else:
        sentence = "no registry is running, so nobody knows which trainers are alive"
        yield Check("registry", "wrong", sentence, "start one with `python -m services.registry`")


def _trainers(servers: Servers) -> Iterator[Check]:
    members = servers.roster.alive()
    if not members:
        remedy = "start one with `python -m services.trainer --pool NAME` or `--client NAME`"
        yield Check("trainers", "wrong", "none is alive", remedy)
        return
    slots = ", ".join(f"{group} {count}" for group, count in sorted(groups(members).items()))
    yield Check("trainers", "fine", f"{len(members)} alive; slots: {slots}")
    for member in members:
        if abs(member.skew) > MAX_SKEW:
            reason, _, remedy = skewed(member).partition("; ")
            yield Check("trainers", "wrong", reason, remedy)


def _dead_letters(servers: Servers) -> Iterator[Check]:
    found = servers.bus.depth(names.DEAD_LETTERS)
    if not found or not found[0]:
        yield Check("dead letters", "fine", "none")
        return
    where = servers.settings.rabbitmq_url
    console_url = f" at {where.get_secret_value()}" if where else ""
    yield Check(
        "dead letters",
        "wrong",
        f"{found[0]} {'message was' if found[0] == 1 else 'messages were'} given up on",
        f"look at them in RabbitMQ's console{console_url}, queue {names.DEAD_LETTERS}: "
        "the header x-fedq-reason or x-death says why; purge the queue when they are dealt with",
    )


def _clock(whose: str, theirs: float) -> Check:
    off = time.time() - theirs
    if abs(off) <= MAX_SKEW:
        return Check("clocks", "fine", f"this machine and {whose} agree within {max(1, math.ceil(abs(off)))} s")
    way = "ahead of" if off > 0 else "behind"
    return Check("clocks", "wrong", f"this machine is {abs(off):.0f} s {way} {whose}", "synchronise both by NTP")


def _date_of(url: str) -> float | None:
    """The clock of an HTTP server, from the Date header of any answer."""
    try:
        with _direct.open(url, timeout=PATIENCE) as response:  # the settings allow only http and https
            headers = response.headers
    except urllib.error.HTTPError as error:
        headers = error.headers
        error.close()
    except OSError:
        return None
    date = headers.get("Date")
    return email.utils.parsedate_to_datetime(date).timestamp() if date else None


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy, like the S3 client
