"""The aggregator dies, sleeps or leaves at any moment; the job does not notice but for the time it takes."""

import os
import signal

import pytest

from shared.process import failpoints
from tests.faults.federation import LEASE, TAKEOVER, Federation, Row, while_away
from tests.harness import until

POINTS = [name for name in failpoints.POINTS if name.startswith("aggregator.")]
#: Which visit kills: in the middle of the job where a point is passed in each round.
VISIT = {"aggregator.claimed": 1, "aggregator.resumed": 1, "aggregator.result": 1, "aggregator.ended": 1}
SLOW = {"train": {"name": "tests.faults.step:train", "args": {"seconds": 0.6}}}  # 5 rounds in 8 s, of 4 such jobs in 30


@pytest.mark.row("aggregator killed at {}", "P1 P2 P3 P4")
@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_point_changes_nothing(federation: Federation, row: Row, point: str) -> None:
    """kill -9 at each failpoint of a job of five rounds: the same digests, and another owner within its time."""
    digests = federation.undisturbed()
    visit = VISIT.get(point, 7 if point in ("aggregator.received", "aggregator.accepted") else 3)
    first = federation.aggregator(FEDQ_FAILPOINT=f"{point}=kill@{visit}")
    job = federation.submit()
    federation.died(first)
    row.fire(f"SIGKILL at visit {visit}")
    fence = federation.servers.ledger().required(job).fence
    federation.aggregator()
    if point != "aggregator.ended":  # where there is nothing left to take over
        until(lambda: federation.servers.ledger().required(job).fence > fence, TAKEOVER, "a takeover")
        assert row.recovered() <= TAKEOVER

    federation.holds(job, digests)


@pytest.mark.row("aggregator killed, default lease of 15 s, a standby takes over", "P1 P2 P3 P5", fixed=True)
def test_a_standby_takes_over_within_twenty_seconds(federation: Federation, row: Row) -> None:
    """With the settings that people run."""
    digests = federation.undisturbed(**SLOW)
    pair = [federation.aggregator(FEDQ_LEASE_S="15") for _ in range(2)]
    for replica in pair:
        until(lambda replica=replica: "ready" in replica.tail(), 30, "the pair", detail=federation.tails)
    job = federation.submit(**SLOW)
    federation.accepted(job, 3, 1)
    fence = federation.servers.ledger().required(job).fence
    federation.kill(federation.owner(job, pair))
    row.fire("SIGKILL in round 3")
    federation.reached(job, 3, seconds=30)
    assert row.recovered() <= TAKEOVER
    assert federation.servers.ledger().required(job).fence > fence

    federation.holds(job, digests)
    assert "takeover" in federation.faults(job)


@pytest.mark.row("aggregator asleep for longer than its lease", "P3 P4")
def test_a_sleeper_that_wakes_writes_nothing(federation: Federation, row: Row) -> None:
    """SIGSTOP, another owner goes on, SIGCONT: it finds itself fenced."""
    digests = federation.undisturbed()
    first = federation.aggregator()
    job = federation.submit()
    federation.reached(job, 1)
    fence = federation.servers.ledger().required(job).fence
    with federation.frozen(first.pid):
        row.fire("SIGSTOP in round 2")
        federation.aggregator()
        until(lambda: federation.servers.ledger().required(job).fence > fence, TAKEOVER, "a takeover")
        row.recovered()
        federation.reached(job, 3)

    federation.holds(job, digests)
    until(lambda: "fenced" in first.log.read_text(), 15, "the sleeper to be fenced", detail=federation.tails)


@pytest.mark.row("aggregator asleep just before its manifest", "P3 P4")
def test_a_sleeper_does_not_write_over_a_manifest(federation: Federation, row: Row) -> None:
    """It stops with the model in the store; whoever commits the round is the other one."""
    digests = federation.undisturbed()
    first = federation.aggregator(FEDQ_FAILPOINT="aggregator.stored=stop@3")
    job = federation.submit()
    until(lambda: '"failpoint"' in first.log.read_text(), 60, "the failpoint", detail=federation.tails)
    row.fire("SIGSTOP between model and manifest of round 2")
    federation.aggregator()
    federation.reached(job, 3)
    row.recovered()
    manifest = federation.servers.blobs().get_json(f"jobs/{job}/rounds/0002/manifest.json")
    os.kill(first.pid, signal.SIGCONT)
    until(lambda: "fenced" in first.log.read_text(), 15, "the sleeper to be fenced", detail=federation.tails)

    federation.holds(job, digests)
    assert federation.servers.blobs().get_json(f"jobs/{job}/rounds/0002/manifest.json") == manifest


@pytest.mark.row("one of two aggregators killed, four jobs", "P1 P3 P5")
def test_the_jobs_of_a_dead_replica_move_to_the_other(federation: Federation, row: Row) -> None:
    """All of them, at once, and all end in the same digests."""
    long = SLOW | {"rounds": {"count": 12, "deadline": "2m"}}
    digests = federation.undisturbed(**long)
    pair = [federation.aggregator(FEDQ_MAX_JOBS="4") for _ in range(2)]
    submitted = [federation.submit(**long) for _ in range(4)]
    ledger = federation.servers.ledger()
    for job in submitted:
        federation.reached(job, 1)
    owners = {job: ledger.required(job).owner for job in submitted}
    victim = federation.owner(submitted[0], pair)
    moved = [job for job, owner in owners.items() if owner.endswith(f"-{victim.pid}")]
    assert all(ledger.required(job).status == "running" for job in moved)
    federation.kill(victim)
    row.fire(f"SIGKILL of the owner of {len(moved)} jobs")
    until(lambda: all(ledger.required(job).owner != owners[job] for job in moved), TAKEOVER, "the move")
    assert row.recovered() <= TAKEOVER

    for job in submitted:
        federation.holds(job, digests, seconds=200)


@pytest.mark.row("registry killed", "P5")
def test_membership_converges_after_the_registry_died(federation: Federation, row: Row) -> None:
    """Within a heartbeat of its return the roster is whole again, and no job has noticed."""
    digests = federation.undisturbed()
    federation.aggregator()
    job = federation.submit()
    federation.reached(job, 1)
    federation.kill(federation.registry)
    row.fire("SIGKILL in round 2")
    while_away(LEASE)  # the roster's leases of 2.5 s run out
    federation.start("registry")
    until(lambda: len(federation.servers.roster().alive()) == 2, 20, "the roster", detail=federation.tails)
    row.recovered()

    federation.holds(job, digests)
