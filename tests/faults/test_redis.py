"""Redis dies, forgets, goes back in time or answers nothing: jobs, rounds and roster come back from the record."""

import shutil

import pytest

from shared import names
from shared.errors import Unavailable
from tests.faults.federation import Federation, Row, while_away
from tests.harness import until


def roster(federation: Federation) -> bool:
    return len(federation.servers.roster().alive()) == 2


@pytest.mark.row("Redis: FLUSHALL in mid-job", "P1 P2 P3 P4", fixed=True)
def test_a_flush_loses_no_committed_round(federation: Federation, row: Row) -> None:
    """Jobs, also those that have ended, and trainers are known again; no committed round is done a second time."""
    digests = federation.undisturbed()
    federation.aggregator()
    ended = federation.submit(rounds={"count": 1, "deadline": "60s"})
    federation.ended(ended)
    job = federation.submit()
    federation.accepted(job, 3, 1)
    before = federation.servers.blobs().get_json(names.manifest_blob(job, 2))
    federation.servers.redis().flushall()
    row.fire("FLUSHALL in round 3, with updates accepted")
    federation.reached(job, 3)
    row.recovered()

    federation.holds(job, digests)
    assert federation.servers.blobs().get_json(names.manifest_blob(job, 2)) == before
    until(lambda: roster(federation), 20, "the roster", detail=federation.tails)
    record = federation.record(ended)
    assert record is not None
    assert (record.status, record.round) == ("finished", 1)
    assert federation.servers.ledger().faults()["record-lost"] >= 1


@pytest.mark.row("Redis: FLUSHALL while no aggregator runs", "P3 P4 P5")
def test_jobs_are_found_in_the_bucket_by_an_aggregator_that_starts(federation: Federation, row: Row) -> None:
    """Nobody is left who could know of them."""
    digests = federation.undisturbed()
    first = federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 2, 1)
    federation.kill(first)
    federation.servers.redis().flushall()
    row.fire("SIGKILL and FLUSHALL in round 2")
    federation.aggregator()
    federation.reached(job, 2)
    row.recovered()

    federation.holds(job, digests)


@pytest.mark.row("Redis: kill -9 and restart", "P1 P2 P3")
def test_redis_dies_and_comes_back(federation: Federation, row: Row) -> None:
    """What it acknowledged is on its disk."""
    digests = federation.undisturbed()
    federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 2, 1)
    redis = federation.servers.stack.redis
    redis.kill()
    row.fire("SIGKILL in round 2")
    while_away(4)
    redis.start()
    federation.reached(job, 2)
    row.recovered()

    federation.holds(job, digests)


@pytest.mark.row("Redis: restored from an old file", "P1 P2 P3 P4")
def test_redis_goes_back_in_time(federation: Federation, row: Row) -> None:
    """The file knows the job in its first round, under the same owner: none of the later ones is done again."""
    digests = federation.undisturbed()
    federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 1, 1)
    redis = federation.servers.stack.redis
    redis.stop()
    old = redis.directory.with_name("redis-old")
    shutil.copytree(redis.directory, old)
    redis.start()
    federation.accepted(job, 4, 1)
    manifests = [federation.servers.blobs().get_json(names.manifest_blob(job, number)) for number in range(4)]
    redis.kill()
    shutil.rmtree(redis.directory)
    shutil.move(old, redis.directory)
    redis.start()
    row.fire("the file of round 1 in round 4")
    federation.reached(job, 4)
    row.recovered()

    federation.holds(job, digests)
    for number, manifest in enumerate(manifests):
        assert federation.servers.blobs().get_json(names.manifest_blob(job, number)) == manifest


@pytest.mark.row("Redis: answers nothing for 12 s", "P3 P5")
def test_redis_hangs(federation: Federation, row: Row) -> None:
    """Leases run out meanwhile, and nobody commits twice."""
    digests = federation.undisturbed()
    pair = [federation.aggregator() for _ in range(2)]
    job = federation.submit()
    federation.accepted(job, 2, 1)
    with federation.frozen(federation.servers.stack.redis.pid):
        row.fire("SIGSTOP for 12 s in round 2")
        while_away(12)
    federation.reached(job, 2)
    row.recovered()

    federation.holds(job, digests)
    assert all(process.alive() for process in pair)


@pytest.mark.row("Redis: out of memory for 5 s", "P1 P5")
def test_redis_takes_no_writes(federation: Federation, row: Row) -> None:
    """An operator's matter, and no reason for a job to fail."""
    digests = federation.undisturbed()
    federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 2, 1)
    redis = federation.servers.redis()
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match="takes no writes now"):
            federation.servers.ledger().create("nobody-000000", 1)
        row.fire("maxmemory of 1 byte in round 2")
        while_away(5)
    finally:
        redis.config_set("maxmemory", 0)
    federation.reached(job, 2)
    row.recovered()

    federation.holds(job, digests)
