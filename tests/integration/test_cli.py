"""The command line against real servers, with jobs whose every step is scripted."""

import json
import signal
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from safetensors import safe_open

from shared import names
from shared.amqp import topology
from shared.events import Heartbeat, Missing, PauseTraining, StopTraining, TrainingEnd
from shared.redis.ledger import Wanted
from tests.conftest import Servers
from tests.scripted import COHORT, DIGITS, LAYOUT, Aggregator, Fedq, Scripted


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
    return Aggregator(servers, servers.bus("scripted"))


def test_start_watch_follows_a_job_to_its_last_line(fedq: Fedq, aggregator: Aggregator) -> None:
    """The id first, what came of each round, and the result as the last line, for scripts."""
    aggregator.listen()
    process = fedq.begin("start", DIGITS, "--set", "rounds.count=2", "--watch")
    job = aggregator.take()
    job.say("waiting", "no trainer of pool cpu is alive")
    for number in range(3):
        job.ask(number, COHORT if number else COHORT[:1])
        job.commit(number, accuracy=0.25 * (1 + number))
    job.end(rounds=2, accuracy=0.75)
    done = fedq.finish(process)

    assert done.code == 0
    assert done.err == ""
    assert done.lines[0] == job.job
    assert [line for line in done.lines[1:] if not line.startswith(("queued", "running"))] == [
        "waiting: no trainer of pool cpu is alive",
        "round 0/2: the initial model is there, 1.0 s",
        "round 0/2: test loss 0.500, accuracy 0.250",
        "round 1/2: committed 2 updates, 1 rejected, clients' loss 1.500, accuracy 0.250, 1.0 s",
        "round 1/2: test loss 0.500, accuracy 0.500",
        "round 2/2: committed 2 updates, 1 rejected, clients' loss 1.500, accuracy 0.250, 1.0 s",
        "round 2/2: test loss 0.500, accuracy 0.750",
        "accuracy 0.750 after 2 rounds (12.3 s)",
    ]


def test_json_is_an_object_a_line(fedq: Fedq, aggregator: Aggregator) -> None:
    """The id, then the events as the bus carried them, the end last."""
    aggregator.listen()
    process = fedq.begin("start", DIGITS, "--watch", "--json", "--id", "digits-aaaaaa")
    job = aggregator.take()
    job.ask(0, COHORT[:1])
    job.commit(0)
    job.end()
    done = fedq.finish(process)

    first, *events = [json.loads(line) for line in done.lines]
    assert first == {"job": "digits-aaaaaa"}
    kinds = [event["event"] for event in events if event["event"] != "job-status"]
    assert kinds == ["round-start", "model-update", "round-end", "training-end"]
    assert events[-1]["outcome"] == "finished"


def test_start_alone_prints_the_id_and_says_what_it_waits_for(fedq: Fedq, servers: Servers) -> None:
    """The id for scripts, the rest for people."""
    done = fedq("start", DIGITS)

    assert done.code == 0
    (job,) = done.lines
    assert done.err == "queued: no aggregator is running; start one with `python -m services.aggregator`\n"
    assert servers.ledger().required(job).status == "queued"
    assert servers.blobs().get_json(names.job_blob(job))["spec"]["seed"] == 7
    bus = servers.bus()
    assert bus.depth(names.COMMANDS) == (1, 0)
    assert bus.depth(names.updates_queue(job)) == (0, 0)
    assert fedq("start", DIGITS, "--json").document["job"].startswith("digits-")


def test_an_id_is_given_once(fedq: Fedq) -> None:
    """The second start of it names the first, and changes nothing."""
    assert fedq("start", DIGITS, "--id", "digits-first1").code == 0
    again = fedq("start", DIGITS, "--id", "digits-first1")

    assert again.code == 2
    assert again.err == (
        "error: job digits-first1 exists already (status queued); choose another --id or leave it out\n"
    )
    assert [record["id"] for record in fedq("jobs", "--json").document] == ["digits-first1"]
    assert "such as digits-first1" in fedq("start", DIGITS, "--id", "First").err


def test_a_full_queue_takes_the_start_back(fedq: Fedq, servers: Servers) -> None:
    """No record, no job.json and no mailbox is left of a job that nobody heard of."""
    bus = servers.bus()
    bus.declare(topology.commands())
    full = {"pattern": "^aggregator", "definition": {"max-length": 0, "overflow": "reject-publish"}, "priority": 9}
    api = servers.stack.rabbitmq
    api.call("PUT", f"policies/{servers.vhost}/full", {**full, "apply-to": "queues"})
    for _ in range(5):  # the length is a quorum queue's soft limit
        done = fedq("start", DIGITS, "--id", "digits-aaaaaa")
        if done.code:
            break
        servers.ledger().forget("digits-aaaaaa")
        servers.blobs().delete(names.job_blob("digits-aaaaaa"))

    assert done.code == 3
    assert done.out == ""
    assert done.err.startswith("error: RabbitMQ refuses start-training: its queue is full")
    assert servers.ledger().job("digits-aaaaaa") is None
    assert not servers.blobs().exists(names.job_blob("digits-aaaaaa"))
    assert bus.depth(names.updates_queue("digits-aaaaaa")) is None


def test_watch_comes_late_and_misses_nothing(fedq: Fedq, aggregator: Aggregator) -> None:
    """What is over comes from the record, what is open too, and the rest by events."""
    aggregator.listen()
    fedq("start", DIGITS, "--set", "rounds.count=2", "--id", "digits-aaaaaa")
    job = aggregator.take()
    for number in range(2):
        job.ask(number, COHORT if number else COHORT[:1])
        job.commit(number, accuracy=0.5)
    job.ask(2)
    process = fedq.begin("watch", "digits-aaaaaa")
    assert process.stdout is not None
    seen = ""
    while "running" not in seen:
        seen += process.stdout.readline()
    job.commit(2)
    job.end(rounds=2)
    done = fedq.finish(process)

    assert "round 1/2: committed 2 updates" in seen
    assert "round 1/2: test loss 0.500, accuracy 0.500" in seen
    assert "round 2/2: committed 2 updates" in done.out
    assert done.lines[-1] == "finished after 2 rounds (12.3 s)"
    assert fedq("watch", "digits-aaaaaa").lines == ["finished after 2 rounds (12.3 s)"]


def test_watch_outlives_its_connection(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """Events sent while RabbitMQ had lost it are made up for by the record, at once."""
    aggregator.listen()
    fedq("start", DIGITS, "--id", "digits-aaaaaa")
    job = aggregator.take()
    job.say("waiting", "no trainer")
    process = fedq.begin("watch", "digits-aaaaaa")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting: no trainer\n"
    api = servers.stack.rabbitmq
    mine: list[str] = []
    while not mine:  # the console learns of a connection some seconds late
        consumers = api.call("GET", f"consumers/{servers.vhost}")
        watchers = [found for found in consumers if found["queue"]["name"].startswith("watcher.")]
        mine = [found["channel_details"]["connection_name"] for found in watchers if found["channel_details"]]
    job.end("failed", "told while nobody listened", announced=False)
    for connection in mine:
        api.call("DELETE", f"connections/{quote(connection)}")
    done = fedq.finish(process)

    assert done.code == 1
    assert done.err == "error: job digits-aaaaaa failed: told while nobody listened\n"


def test_a_job_that_failed_is_exit_code_1(fedq: Fedq, aggregator: Aggregator) -> None:
    """Its reason on standard error, whether it is watched or looked at later."""
    aggregator.listen()
    process = fedq.begin("start", DIGITS, "--watch", "--id", "digits-aaaaaa")
    job = aggregator.take()
    job.end("failed", "round 1: 3 of 8 updates at the deadline")
    watched, late = fedq.finish(process), fedq("watch", "digits-aaaaaa")

    for done in (watched, late):
        assert done.code == 1
        assert done.err == "error: job digits-aaaaaa failed: round 1: 3 of 8 updates at the deadline\n"


def test_stop_waits_for_the_end(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """The request is in the bucket and in the ledger when the bell rings; a job that has ended cannot be stopped."""
    aggregator.listen()
    fedq("start", DIGITS, "--id", "digits-aaaaaa")
    job = aggregator.take()
    job.ask(0, COHORT[:1])
    stopping = fedq.begin("stop", "digits-aaaaaa", "--reason", "enough")
    assert job.bell() == StopTraining(job="digits-aaaaaa", reason="enough")
    assert servers.ledger().renew("digits-aaaaaa", job.fence, 60) == Wanted("stopped", "enough")
    record = servers.blobs().get_json(names.wanted_blob("digits-aaaaaa"))
    assert record == {"job": "digits-aaaaaa", "wanted": "stopped", "reason": "enough"}
    job.end("stopped", "enough")
    done = fedq.finish(stopping)

    assert (done.code, done.out) == (0, "job digits-aaaaaa stopped after 0 rounds\n")
    assert fedq("stop", "digits-aaaaaa").err == "error: job digits-aaaaaa has ended already: stopped\n"
    watched = fedq("watch", "digits-aaaaaa")
    assert (watched.code, watched.err) == (1, "error: job digits-aaaaaa stopped: enough\n")


def test_stop_of_a_queued_job_says_what_it_waits_for(fedq: Fedq, servers: Servers) -> None:
    """The record keeps the request for the aggregator to come."""
    fedq("start", DIGITS, "--id", "digits-aaaaaa")
    done = fedq("stop", "digits-aaaaaa")

    assert done.code == 0
    assert servers.ledger().required("digits-aaaaaa").wanted == Wanted("stopped", "stopped by an operator")
    assert "no aggregator is running; start one" in done.out


def test_stop_of_a_paused_job_has_it_ended_in_order(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """No aggregator owns it: it is queued again, with the request, for an aggregator to end it."""
    aggregator.listen()
    paused(fedq, aggregator)
    stopping = fedq.begin("stop", "digits-aaaaaa", "--reason", "enough")
    again = aggregator.take()
    assert servers.ledger().renew("digits-aaaaaa", again.fence, 60) == Wanted("stopped", "enough")
    assert servers.blobs().get_json(names.wanted_blob("digits-aaaaaa"))["wanted"] == "stopped"
    again.end("stopped", "enough")
    done = fedq.finish(stopping)

    assert (done.code, done.out) == (0, "job digits-aaaaaa stopped after 0 rounds\n")


def paused(fedq: Fedq, aggregator: Aggregator) -> Scripted:
    """A job that is paused after its initial model."""
    fedq("start", DIGITS, "--set", "rounds.count=3", "--id", "digits-aaaaaa")
    job = aggregator.take()
    job.ask(0, COHORT[:1])
    job.commit(0)
    job.servers.blobs().put_json(
        names.wanted_blob(job.job), {"job": job.job, "wanted": "paused", "reason": "paused by an operator"}
    )
    job.servers.ledger().want(job.job, Wanted("paused", "paused by an operator"))
    job.lay_down("paused by an operator")
    return job


def test_pause_waits_for_the_open_round(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """It says what it waits for, and which came: the pause, or the end."""
    aggregator.listen()
    fedq("start", DIGITS, "--set", "rounds.count=3", "--id", "digits-aaaaaa")
    job = aggregator.take()
    job.ask(0, COHORT[:1])
    pausing = fedq.begin("pause", "digits-aaaaaa", "--reason", "the night")
    assert job.bell() == PauseTraining(job="digits-aaaaaa", reason="the night")
    assert servers.ledger().renew("digits-aaaaaa", job.fence, 60) == Wanted("paused", "the night")
    record = servers.blobs().get_json(names.wanted_blob("digits-aaaaaa"))
    assert record == {"job": "digits-aaaaaa", "wanted": "paused", "reason": "the night"}
    job.commit(0)
    job.lay_down("the night")
    done = fedq.finish(pausing)

    assert (done.code, done.out) == (
        0,
        "job digits-aaaaaa paused after 0 rounds; `fedq resume digits-aaaaaa` continues it\n",
    )
    assert done.err.startswith("pause requested; waiting for job digits-aaaaaa to finish round 0, ")
    again = fedq("pause", "digits-aaaaaa")
    assert (again.code, "is paused already; `fedq resume digits-aaaaaa`" in again.err) == (2, True)
    (row,) = fedq("jobs", "--json").document
    assert (row["status"], row["detail"]) == ("paused", "the night")
    assert "digits-aaaaaa  paused  " in fedq("jobs").out


def test_pause_of_a_job_that_ends_meanwhile_says_so(fedq: Fedq, aggregator: Aggregator) -> None:
    """Its last round may be the open one."""
    aggregator.listen()
    fedq("start", DIGITS, "--id", "digits-aaaaaa")
    job = aggregator.take()
    pausing = fedq.begin("pause", "digits-aaaaaa")
    job.bell()
    job.end(rounds=15)

    assert fedq.finish(pausing).out == "job digits-aaaaaa finished after 15 rounds\n"


def test_pause_of_a_queued_job_says_what_it_waits_for(fedq: Fedq, servers: Servers) -> None:
    """Resuming it takes the request back."""
    fedq("start", DIGITS, "--id", "digits-aaaaaa")
    done = fedq("pause", "digits-aaaaaa")
    assert (done.code, done.out.startswith("pause requested; job digits-aaaaaa is queued: no aggregator")) == (0, True)
    assert servers.ledger().required("digits-aaaaaa").wanted.status == "paused"

    done = fedq("resume", "digits-aaaaaa")
    assert (done.code, done.out) == (0, "job digits-aaaaaa was not paused yet, and goes on\n")
    assert servers.ledger().required("digits-aaaaaa").wanted.status == "running"
    assert servers.blobs().get_json(names.wanted_blob("digits-aaaaaa"))["wanted"] == "running"
    again = fedq("resume", "digits-aaaaaa")
    assert (again.code, "is queued, not paused: there is nothing to resume" in again.err) == (2, True)


def test_resume_has_a_paused_job_taken_again(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """The next owner reads the spec in job.json, and no request is left."""
    aggregator.listen()
    job = paused(fedq, aggregator)
    watching = fedq.begin("watch", "digits-aaaaaa")
    assert watching.stdout is not None
    while "`fedq resume digits-aaaaaa` continues it" not in watching.stdout.readline():
        pass
    done = fedq("resume", "digits-aaaaaa")
    again = aggregator.take()

    assert (done.code, done.out) == (0, "job digits-aaaaaa goes on with round 1\n")
    assert again.spec == job.spec
    assert again.fence > job.fence
    assert servers.ledger().renew("digits-aaaaaa", again.fence, 60) == Wanted()
    again.end(rounds=3)
    assert fedq.finish(watching).code == 0
    ended = fedq("resume", "digits-aaaaaa")
    assert (ended.code, "`fedq start --resume digits-aaaaaa` continues it" in ended.err) == (2, True)


def test_a_request_brings_back_a_job_that_redis_forgot(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """The bucket knows it; an aggregator finds the request with the record."""
    aggregator.listen()
    job = paused(fedq, aggregator)
    servers.redis().flushdb()
    done = fedq("resume", "digits-aaaaaa")
    again = aggregator.take()

    assert (done.code, done.out) == (0, "job digits-aaaaaa goes on with round 1\n")
    assert servers.ledger().required("digits-aaaaaa").round == 0
    assert again.fence > job.fence


def failed(fedq: Fedq, aggregator: Aggregator) -> Scripted:
    """A job that ended after one of three rounds."""
    fedq("start", DIGITS, "--set", "rounds.count=3", "--id", "digits-aaaaaa")
    job = aggregator.take()
    for number in range(2):
        job.ask(number, COHORT if number else COHORT[:1])
        job.commit(number)
    job.end("failed", "round 2 has 3 of the 8 updates it needs", rounds=1)
    return job


def test_a_failed_job_is_continued_to_its_end(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """From its last committed round, with what was changed; an end told late of its first life is not its end."""
    aggregator.listen()
    first = failed(fedq, aggregator)
    blobs = servers.blobs()
    blobs.put_json(names.wanted_blob("digits-aaaaaa"), {"job": "digits-aaaaaa", "wanted": "stopped", "reason": ""})
    process = fedq.begin("start", "--resume", "digits-aaaaaa", "--set", "rounds.minimum=2", "--watch")
    job = aggregator.take()
    late = {"outcome": "failed", "reason": "told late", "rounds": 1, "fence": first.fence}
    job.publish(TrainingEnd.model_validate({"job": "digits-aaaaaa", **late}))
    job.file, job.blob = first.file, first.blob
    for number in (2, 3):
        job.ask(number)
        job.commit(number)
    job.end(rounds=3, accuracy=0.5)
    done = fedq.finish(process)

    assert (done.code, done.lines[0]) == (0, "digits-aaaaaa")
    assert done.lines[-1] == "accuracy 0.500 after 3 rounds (12.3 s)"
    assert "told late" not in done.out
    assert job.spec.rounds.minimum == 2
    assert blobs.get_json(names.job_blob("digits-aaaaaa"))["spec"]["rounds"]["minimum"] == 2
    assert not blobs.exists(names.wanted_blob("digits-aaaaaa"))
    assert fedq("verify", "digits-aaaaaa").code == 0


def test_a_finished_job_is_continued_with_more_rounds(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """And not without: both numbers are named. A paused one is continued as well, a live one goes on as it is."""
    aggregator.listen()
    failed(fedq, aggregator)
    few = fedq("start", "--resume", "digits-aaaaaa", "--set", "rounds.count=1")
    assert (few.code, few.err) == (
        2,
        "error: job digits-aaaaaa has 1 committed rounds and rounds.count is 1; "
        "raise it, such as --set rounds.count=2\n",
    )
    done = fedq("start", "--resume", "digits-aaaaaa", "--set", "rounds.count=5", DIGITS)
    assert (done.code, done.out) == (0, "digits-aaaaaa\n")
    job = aggregator.take()
    assert (job.spec.rounds.count, servers.ledger().required("digits-aaaaaa").rounds) == (5, 5)
    assert not servers.blobs().exists(names.result_blob("digits-aaaaaa"))
    live = fedq("start", "--resume", "digits-aaaaaa")
    assert (live.code, "is running: it goes on as it is" in live.err) == (2, True)
    job.lay_down("the night")
    assert fedq("start", "--resume", "digits-aaaaaa").code == 0
    assert aggregator.take().fence > job.fence


def test_a_job_that_redis_forgot_is_continued(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """From the bucket alone."""
    aggregator.listen()
    failed(fedq, aggregator)
    servers.redis().flushdb()
    done = fedq("start", "--resume", "digits-aaaaaa")
    aggregator.take()

    assert done.code == 0
    record = servers.ledger().required("digits-aaaaaa")
    assert (record.status, record.round, record.rounds) == ("running", 1, 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "there is no job to start: give its FILE, or --resume JOB to continue an earlier one"),
        (["--resume", "digits-aaaaaa", "--id", "digits-bbbbbb"], "--id names a new job and --resume an earlier one"),
        (["--resume", "digits-nobody"], "there is no job digits-nobody; `fedq jobs` lists them"),
        (
            ["--resume", "digits-aaaaaa", "--set", "seed=8", "--set", "model.hidden=[8]"],
            "job digits-aaaaaa cannot be resumed with another seed, model: its committed rounds",
        ),
        (
            ["--resume", "digits-aaaaaa", "--set", "pool=null", "--set", "silos=[a]", "--set", "data={name: 'm:d'}"],
            "with another data, silos, pool",
        ),
        (["--resume", "digits-aaaaaa", "--set", "rounds.cuont=8"], "job digits-aaaaaa: rounds.cuont: unknown key"),
    ],
)
def test_what_cannot_be_continued_is_explained(
    fedq: Fedq, aggregator: Aggregator, servers: Servers, arguments: list[str], sentence: str
) -> None:
    """In a sentence, with exit code 2, and nothing is changed."""
    aggregator.listen()
    failed(fedq, aggregator)
    changed = [*arguments, "--set", "select={name: all}", "--set", "rounds.target=1", "--set", "rounds.minimum=1"]
    done = fedq("start", *(changed if "pool=null" in arguments else arguments))

    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert servers.ledger().required("digits-aaaaaa").status == "failed"
    assert servers.blobs().exists(names.result_blob("digits-aaaaaa"))


def test_what_cannot_be_announced_is_as_it_was(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """A job whose resumption fails keeps its result."""
    aggregator.listen()
    failed(fedq, aggregator)
    for setting in ("FEDQ_AMQP_URL", "FEDQ_REDIS_URL"):
        head, _, _ = fedq.environment[setting].rpartition("@")
        url = f"{head}@127.0.0.1:{closed_port()}/1"
        assert fedq("start", "--resume", "digits-aaaaaa", **{setting: url}).code == 3

    assert servers.ledger().required("digits-aaaaaa").status == "failed"
    assert servers.blobs().get_json(names.result_blob("digits-aaaaaa"))["outcome"] == "failed"


def test_show_has_the_last_of_the_log(fedq: Fedq, aggregator: Aggregator, servers: Servers) -> None:
    """Under the rounds, twenty lines; all of it as JSON."""
    aggregator.listen()
    failed(fedq, aggregator)
    for index in range(25):
        servers.ledger().note("refused", f"client-{index:02d}: holds NaN or Inf", "digits-aaaaaa", 1)
    shown = fedq("show", "digits-aaaaaa").out

    assert "client-04" not in shown
    assert all(f"client-{index:02d}: holds NaN or Inf" in shown for index in range(5, 25))
    assert "the last 20 of 25 lines of its log" in shown
    log = fedq("show", "digits-aaaaaa", "--json").document["log"]
    assert [line["fault"] for line in log] == ["refused"] * 25
    assert log[0].keys() == {"at", "fault", "round", "detail"}


@pytest.fixture
def finished(fedq: Fedq, aggregator: Aggregator) -> Scripted:
    """A job of three rounds; the last one's updates were not kept."""
    aggregator.listen()
    fedq("start", DIGITS, "--set", "rounds.count=3", "--id", "digits-aaaaaa")
    job = aggregator.take()
    for number in range(4):
        job.ask(number, COHORT if number else COHORT[:1])
        job.commit(number, accuracy=0.2 * (1 + number), keep=number != 3)
    job.end(rounds=3, accuracy=0.8)
    return job


def test_jobs_show_and_results_read_the_record(fedq: Fedq, finished: Scripted) -> None:
    """For people as tables, for programs as JSON."""
    (record,) = fedq("jobs", "--json").document
    assert (record["status"], record["round"], record["rounds"]) == ("finished", 3, 3)
    assert "digits-aaaaaa  finished    3/3" in fedq("jobs").out

    shown = fedq("show", "digits-aaaaaa", "--json").document
    assert shown["spec"]["seed"] == 7
    assert [row["round"] for row in shown["by_round"]] == [0, 1, 2, 3]
    assert shown["by_round"][1]["accepted"] == list(COHORT)
    assert shown["by_round"][1]["rejected"] == {"client-09": "holds NaN or Inf"}
    assert "client-09: holds NaN or Inf" in fedq("show", "digits-aaaaaa").out

    found = fedq("results", "digits-aaaaaa", "--json").document
    assert [row["accuracy"] for row in found["rounds"]] == [0.2 * (1 + number) for number in range(4)]
    assert found["result"]["outcome"] == "finished"
    assert fedq("results", "digits-aaaaaa").lines[-1] == "accuracy 0.800 after 3 rounds (12.3 s)"


def test_results_export_the_model_and_draw_the_curve(fedq: Fedq, finished: Scripted, tmp_path: Path) -> None:
    """Whole files or none; what is there stays unless --force."""
    model, curve = tmp_path / "model.safetensors", tmp_path / "curve.png"
    done = fedq("results", "digits-aaaaaa", "--export", str(model), "--plot", str(curve))
    assert (done.code, done.err.count("saved ")) == (0, 2)
    saved = np.fromfile(model, np.uint8)
    header, data = LAYOUT.header, saved[8 + int.from_bytes(saved[:8].tobytes(), "little") :]
    assert data.tobytes() == finished.file[len(header) :].tobytes()
    with safe_open(model, "np") as file:
        about = file.metadata()
    assert finished.blob is not None
    assert about == {
        "fedq.job": "digits-aaaaaa", "fedq.round": "3", "fedq.digest": finished.blob.digest,
        "fedq.version": version("fedq"), "fedq.model": json.dumps(finished.spec.model.model_dump(mode="json")),
    }  # fmt: skip
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "model.safetensors"]

    again = fedq("results", "digits-aaaaaa", "--export", str(model))
    assert (again.code, again.err) == (2, f"error: {model}: exists already; --force overwrites it\n")
    assert fedq("results", "digits-aaaaaa", "--export", str(model), "--force").code == 0
    nowhere = fedq("results", "digits-aaaaaa", "--export", str(tmp_path / "none/model"))
    assert (nowhere.code, "there is no directory" in nowhere.err) == (2, True)


def test_the_end_says_what_is_missing(fedq: Fedq, aggregator: Aggregator) -> None:
    """In watch's last line, in results, in show, and for programs; of a job that failed too."""
    aggregator.listen()
    said = "in no model: silo-7; 2 updates refused"
    for job_id, outcome in (("digits-aaaaaa", "finished"), ("digits-bbbbbb", "failed")):
        fedq("start", DIGITS, "--id", job_id)
        job = aggregator.take()
        job.ask(0, COHORT[:1])
        job.commit(0)
        missing = Missing(clients=1, first=("silo-7",), refused=2)
        job.end(outcome, "" if outcome == "finished" else "too few", rounds=0, missing=missing)
        watched = fedq("watch", job_id)

        assert (watched.code, (watched.out + watched.err).rstrip().endswith(f"; {said}")) == (
            outcome != "finished",
            True,
        )
        assert fedq("results", job_id).lines[-1].endswith(f"; {said}")
        assert fedq("results", job_id, "--json").document["result"]["missing"] == missing.model_dump(mode="json")
        assert f"missing      {said}" in fedq("show", job_id).out
        assert fedq("show", job_id, "--json").document["missing"] == missing.model_dump(mode="json")


def test_a_changed_model_is_not_exported(fedq: Fedq, finished: Scripted, servers: Servers, tmp_path: Path) -> None:
    """Its digest is checked on the way."""
    servers.blobs().put(names.final_model_blob("digits-aaaaaa"), b"x" * finished.file.nbytes)
    done = fedq("results", "digits-aaaaaa", "--export", str(tmp_path / "model"))

    assert done.code == 1
    assert "its digest is" in done.err
    assert list(tmp_path.iterdir()) == []


def test_replay_agrees_with_what_was_committed(fedq: Fedq, finished: Scripted) -> None:
    """Round 0, and folded ones; not where the updates are gone, nor where no round is."""
    for number in ("0", "1", "2"):
        found = fedq("replay", "digits-aaaaaa", number, "--json").document
        assert found["agrees"] is True
        assert found["committed"] == found["replayed"]
    assert fedq("replay", "digits-aaaaaa", "1").lines[-1] == "agrees"

    gone = fedq("replay", "digits-aaaaaa", "3")
    assert (gone.code, "set keep_updates: true in the job file" in gone.err) == (2, True)
    none = fedq("replay", "digits-aaaaaa", "4")
    assert (none.code, "round 4 of job digits-aaaaaa is not committed" in none.err) == (2, True)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda record: record["updates"][0].update(examples=11), "the updates weigh 22; the manifest says 21"),
        (lambda record: record["updates"].pop(), "the updates weigh 10; the manifest says 21"),
        (lambda record: record["model"].update(digest="0" * 64), ""),
        (lambda record: record["grid"].update(shift=3), "the grid's shift"),
    ],
)
def test_replay_finds_what_was_changed(
    fedq: Fedq, finished: Scripted, servers: Servers, change: Any, problem: str
) -> None:
    """A record that does not lead to its model is exit code 1."""
    blobs, key = servers.blobs(), names.manifest_blob("digits-aaaaaa", 2)
    record = blobs.get_json(key)
    change(record)
    blobs.put_json(key, record)
    done = fedq("replay", "digits-aaaaaa", "2", "--json")

    assert done.code == 1
    assert done.document["agrees"] is False
    assert problem in done.document["problem"]


def test_nodes_point_out_a_clock_that_is_off(fedq: Fedq, servers: Servers) -> None:
    """Its times in the record would tell a wrong story."""
    now = servers.ledger().now()
    for name, skew in (("t1", 0.0), ("t2", 60.0)):
        beat = {"host": "h", "pid": 1, "device": "cpu", "slots": 2, "busy": 1, "sent_at": now + skew}
        servers.roster().admit(Heartbeat(trainer=name, pool="cpu", client=None, **beat), 60)
    done = fedq("nodes")

    assert done.code == 0
    assert "pool cpu" in done.out
    assert done.err.startswith("warning: the clock of h (t2) is 60.0 s ahead of Redis's")
    assert [member["trainer"] for member in fedq("nodes", "--json").document] == ["t1", "t2"]


@pytest.mark.parametrize("command", ["watch", "stop", "pause", "resume", "show", "results", "verify"])
def test_an_unknown_job_is_exit_code_2(fedq: Fedq, command: str) -> None:
    """With a way to find the right one."""
    done = fedq(command, "digits-nobody")

    assert (done.code, done.out) == (2, "")
    assert done.err == "error: there is no job digits-nobody; `fedq jobs` lists them\n"


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("setting", "change", "arguments", "sentence"),
    [
        ("FEDQ_AMQP_URL", "closed", ["start", DIGITS], "cannot be reached ([Errno 111] Connection refused)"),
        ("FEDQ_AMQP_URL", "password", ["start", DIGITS], "refuses these credentials"),
        ("FEDQ_AMQP_URL", "vhost", ["start", DIGITS], "refuses the vhost 'no-such-vhost'"),
        ("FEDQ_REDIS_URL", "closed", ["jobs"], "is it running, and is FEDQ_REDIS_URL right"),
        ("FEDQ_REDIS_URL", "password", ["nodes"], "refuses this password; check FEDQ_REDIS_URL"),
        ("FEDQ_S3_URL", "closed", ["results", "digits-aaaaaa"], "check FEDQ_S3_URL"),
        ("FEDQ_S3_SECRET_KEY", "wrong", ["results", "digits-aaaaaa"], "check FEDQ_S3_SECRET_KEY"),
        ("FEDQ_S3_BUCKET", "no-such-bucket", ["results", "digits-aaaaaa"], "FEDQ_S3_BUCKET"),
    ],
)
def test_a_server_that_is_away_or_refuses_is_exit_code_3(
    fedq: Fedq, servers: Servers, setting: str, change: str, arguments: list[str], sentence: str
) -> None:
    """One sentence that names it and the setting; a start leaves nothing behind."""
    servers.ledger().create("digits-aaaaaa", 1)
    servers.ledger().claim("digits-aaaaaa", "me", 60)
    url = fedq.environment.get(setting, "")
    head, at, place = url.rpartition("@")
    path = "/1" if at else ""
    fedq.environment[setting] = {
        "closed": f"{url.partition(':')[0]}://{head.partition('//')[2]}{at}127.0.0.1:{closed_port()}{path}",
        "password": f"{head}x{at}{place}",
        "vhost": f"{url.rpartition('/')[0]}/no-such-vhost",
    }.get(change, change)
    done = fedq(*arguments)

    assert done.code == 3, done
    assert sentence in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert len(servers.ledger().jobs()) == 1


def test_a_user_without_the_right_hears_so_at_once(fedq: Fedq, servers: Servers) -> None:
    """A trainer's user may not start jobs."""
    fedq.environment["FEDQ_AMQP_URL"] = servers.environment("trainer")["FEDQ_AMQP_URL"]
    done = fedq("start", DIGITS)

    assert done.code == 3
    assert "refuses what this user tries" in done.err
    assert servers.ledger().jobs() == []


def test_ctrl_c_ends_watching_and_not_the_job(fedq: Fedq, servers: Servers) -> None:
    """Exit code 130, and nothing to read."""
    fedq("start", DIGITS, "--id", "digits-aaaaaa")
    process = fedq.begin("watch", "digits-aaaaaa")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("queued: no aggregator is running")
    process.send_signal(signal.SIGINT)
    done = fedq.finish(process)

    assert (done.code, done.err) == (130, "")
    assert servers.ledger().required("digits-aaaaaa").status == "queued"


def test_ctrl_c_after_a_start_says_that_the_job_goes_on(fedq: Fedq, servers: Servers) -> None:
    """And how to end it."""
    process = fedq.begin("start", DIGITS, "--id", "digits-aaaaaa", "--watch")
    assert process.stdout is not None
    assert process.stdout.readline() == "digits-aaaaaa\n"
    assert process.stdout.readline().startswith("queued: no aggregator is running")
    process.send_signal(signal.SIGINT)
    done = fedq.finish(process)

    assert done.code == 130
    assert done.err == (
        "job digits-aaaaaa goes on: `fedq watch digits-aaaaaa` follows it, `fedq stop digits-aaaaaa` ends it\n"
    )
    assert servers.ledger().required("digits-aaaaaa").status == "queued"
