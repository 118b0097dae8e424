"""`fedq doctor`: a federation that is well, and each thing that may be wrong with it."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from shared import names
from shared.amqp import topology
from shared.events import Heartbeat
from tests.conftest import Servers

ROOT = Path(__file__).parents[2]
ALL = ["RabbitMQ", "policies", "Redis", "object store", "aggregator", "registry", "trainers", "dead letters"]


@dataclass
class Examination:
    """What the doctor said."""

    code: int
    findings: list[dict[str, str]]

    @property
    def bad(self) -> dict[str, str]:
        """What is wrong or away, by what it is about."""
        bad = [finding for finding in self.findings if finding["state"] in ("wrong", "away")]
        return {finding["about"]: f"{finding['sentence']} → {finding['remedy']}" for finding in bad}


def doctor(environment: dict[str, str]) -> Examination:
    done = run(environment, "--json")
    document = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode
    about = [finding["about"] for finding in document["findings"]]
    assert [part for part in ALL if part not in about] == [], "every check runs, whatever the others find"
    return Examination(done.returncode, document["findings"])


def run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "doctor", *arguments],
        env={**inherited, **environment, "PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done


@pytest.fixture
def well(servers: Servers) -> dict[str, str]:
    """The settings of a federation with everything in place."""
    bus = servers.bus()
    for queue in (topology.commands(), topology.heartbeats()):
        bus.consume(queue, lambda _delivery: None)
    admit(servers, "t1")
    return servers.environment()


def admit(servers: Servers, trainer: str, skew: float = 0.0) -> None:
    told: dict[str, Any] = {"pool": "cpu", "client": None, "device": "cpu", "slots": 2, "busy": 0}
    beat = Heartbeat(trainer=trainer, host="h", pid=1, sent_at=servers.ledger().now() + skew, **told)
    servers.roster().admit(beat, 120)


def test_a_federation_that_is_well(well: dict[str, str]) -> None:
    """Every line has its mark, its server's version and no remedy."""
    done = run(well)

    assert done.returncode == 0
    assert all(line.startswith("✓ ") for line in done.stdout.splitlines())
    for part in ("RabbitMQ: RabbitMQ ", "policies: all 5 hold", "Redis: Redis 7", "trainers: 1 alive; slots: cpu 2"):
        assert part in done.stdout


def test_services_that_do_not_run(servers: Servers) -> None:
    """Each with how to start it; that is no unreachable server, so exit code 1."""
    found = doctor(servers.environment())

    assert found.code == 1
    assert found.bad.keys() == {"aggregator", "registry", "trainers"}
    for service in ("aggregator", "registry"):
        assert f"python -m services.{service}" in found.bad[service]


@pytest.mark.parametrize(
    ("setting", "about"),
    [("FEDQ_AMQP_URL", "RabbitMQ"), ("FEDQ_REDIS_URL", "Redis"), ("FEDQ_S3_URL", "object store")],
)
def test_a_server_that_is_away(well: dict[str, str], setting: str, about: str) -> None:
    """The others are still looked at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        parts = urlsplit(well[setting])
        away = parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{probe.getsockname()[1]}")
        found = doctor({**well, setting: away.geturl()})

    assert found.code == 3
    assert found.bad.keys() == {about}
    assert setting in found.bad[about]


@pytest.mark.parametrize(
    ("setting", "about", "sentence"),
    [
        ("FEDQ_AMQP_URL", "RabbitMQ", "refuses these credentials"),
        ("FEDQ_REDIS_URL", "Redis", "refuses this password"),
        ("FEDQ_S3_SECRET_KEY", "object store", "refuses these credentials"),
        ("FEDQ_S3_BUCKET", "object store", "there is no such bucket"),
    ],
)
def test_credentials_that_are_wrong(well: dict[str, str], setting: str, about: str, sentence: str) -> None:
    """As bad as a server that is away, and said otherwise."""
    head, at, place = well[setting].rpartition("@")
    found = doctor({**well, setting: f"{head}x{at}{place}" if at else f"{place}x"})

    assert found.code == 3
    assert sentence in found.bad[about]


def test_a_user_without_rights(well: dict[str, str], servers: Servers) -> None:
    """A trainer's keys do not operate a federation."""
    trainer = servers.environment("trainer")
    found = doctor({**well, **{name: trainer[name] for name in ("FEDQ_AMQP_URL", "FEDQ_S3_ACCESS_KEY")}})
    assert found.code == 3
    assert "refuses what this user tries" in found.bad["RabbitMQ"]
    assert "tag policymaker" in found.bad["policies"]

    own = {name: trainer[name] for name in ("FEDQ_S3_ACCESS_KEY", "FEDQ_S3_SECRET_KEY")}
    assert "their rights on the bucket" in doctor({**well, **own}).bad["object store"]


def test_policies_that_do_not_hold(well: dict[str, str], servers: Servers) -> None:
    """Absent, covering something else, or outranked by another."""
    api, vhost = servers.stack.rabbitmq, servers.vhost
    other = {"pattern": "^nothing$", "apply-to": "queues", "definition": {"max-length": 1}}
    api.call("DELETE", f"policies/{vhost}/fedq-work")
    api.call("PUT", f"policies/{vhost}/fedq-updates", other)
    api.call("PUT", f"policies/{vhost}/mine", {**other, "pattern": "^dead-letters$", "priority": 7})
    found = doctor(well)

    assert found.code == 1
    assert found.bad == {
        "policies": f"vhost {vhost} lacks fedq-work, fedq-updates (does not cover {names.updates_queue('any')}), "
        "fedq-dead-letters (outranked by mine) → load deploy/definitions.json into the vhost"
    }


def test_policies_that_cannot_be_looked_at(well: dict[str, str]) -> None:
    """Without the management API's address that is said, and is no fault."""
    del well["FEDQ_RABBITMQ_URL"]
    found = doctor(well)

    assert found.code == 0
    assert [finding["about"] for finding in found.findings if finding["state"] == "unknown"] == ["policies"]


def test_a_clock_that_is_off(well: dict[str, str], servers: Servers) -> None:
    """With whose and by how much."""
    admit(servers, "t2", skew=-90.0)
    found = doctor(well)

    assert found.code == 1
    assert found.bad == {"trainers": "the clock of h (t2) is 90.0 s behind Redis's → synchronise it"}


def test_messages_that_were_given_up_on(well: dict[str, str], servers: Servers) -> None:
    """How many, and where to look."""
    servers.bus().declare(topology.dead_letters())
    for _ in range(2):
        servers.stack.rabbitmq.call(
            "POST",
            f"exchanges/{servers.vhost}/amq.default/publish",
            {"properties": {}, "routing_key": names.DEAD_LETTERS, "payload": "?", "payload_encoding": "string"},
        )
    found = doctor(well)

    assert found.code == 1
    assert found.bad["dead letters"].startswith("2 messages were given up on → look at them in RabbitMQ's console")
