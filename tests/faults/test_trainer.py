"""Trainers die at any point, leave, or cannot live: a contribution counts once, or its lack is explained."""

import os
import signal

import pytest

from shared import names
from shared.process import failpoints
from tests.faults.federation import Federation, Row
from tests.harness import until

POINTS = [name for name in failpoints.POINTS if name.startswith("trainer.")]


@pytest.mark.row("trainer killed at {}", "P1 P2 P3")
@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_point_gives_the_same_contribution(federation: Federation, row: Row, point: str) -> None:
    """One slot, or the parent, dies once; the round ends in the undisturbed digest."""
    digests = federation.undisturbed()
    federation.stop(*federation.pool)
    once = federation.logs / "once"
    (victim,) = federation.trainers(1, FEDQ_FAILPOINT=f"{point}=kill@2:{once}")
    federation.trainers(1)
    federation.aggregator()
    job = federation.submit()
    until(once.exists, 60, f"a visit to {point}", detail=federation.tails)
    row.fire("SIGKILL at visit 2")
    federation.holds(job, digests)
    row.recovered()
    assert '"failpoint"' in victim.log.read_text()


@pytest.mark.row("a whole trainer killed while it trains", "P1 P2 P3")
def test_a_whole_trainer_dies(federation: Federation, row: Row) -> None:
    """Parent and slot; the other trainer gets its work, and no process is left behind."""
    digests = federation.undisturbed()
    federation.aggregator()
    job = federation.submit()
    federation.accepted(job, 2, 1)
    victim = federation.pool[0]
    below = federation.slots(victim)
    assert below
    federation.kill(victim)
    row.fire("SIGKILL of the parent in round 2")
    until(lambda: not any(slot.is_running() and slot.status() != "zombie" for slot in below), 10, "the slots' end")
    federation.reached(job, 2)
    row.recovered()

    federation.holds(job, digests)


@pytest.mark.row("a client that kills its slot every time", "P5 P6")
def test_poison_ends_in_dead_letters_and_its_client_is_left_out(federation: Federation, row: Row) -> None:
    """Five tries, then the round goes on with the others, and a person finds out why."""
    federation.aggregator()
    job = federation.submit(
        train={"name": "tests.faults.step:poison", "args": {"victim": "client-2"}},
        rounds={"count": 1, "minimum": 3, "deadline": "5m"},
    )
    record = federation.ended(job, 120)
    row.fire("SIGKILL of the slot by its client, 5 times")
    row.recovered()
    manifest = federation.servers.blobs().get_json(names.manifest_blob(job, 1))

    assert record.status == "finished", record.detail
    assert [update["client"] for update in manifest["updates"]] == ["client-0", "client-1", "client-3"]
    assert "5 tries" in manifest["rejected"]["client-2"]
    until(lambda: federation.queues().get(names.DEAD_LETTERS), 10, "the dead letter")
    assert "client-failed" in federation.faults(job)


@pytest.mark.row("SIGTERM to a trainer that trains", "P1 P2 P3")
def test_a_trainer_that_leaves_hands_back_what_it_cannot_finish(federation: Federation, row: Row) -> None:
    """Within its grace of 5 s, though the training would take 20; the round ends in the same digest."""
    slow = {
        "train": {"name": "tests.faults.step:train", "args": {"seconds": 8}},
        "rounds": {"count": 1, "deadline": "2m"},
    }
    digests = federation.undisturbed(**slow)
    federation.aggregator()
    job = federation.submit(**slow)
    ledger = federation.servers.roster()
    until(lambda: all(member.busy for member in ledger.alive()), 30, "both at work", detail=federation.tails)
    leaver = federation.pool[0]
    os.kill(leaver.pid, signal.SIGTERM)
    row.fire("SIGTERM with a grace of 5 s, 8 s of training")
    until(lambda: not leaver.alive(), 12, "its end within the grace", detail=federation.tails)
    row.recovered()

    federation.holds(job, digests)
