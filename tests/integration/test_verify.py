"""`fedq verify` on real servers: green on jobs that keep the promises, red where somebody planted a breach."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.cli.verify import promises
from shared import names
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.events import BlobRef
from shared.record import parts
from shared.redis.client import Redis
from tests.conftest import Servers
from tests.scripted import COHORT, DIGITS, Aggregator, Fedq, Scripted

JOB = "digits-aaaaaa"


@pytest.fixture
def fedq(servers: Servers, tmp_path: Path) -> Any:
    runs = Fedq(servers.environment(), tmp_path)
    yield runs
    for process in runs.running:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def running(fedq: Fedq, servers: Servers) -> Scripted:
    """A job of three rounds, two of them committed, with a dead letter and a refusal in its log."""
    aggregator = Aggregator(servers, servers.bus("scripted"))
    aggregator.listen()
    fedq("start", DIGITS, "--set", "rounds.count=3", "--id", JOB)
    job = aggregator.take()
    for number in range(3):
        job.ask(number, COHORT if number else COHORT[:1])
        if number:
            servers.ledger().note("refused", "client-09: holds NaN or Inf", JOB, number)
        job.commit(number)
    letter(servers.bus("stranger"), servers)
    return job


def letter(bus: Bus, servers: Servers, **headers: str) -> None:
    """An entry of `dead-letters` that came from the job's queue."""
    told = {"x-fedq-reason": "is not msgpack", "x-fedq-queue": names.updates_queue(JOB), **headers}
    properties = {"type": "model-update", "headers": told}
    message = {
        "properties": properties,
        "routing_key": names.DEAD_LETTERS,
        "payload": "?",
        "payload_encoding": "string",
    }
    bus.declare(topology.dead_letters())
    servers.stack.rabbitmq.call("POST", f"exchanges/{servers.vhost}/amq.default/publish", message)


@pytest.fixture
def ended(running: Scripted) -> Scripted:
    running.ask(3)
    running.commit(3, keep=False)
    running.end(rounds=3, accuracy=0.8)
    return running


def broken(fedq: Fedq) -> dict[str, list[str]]:
    """The promises that are red, each with its sentences."""
    done = fedq("verify", JOB, "--json")
    found = {row["promise"]: row["problems"] for row in done.document["promises"] if not row["holds"]}
    assert done.code == (1 if found else 0)
    assert done.document["holds"] is not bool(found)
    return found


def test_an_ended_job_is_read_and_folded_again(fedq: Fedq, ended: Scripted) -> None:
    """Promise by promise, with what was looked at, and at the end what is not promised."""
    done = fedq("verify", JOB)

    assert (done.code, done.err) == (0, "")
    assert done.lines[0] == f"{JOB} finished; read from bucket, Redis and dead letters"
    assert [line[:4] for line in done.lines if line.startswith("✓")] == [f"✓ P{number}" for number in range(1, 9)]
    assert "4 committed rounds: 7 updates in models, 3 refused, 0 unanswered" in done.out
    assert "4 models read, 3 rounds folded again, 1 not: their updates are not kept (keep_updates)" in done.out
    assert f"dead letter: model-update from {names.updates_queue(JOB)}: is not msgpack" in done.out
    assert all(f"not promised: {sentence}" in done.out for sentence in promises.NOT_PROMISED)
    assert done.lines[-1] == "every promise holds"


def test_a_record_in_parts_says_what_it_would_in_one(
    fedq: Fedq, servers: Servers, running: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that reads manifests prints the same, though each client's entry is a blob by itself."""
    running.ask(3)
    with monkeypatch.context() as patched:
        patched.setattr(parts, "FEW", 0)
        patched.setattr(parts, "MOST", 1)
        running.commit(3)
    running.end(rounds=3, accuracy=0.8)
    blobs, key = servers.blobs(), names.manifest_blob(JOB, 3)

    def said() -> list[tuple[int, str]]:
        runs = [
            fedq(*command)
            for command in (
                ("verify", JOB, "--json"),
                ("replay", JOB, "3"),
                ("show", JOB, "--json"),
                ("results", JOB, "--json"),
                ("results", JOB, "--csv", "rows.csv", "--force"),
            )
        ]
        rows = (fedq.folder / "rows.csv").read_text()
        return [(done.code, done.out) for done in runs] + [(0, rows)]

    assert len(blobs.get_json(key)["parts"]) > 1
    in_parts = said()
    blobs.put_json(key, parts.whole(blobs, key))

    assert [code for code, _ in in_parts] == [0] * 6
    assert in_parts == said()
    assert "agrees" in in_parts[1][1]


def test_a_running_and_a_paused_job_are_judged_as_well(fedq: Fedq, running: Scripted, servers: Servers) -> None:
    """The open round too: who is accepted, and whether the update is there."""
    running.ask(3)
    ref, _ = running.upload(3, 0)
    entry = {"trainer": "t", "blob": ref.model_dump(), "examples": 10}
    servers.ledger().accept(JOB, running.fence, 3, COHORT[0], entry)
    done = fedq("verify", JOB)
    assert (done.code, "round 3, open: 1 of 2 accepted" in done.out) == (0, True)

    servers.blobs().delete(ref.key)
    assert broken(fedq) == {"P1": [f"round 3, open: {COHORT[0]}'s update is accepted and not in the bucket"]}
    servers.ledger().fail_round(JOB, running.fence, 3, "an operator ended it")
    running.lay_down("the night")
    assert broken(fedq) == {}


def test_a_job_that_redis_forgot_is_judged_by_the_bucket(fedq: Fedq, ended: Scripted, servers: Servers) -> None:
    """And it says so."""
    servers.redis().flushdb()
    done = fedq("verify", JOB)

    assert done.code == 0
    assert done.lines[0] == f"{JOB} finished; read from bucket and dead letters alone: Redis has lost it"
    assert fedq("verify", JOB, "--json").document["redis"] is False


Breach = Callable[[Scripted, Servers], None]


def in_manifest(change: Callable[[dict[str, Any]], Any], number: int = 2) -> Breach:
    def breach(_job: Scripted, servers: Servers) -> None:
        key = names.manifest_blob(JOB, number)
        record = servers.blobs().get_json(key)
        change(record)
        servers.blobs().put_json(key, record)

    return breach


def without(key: Callable[[Servers], str]) -> Breach:
    def breach(_job: Scripted, servers: Servers) -> None:
        servers.blobs().delete(key(servers))

    return breach


def overwritten(blob: Callable[[dict[str, Any]], dict[str, Any]]) -> Breach:
    """Another content under the key that a manifest names."""

    def breach(_job: Scripted, servers: Servers) -> None:
        found = blob(servers.blobs().get_json(names.manifest_blob(JOB, 2)))
        servers.blobs().put(found["key"], b"x" * found["size"])

    return breach


def trained_on_another_base(_job: Scripted, servers: Servers) -> None:
    blobs = servers.blobs()
    blob = BlobRef.model_validate(blobs.get_json(names.manifest_blob(JOB, 2))["updates"][0]["blob"])
    blobs.put(blob.key, blobs.get(blob), digest=blob.digest, metadata={"base": "f" * 64})


def in_redis(change: Callable[[Redis], Any]) -> Breach:
    def breach(_job: Scripted, servers: Servers) -> None:
        change(servers.redis())

    return breach


def a_letter_without_reason(_job: Scripted, servers: Servers) -> None:
    letter(servers.bus("other"), servers, **{"x-fedq-reason": ""})


def long_before(record: dict[str, Any]) -> None:
    record.update(opened=record["opened"] - 999, deadline=record["deadline"] - 999)


BREACHES: list[tuple[str, str, Breach]] = [
    ("P1", "was asked, and nothing says", in_manifest(lambda record: record["cohort"].append("client-07"))),
    ("P3", "updates is missing", in_manifest(lambda record: record.pop("updates"))),
    ("P3", "kept updates are gone", without(lambda servers: servers.blobs().list(names.updates_prefix(JOB, 2))[0])),
    ("P3", "its digest is", overwritten(lambda record: record["model"])),
    ("P3", "model.safetensors: ", without(lambda _: names.final_model_blob(JOB))),
    ("P4", "round 1 has no manifest", without(lambda _: names.manifest_blob(JOB, 1))),
    ("P4", "Redis says that round 7 is committed", in_redis(lambda redis: redis.hset(names.job_key(JOB), "round", 7))),
    ("P5", "has no result.json", without(lambda _: names.result_blob(JOB))),
    ("P5", "round 0 took ", in_manifest(long_before, 0)),
    ("P6", "and no reason with it", a_letter_without_reason),
    ("P6", "was tried 9 times", in_manifest(lambda record: record.update(attempt=9))),
    ("P7", "its digest is", overwritten(lambda record: record["updates"][0]["blob"])),
    ("P7", "was trained on the model ffffffffffff", trained_on_another_base),
    ("P7", "with a value of 300", in_manifest(lambda record: record["updates"][0].update(max_abs=300.0))),
    ("P8", "the log has refused 2 times", in_redis(lambda redis: redis.delete(names.FAULTS))),
    ("P8", "no takeover is recorded", in_manifest(lambda record: record.update(fence=record["fence"] - 1), 0)),
]


@pytest.mark.parametrize(("promise", "problem", "breach"), BREACHES, ids=[f"{row[0]}: {row[1]}" for row in BREACHES])
def test_a_breach_is_found(
    fedq: Fedq, ended: Scripted, servers: Servers, promise: str, problem: str, breach: Breach
) -> None:
    """In what the servers hold; the promise that it breaks is red, and no other."""
    breach(ended, servers)
    found = broken(fedq)

    assert list(found) == [promise], found
    assert any(problem in sentence for sentence in found[promise]), found


def test_an_update_that_counts_twice_is_found(fedq: Fedq, ended: Scripted, servers: Servers) -> None:
    """As what it is (P2), and because its round no longer leads to its model (P3)."""
    in_manifest(lambda record: record["updates"].append(record["updates"][0]))(ended, servers)
    found = broken(fedq)

    assert list(found) == ["P2", "P3"]
    assert "round 2: client-00 is counted twice" in found["P2"]
    shown = fedq("verify", JOB)
    assert (shown.code, shown.lines[-1]) == (1, "broken: P2, P3")
    assert "✗ P2" in shown.out


def test_looking_at_dead_letters_leaves_them(running: Scripted, servers: Servers) -> None:
    """In their order and in any number of looks, up to as many as are asked for; an absent queue has none."""
    bus = servers.bus("looking")
    letter(bus, servers, **{"x-fedq-reason": "the second"})
    for _ in range(30):  # RabbitMQ drops what was returned twenty times, unless the policy says otherwise
        found = bus.peek(names.DEAD_LETTERS, 10)
        assert [row.headers["x-fedq-reason"] for row in found] == ["is not msgpack", "the second"]
    assert [row.body for row in bus.peek(names.DEAD_LETTERS, 1)] == [b"?"]
    assert bus.peek("no.such.queue", 10) == []


def test_a_job_without_a_spec_has_nothing_to_verify(fedq: Fedq, servers: Servers) -> None:
    """Another tool may have recorded it."""
    servers.ledger().create(JOB, 3)
    done = fedq("verify", JOB)

    assert (done.code, done.err) == (2, f"error: job {JOB} is queued: it has no rounds yet\n")
