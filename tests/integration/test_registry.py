"""The registry as a process: heartbeats in, and the roster, the log and HTTP answers out."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared import names
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.events import Heartbeat, TrainerJoined
from tests.conftest import Servers

ROOT = Path(__file__).parents[2]
SECONDS = 40.0  # RabbitMQ takes ten to start again
INTERVAL = 0.2  # seconds between two heartbeats
FOREVER = 10_000  # heartbeats that a trainer may miss; a lease that no busy machine outlasts
BRIEF = 3


@dataclass
class Registry:
    """One registry process, its log lines, and its answers."""

    process: subprocess.Popen[str]
    url: str
    lines: "queue.SimpleQueue[dict[str, Any]]" = field(default_factory=queue.SimpleQueue)

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(json.loads(line) if line.startswith("{") else {"event": line})

    def hear(self, event: str) -> dict[str, Any]:
        """The next log line of this event."""
        while True:
            line = self.lines.get(timeout=SECONDS)
            if line["event"] == event:
                return line

    def get(self, path: str) -> tuple[int, Any]:
        """Status and document of an answer."""
        answer = httpx.get(f"{self.url}/{path}", timeout=SECONDS)
        is_json = answer.headers["content-type"].startswith("application/json")
        return answer.status_code, answer.json() if is_json else answer.text

    def until(self, path: str, wanted: int) -> Any:
        """The first answer with that status."""
        deadline = time.monotonic() + SECONDS
        while (found := self.get(path))[0] != wanted:
            assert time.monotonic() < deadline, found
        return found[1]


def launch(servers: Servers, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
    return subprocess.Popen(
        [sys.executable, "-m", "services.registry"],
        cwd=ROOT,
        env={**inherited, **servers.environment(), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def registry(servers: Servers, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """A registry; a test that sees leases run out gives how many heartbeats may be missed."""
    patience = getattr(request, "param", FOREVER)
    process = launch(servers, FEDQ_HEARTBEAT_S=str(INTERVAL), FEDQ_PATIENCE=str(patience))
    found = Registry(process, servers.environment()["FEDQ_REGISTRY_URL"])
    reader = threading.Thread(target=found.read)
    reader.start()
    found.hear("ready")
    yield found
    process.kill()
    process.wait()
    reader.join()
    assert process.stderr is not None
    process.stderr.close()


def beat(trainer: str = "t1", **fields: Any) -> Heartbeat:
    told = {"pool": "cpu", "client": None, "slots": 2, "busy": 1, "sent_at": time.time(), **fields}
    return Heartbeat(trainer=trainer, host="somewhere", pid=1, device="cpu", **told)


@pytest.fixture
def bus(servers: Servers) -> Bus:
    return servers.bus()


def test_a_trainer_joins_and_those_who_wait_are_told(registry: Registry, servers: Servers, bus: Bus) -> None:
    """Once: its next heartbeats only renew the lease."""
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    bus.serve(topology.Queue("test.joined", ("trainer-joined.#",)), told.put)
    for _ in range(3):
        bus.publish(beat())
    assert told.get(timeout=SECONDS) == TrainerJoined(trainer="t1", group="cpu")

    assert registry.hear("joined")["trainer"] == "t1"
    bus.publish(beat("t2"))
    assert told.get(timeout=SECONDS).trainer == "t2"
    assert told.empty()


@pytest.mark.parametrize("registry", [BRIEF], indirect=True)
def test_a_silent_trainer_is_lost_when_its_lease_runs_out(registry: Registry, servers: Servers, bus: Bus) -> None:
    """Not before."""
    bus.publish(beat())
    joined, lost = (datetime.fromisoformat(registry.hear(event)["timestamp"]) for event in ("joined", "lost"))

    assert (lost - joined).total_seconds() > BRIEF * INTERVAL - 0.1
    assert servers.roster().alive() == []
    assert servers.redis().exists(names.trainer_key("t1")) == 0


def test_a_leaving_trainer_is_gone_at_once(registry: Registry, servers: Servers, bus: Bus) -> None:
    """Nobody waits for its lease."""
    bus.publish(beat())
    registry.hear("joined")
    bus.publish(beat(leaving=True))

    assert registry.hear("left")["trainer"] == "t1"
    assert servers.roster().alive() == []


def test_a_body_that_is_no_event_is_put_aside(registry: Registry, servers: Servers, bus: Bus) -> None:
    """And the next heartbeat is heard."""
    api = servers.stack.rabbitmq
    api.call(
        "POST",
        f"exchanges/{servers.vhost}/{names.EVENTS}/publish",
        {
            "properties": {"type": "heartbeat"},
            "routing_key": "heartbeat.x",
            "payload": "?",
            "payload_encoding": "string",
        },
    )
    assert "an event is a map" in registry.hear("dead-lettered")["reason"]
    bus.publish(beat())
    registry.hear("joined")

    assert bus.depth(names.DEAD_LETTERS) == (1, 0)


def test_it_answers_for_the_whole(registry: Registry, servers: Servers, bus: Bus) -> None:
    """Health, trainers, jobs and metrics, in JSON and in Prometheus's format."""
    ledger = servers.ledger()
    ledger.create("digits-aaaaaa", 15)
    fence = ledger.claim("digits-aaaaaa", "me", 60)
    ledger.set_metrics("digits-aaaaaa", fence, {"accuracy": 0.5})
    ledger.open_round("digits-aaaaaa", fence, 0, 1, ("a",), 60)
    for fault in ("refused", "refused", "takeover"):
        ledger.note(fault, "why", "digits-aaaaaa", 0)
    bus.publish(beat())
    registry.hear("joined")

    assert registry.get("healthz") == (200, {"status": "ok", "away": []})
    (node,) = registry.get("nodes")[1]
    assert (node["trainer"], node["pool"], node["slots"], node["busy"]) == ("t1", "cpu", 2, 1)
    assert [job["id"] for job in registry.get("jobs")[1]] == ["digits-aaaaaa"]
    job = registry.get("jobs/digits-aaaaaa")[1]
    assert (job["status"], job["open_round"]["cohort"]) == ("running", ["a"])
    status, document = registry.get("jobs/none")
    assert status == 404
    assert "there is no job none" in document["detail"]
    lines = registry.get("metrics")[1].splitlines()
    for line in (
        'fedq_trainers{group="cpu"} 1.0',
        'fedq_slots{group="cpu"} 2.0',
        'fedq_busy_slots{group="cpu"} 1.0',
        'fedq_jobs{status="running"} 1.0',
        'fedq_jobs{status="failed"} 0.0',
        'fedq_job_round{job="digits-aaaaaa"} -1.0',
        'fedq_job_accuracy{job="digits-aaaaaa"} 0.5',
        'fedq_jobs{status="paused"} 0.0',
        'fedq_faults_total{fault="refused"} 2.0',
        'fedq_faults_total{fault="takeover"} 1.0',
        "fedq_heartbeats_total 1.0",
        "fedq_trainers_joined_total 1.0",
    ):
        assert line in lines


@pytest.mark.parametrize("registry", [BRIEF], indirect=True)
def test_it_outlives_redis(registry: Registry, servers: Servers, bus: Bus) -> None:
    """While Redis is away it says so; a heartbeat of that time counts when it is back."""
    servers.stack.redis.stop()
    try:
        document = registry.until("healthz", 503)
        assert "cannot be reached" in document["away"][0]
        for path in ("nodes", "jobs", "metrics"):
            status, document = registry.get(path)
            assert status == 503
            assert "cannot be reached" in document["detail"]
        bus.publish(beat())
        registry.hear("not swept")
    finally:
        servers.stack.redis.start()
    registry.hear("joined")

    assert registry.until("healthz", 200) == {"status": "ok", "away": []}


def test_it_outlives_rabbitmq(registry: Registry, servers: Servers) -> None:
    """While it is away it says so; it comes back by itself and hears heartbeats again."""
    servers.stack.rabbitmq.stop()
    try:
        document = registry.until("healthz", 503)
        assert "no heartbeats are received" in document["away"][0]
        assert registry.get("nodes") == (200, [])
    finally:
        servers.stack.rabbitmq.start()
    registry.until("healthz", 200)
    servers.bus().publish(beat())

    assert registry.hear("joined")["trainer"] == "t1"


@pytest.mark.parametrize("registry", [BRIEF], indirect=True)
def test_two_of_them_share_the_work(
    registry: Registry, servers: Servers, bus: Bus, request: pytest.FixtureRequest
) -> None:
    """Each loss is named by one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"FEDQ_HEARTBEAT_S": str(INTERVAL), "FEDQ_PATIENCE": str(BRIEF)}
    other = launch(servers, FEDQ_REGISTRY_URL=f"http://127.0.0.1:{port}", **settings)
    request.addfinalizer(other.kill)
    assert other.stderr is not None
    while json.loads(other.stderr.readline())["event"] != "ready":
        pass
    for number in range(10):
        bus.publish(beat(f"t{number}"))
    deadline = time.monotonic() + SECONDS
    while servers.redis().zcard(names.ROSTER) < 10:
        assert time.monotonic() < deadline
    while servers.redis().zcard(names.ROSTER):
        assert time.monotonic() < deadline
    other.terminate()
    theirs = [json.loads(line) for line in other.stderr]
    other.stderr.close()
    registry.process.terminate()
    registry.process.wait(SECONDS)
    mine: list[dict[str, Any]] = []
    while not mine or mine[-1]["event"] != "stopping":
        mine.append(registry.lines.get(timeout=SECONDS))

    lost = [line["trainer"] for line in (*mine, *theirs) if line["event"] == "lost"]
    assert sorted(lost) == [f"t{number}" for number in range(10)]
    assert other.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_asked(registry: Registry, number: signal.Signals) -> None:
    """With exit code 0."""
    registry.process.send_signal(number)

    assert registry.process.wait(SECONDS) == 0


def test_a_taken_port_is_a_sentence(registry: Registry, servers: Servers) -> None:
    """And exit code 3."""
    other = launch(servers)
    _, errors = other.communicate(timeout=SECONDS)

    assert other.returncode == 3
    assert errors.startswith(f"error: {registry.url} cannot be served (Address already in use)")
    assert errors.count("\n") == 1
