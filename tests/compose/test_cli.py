"""`fedq scale`, `fedq logs` and `fedq compose` with containers that are real."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared import names
from tests.compose.containers import SECONDS, TRAINERS, Federation, said
from tests.harness import FEDQ, ROOT


class Fedq:
    """The command line beside one project, whatever others run on this machine."""

    def __init__(self, federation: Federation) -> None:
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")},
            **federation.containers.environment(),
            "COMPOSE_PROJECT_NAME": federation.containers.project.name,
        }

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [FEDQ, *arguments],
            env=self._environment, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def fedq(federation: Federation) -> Fedq:
    return Fedq(federation)


def test_scale_starts_trainers_and_waits_for_them(
    fedq: Fedq, federation: Federation, measured: Callable[[str], None]
) -> None:
    """Those that run go on as they are; fewer again, and the others are gone when it ends."""
    before = {one["Id"] for one in federation.containers.inspect("trainer")}
    grown = fedq.json("scale", "4", "--on", "compose")
    after = {one["Id"] for one in federation.containers.inspect("trainer")}

    assert (grown["on"], grown["pool"], grown["before"], grown["wanted"], grown["alive"]) == ("compose", "cpu", 2, 4, 4)
    assert before < after
    assert len(after) == 4
    measured(f"four trainers in the roster {grown['seconds']} s after the command")
    shrunk = fedq("scale", str(TRAINERS), "--on", "compose")
    project = federation.containers.project.name
    assert shrunk == f"service trainer of compose project {project}: 4 → {TRAINERS} trainers of pool cpu\n"
    federation.trained(TRAINERS)


def test_a_pool_without_a_service_is_named_with_the_services(fedq: Fedq, federation: Federation) -> None:
    """As `--pool` may be a slip of the pen."""
    error = fedq("scale", "2", "--pool", "cup", "--on", "compose", code=2)

    assert (
        "has no service trainer-cup, whose containers would be the trainers of pool cup; it has aggregator, " in error
    )
    assert "trainer, trainer-gpu" in error


def test_logs_are_a_jobs_lines_of_all_containers(fedq: Fedq) -> None:
    """Each with the replica that wrote it."""
    job = fedq("start", "examples/digits.yaml", "--set", "rounds.count=2", "--watch").splitlines()[0]
    found = [json.loads(line) for line in fedq("logs", job, "--on", "compose", "--json").splitlines()]

    assert [line["timestamp"] for line in found] == sorted(line["timestamp"] for line in found)
    assert {line["source"] for line in found} == {"aggregator-1", "trainer-1", "trainer-2"}
    assert sum(line["event"] == "trained" for line in found) == 1 + 2 * 10
    assert [line["round"] for line in found if line["event"] == "committed"] == [0, 1, 2]


@pytest.fixture
def clients(fedq: Fedq, federation: Federation, tmp_path: Path) -> Iterator[list[str]]:
    """Compose for the file of `fedq compose --trainers 2 --slow 1`, whose clients join the servers that run."""
    file = tmp_path / "my.yaml"
    file.write_text(fedq("compose", "--trainers", "2", "--slow", "1"))
    project = federation.containers.project
    words = ["docker", "compose", "-p", project.name, "--env-file", str(project.variables), "-f", str(file)]
    said(*words, "config", "-q")
    yield words
    said(*words, "rm", "--stop", "--force", "--volumes", "slow-1", "fast-1")
    bus = federation.servers.bus("tidy")  # a client's queues stay: it may come back
    for name in ("slow-1", "fast-1"):
        bus.delete(names.rounds_queue(name))
        bus.delete(names.tasks_queue(name))


def test_clients_of_ones_own_compose_file_train(fedq: Fedq, federation: Federation, clients: list[str]) -> None:
    """Silos by the names that the file gives them, with the processors that it gives them, and no data of their own."""
    said(*clients, "up", "--detach", "--no-deps", "slow-1", "fast-1")
    federation.trained(TRAINERS + 2)
    limits = {
        name: json.loads(said("docker", "inspect", said(*clients, "ps", "--quiet", name).strip()))[0]["HostConfig"]
        for name in ("slow-1", "fast-1")
    }
    changes = ("silos=[slow-1, fast-1]", "rounds.count=2", "rounds.target=2", "rounds.minimum=2")
    words = [word for change in changes for word in ("--set", change)]
    job = fedq("start", "examples/heterogeneous_silos.yaml", *words, "--watch").splitlines()[0]

    assert {name: limit["NanoCpus"] for name, limit in limits.items()} == {"slow-1": 5 * 10**8, "fast-1": 125 * 10**7}
    assert fedq.json("show", job)["participation"].keys() == {"slow-1", "fast-1"}
    assert fedq.json("verify", job)["holds"] is True
