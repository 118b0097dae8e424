"""Jobs listed by how they ended, named as the last one, and removed for good; and silos that do not come back."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.cli.servers import LAST
from shared import names
from shared.amqp import topology
from shared.events import Heartbeat
from tests.conftest import Servers
from tests.scripted import COHORT, DIGITS, ROOT, Aggregator, Fedq, Scripted

SECONDS = 60


@pytest.fixture
def fedq(servers: Servers, tmp_path: Path) -> Any:
    runs = Fedq(servers.environment(), tmp_path)
    yield runs
    for process in runs.running:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def aggregator(servers: Servers) -> Aggregator:
    found = Aggregator(servers, servers.bus("scripted"))
    found.listen()
    return found


def begun(fedq: Fedq, aggregator: Aggregator, job: str) -> Scripted:
    assert fedq("start", DIGITS, "--set", "rounds.count=2", "--id", job).code == 0
    scripted = aggregator.take()
    for number in range(2):
        scripted.ask(number, COHORT if number else COHORT[:1])
        scripted.commit(number, accuracy=0.5)
    return scripted


def traces(servers: Servers, job: str) -> list[str]:
    """Whatever Redis, the bucket and RabbitMQ still hold of a job."""
    queue = names.updates_queue(job)
    found = sorted(key for key in servers.redis().keys("*") if job in key)
    found += [member for member in servers.redis().zrange(names.JOBS, 0, -1) if member == job]
    found += [queue] if servers.bus("look").depth(queue) is not None else []
    return [*found, *servers.blobs().list(names.job_prefix(job))]


def test_jobs_are_listed_by_status_and_number(fedq: Fedq, servers: Servers) -> None:
    """The newest first; a status that no job can have is refused with those that one can."""
    ledger = servers.ledger()
    for job, status in (("a-aaaaaa", "failed"), ("b-aaaaaa", ""), ("c-aaaaaa", "failed"), ("d-aaaaaa", "finished")):
        ledger.create(job, 3)
        if status:
            ledger.end(job, ledger.claim(job, "test", 60), status, "")

    def listed(*arguments: str) -> list[str]:
        return [record["id"] for record in fedq("jobs", "--json", *arguments).document]

    assert listed("--last", "3") == ["d-aaaaaa", "c-aaaaaa", "b-aaaaaa"]
    assert listed("--status", "failed") == ["c-aaaaaa", "a-aaaaaa"]
    assert listed("--status", "failed", "--status", "queued", "--last", "2") == ["c-aaaaaa", "b-aaaaaa"]
    assert fedq("jobs", "--status", "paused").out == "no job is paused\n"
    wrong = fedq("jobs", "--status", "faild")
    assert (wrong.code, wrong.err.partition("; ")[0]) == (2, "error: --status faild is not known")


def test_the_last_job_needs_no_id(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """In every command that takes one."""
    nothing = fedq("show", LAST)
    assert (nothing.code, nothing.err) == (
        2, "error: there is no job that could be the last; `fedq start FILE` starts one\n",
    )  # fmt: skip
    begun(fedq, aggregator, "digits-aaaaaa").end(rounds=1, accuracy=0.5)
    begun(fedq, aggregator, "digits-bbbbbb").end(rounds=2, accuracy=0.5)

    assert fedq("show", LAST, "--json").document["id"] == "digits-bbbbbb"
    assert fedq("results", LAST, "--json").document["job"] == "digits-bbbbbb"
    assert fedq("replay", LAST, "1", "--json").document["job"] == "digits-bbbbbb"
    assert fedq("watch", LAST, "--json").lines[-1].count('"digits-bbbbbb"')
    assert fedq("track", LAST, "--tensorboard", "curves").code == 0
    assert (fedq.folder / "curves/digits-bbbbbb").is_dir()
    for command in ("stop", "pause", "resume"):
        assert "job digits-bbbbbb has ended already: finished" in fedq(command, LAST).err
    assert "job digits-bbbbbb has 1 committed rounds" in fedq("start", "--resume", LAST, "--set", "rounds.count=1").err
    assert "digits-bbbbbb" in fedq("verify", LAST, "--json").out
    assert "last is no job's id" not in fedq("logs", LAST, "--on", "native").err
    assert fedq("rm", LAST, "--yes").out.startswith("removed digits-bbbbbb: ")
    assert fedq("show", LAST, "--json").document["id"] == "digits-aaaaaa"


def test_an_ended_job_is_removed_without_a_trace(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """From Redis, the bucket and RabbitMQ; its neighbour, whose id begins alike, stays as it is."""
    begun(fedq, aggregator, "digits-aaaaaa").end(rounds=2, accuracy=0.5)
    begun(fedq, aggregator, "digits-aaaaaa-bbbbbb").end("failed", "no reason")
    servers.ledger().note("refused", "client-01: holds NaN", "digits-aaaaaa", 1)
    servers.bus("late").declare(topology.updates("digits-aaaaaa"))  # as one that came late leaves it
    neighbour = [key for key in traces(servers, "digits-aaaaaa") if "bbbbbb" in key]
    assert neighbour

    asked = fedq("rm", "digits-aaaaaa")
    assert (asked.code, asked.out) == (2, "")
    assert asked.err.endswith("digits-aaaaaa (finished). Without a terminal to be asked in, say --yes\n")
    done = fedq("rm", "digits-aaaaaa", "--yes")
    assert (done.code, done.err) == (0, "")
    assert traces(servers, "digits-aaaaaa") == neighbour

    again = fedq("rm", "digits-aaaaaa", "--yes")
    assert (again.code, again.err) == (2, "error: there is no job digits-aaaaaa; `fedq jobs` lists them\n")
    assert fedq("rm", "--status", "failed", "--yes").out.startswith("removed digits-aaaaaa-bbbbbb: ")
    assert traces(servers, "digits-aaaaaa") == []
    assert fedq("rm", "--status", "failed", "--yes").out == "no job is failed\n"


def test_a_job_that_has_not_ended_is_not_removed(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """Nor is any other that is named with it; also where Redis has forgotten that it runs."""
    begun(fedq, aggregator, "digits-aaaaaa").end(rounds=2, accuracy=0.5)
    begun(fedq, aggregator, "digits-bbbbbb")
    before = traces(servers, "digits-")

    for _ in range(2):
        refused = fedq("rm", "digits-aaaaaa", "digits-bbbbbb", "--yes")
        assert refused.code == 2
        assert refused.err.endswith("end it with `fedq stop digits-bbbbbb` before it is removed\n")
        assert set(traces(servers, "digits-")) >= {key for key in before if key.startswith("jobs/")}
        servers.redis().flushdb()


def test_what_an_interrupted_command_left_is_removed(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """Redis has forgotten the job, and the bucket has it wholly or in part."""
    for left in (lambda: None, lambda: servers.blobs().remove([names.job_blob("digits-aaaaaa")])):
        begun(fedq, aggregator, "digits-aaaaaa").end(rounds=2, accuracy=0.5)
        servers.redis().flushdb()
        left()
        assert fedq("rm", "digits-aaaaaa", "--yes").code == 0
        assert traces(servers, "digits-aaaaaa") == []


@pytest.mark.parametrize("jobs", [["../x"], ["digits-*"], ["*"], [""], ["digits-nobody", "--status", "failed"]])
def test_what_is_no_job_removes_nothing(fedq: Fedq, servers: Servers, jobs: list[str]) -> None:
    """Whatever it would match."""
    servers.ledger().create("digits-nobod2", 1)
    assert fedq("rm", "--yes", *jobs).err.startswith(f"error: there is no job {jobs[0] or repr('')};")
    assert fedq("rm", "--yes").err == "error: there is nothing to remove: give JOB, or --status failed\n"
    assert servers.ledger().job("digits-nobod2")


def test_a_person_is_asked(aggregator: Aggregator, fedq: Fedq, servers: Servers) -> None:
    """In a terminal; all but yes is no."""
    begun(fedq, aggregator, "digits-aaaaaa").end(rounds=2, accuracy=0.5)
    for answer, code in (("\n", 1), ("y\n", 0)):
        leader, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "rm", LAST],
            env={**os.environ, **servers.environment(), "PYTHONPATH": str(ROOT)},
            cwd=fedq.folder, stdin=terminal, stderr=terminal, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.write(leader, answer.encode())
        assert process.wait(SECONDS) == code
        assert "Go on? [y/N]" in os.read(leader, 4096).decode()
        for end in (leader, terminal):
            os.close(end)
        assert bool(traces(servers, "digits-aaaaaa")) == bool(code)


def silo(servers: Servers, client: str) -> Heartbeat:
    for queue in (topology.rounds(client), topology.Queue(names.tasks_queue(client))):
        servers.bus("silo").declare(queue)
    return Heartbeat(
        trainer=f"{client}-1", pool=None, client=client, host="h", pid=1, device="cpu", slots=1, busy=0, sent_at=0.0
    )


def test_the_queues_of_a_silo_are_forgotten(fedq: Fedq, servers: Servers) -> None:
    """Only for good: one that is away for a while keeps what waits for it."""
    beat = silo(servers, "north")
    silo(servers, "south")
    depth = servers.bus("look").depth

    servers.roster().admit(beat, 60)
    serving = fedq("nodes", "--forget", "north", "--yes")
    assert (serving.code, "north has trainers, north-1: stop them" in serving.err) == (2, True)
    servers.roster().remove(beat.trainer)

    spec = ["--set", "pool=null", "--set", "silos=[north, east]", "--set", "select={name: all}"]
    spec += ["--set", "data={name: digits}", "--set", "rounds={count: 1}"]
    assert fedq("start", DIGITS, "--id", "digits-aaaaaa", *spec).code == 0
    needed = fedq("nodes", "--forget", "north", "--yes")
    assert (needed.code, "job digits-aaaaaa is queued and asks north" in needed.err) == (2, True)
    servers.ledger().end("digits-aaaaaa", servers.ledger().claim("digits-aaaaaa", "test", 60), "stopped", "")

    listener = servers.bus("listener")
    consumer = listener.consume(topology.rounds("north"), lambda _: None)
    listened = fedq("nodes", "--forget", "north", "--yes")
    assert (listened.code, "somebody listens to trainer.rounds.north" in listened.err) == (2, True)
    listener.cancel(consumer)

    done = fedq("nodes", "--forget", "north", "--yes")
    assert (done.code, done.out) == (0, "forgot north: removed trainer.rounds.north, trainer.tasks.north\n")
    assert (depth("trainer.rounds.north"), depth("trainer.tasks.north")) == (None, None)
    assert depth("trainer.rounds.south") is not None
    assert "no queue waits for north" in fedq("nodes", "--forget", "north", "--yes").err
    assert "is no name of a silo" in fedq("nodes", "--forget", "nor th", "--yes").err
