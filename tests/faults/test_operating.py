"""What operators do in the middle of a job: stop, pause, resume, change, and restart everything under it."""

import pytest

from tests.faults.federation import Federation, Row
from tests.harness import until

SLOW = {"train": {"name": "tests.faults.step:train", "args": {"seconds": 1.5}}}  # a round takes longer than a command


@pytest.mark.row("every service and server restarted, one after the other", "P1 P2 P3 P5")
def test_a_rolling_restart_of_everything(federation: Federation, row: Row) -> None:
    """In the middle of a job, which completes in the undisturbed digests."""
    long = {"rounds": {"count": 12, "deadline": "2m"}}
    digests = federation.undisturbed(**long)
    aggregator = federation.aggregator()
    job = federation.submit(**long)
    federation.reached(job, 1)
    row.fire("rolling restart from round 2 on")
    for trainer in list(federation.pool):
        federation.stop(trainer)
        federation.trainers(1)
    federation.stop(federation.registry)
    federation.ready(federation.start("registry"))
    federation.stop(aggregator)
    federation.ready(federation.aggregator())
    stack = federation.servers.stack
    for server in (stack.redis, stack.rabbitmq, stack.s3):
        server.restart()

    federation.holds(job, digests)
    row.recovered()


@pytest.mark.row("stopped in mid-round, then resumed", "P3 P4 P5")
def test_stop_and_start_resume(federation: Federation, row: Row) -> None:
    """The same trainers, which have heard of its end, take it up again; with more rounds if one likes."""
    more = {"count": 7, "deadline": "60s"}
    digests = federation.undisturbed(**SLOW, rounds=more)
    federation.aggregator()
    job = federation.submit(**SLOW)
    federation.accepted(job, 3, 1)
    federation.fedq("stop", job)
    row.fire("fedq stop in round 3")
    record = federation.record(job)
    assert record is not None
    assert record.status == "stopped"
    federation.holds(job, None, outcome="stopped")
    federation.fedq("start", "--resume", job, "--set", "rounds.count=7")
    federation.reached(job, 3)
    row.recovered()

    federation.holds(job, digests)


@pytest.mark.row("failed at a deadline, then resumed with another", "P3 P4 P5")
def test_a_failed_job_is_resumed_with_another_deadline(federation: Federation, row: Row) -> None:
    """What was too short the first time need not be the second."""
    short = {"count": 2, "deadline": "1s"}
    digests = federation.undisturbed(**SLOW, rounds={"count": 2, "deadline": "60s"})
    federation.aggregator()
    job = federation.submit(**SLOW, rounds=short)
    record = federation.ended(job)
    row.fire(record.detail)
    assert record.status == "failed"
    federation.fedq("start", "--resume", job, "--set", "rounds.deadline=60s")
    federation.reached(job, 1)
    row.recovered()

    federation.holds(job, digests)


@pytest.mark.row("paused, its aggregator killed, Redis flushed, resumed", "P3 P4 P5")
def test_pause_survives_everything_and_resume_goes_on(federation: Federation, row: Row) -> None:
    """The open round is finished; nobody goes on until an operator says so, whatever dies meanwhile."""
    digests = federation.undisturbed(**SLOW)
    first = federation.aggregator()
    job = federation.submit(**SLOW)
    federation.accepted(job, 2, 1)
    federation.fedq("pause", job)
    paused = federation.record(job)
    assert paused is not None
    assert paused.status == "paused"
    assert 2 <= paused.round < 5
    federation.kill(first)
    federation.servers.redis().flushall()
    row.fire("SIGKILL and FLUSHALL while it is paused")
    federation.aggregator()
    until(lambda: federation.record(job), 20, "the job's record", detail=federation.tails)
    again = federation.record(job)
    assert again is not None
    assert (again.status, again.round) == ("paused", paused.round)
    federation.fedq("resume", job)
    federation.reached(job, paused.round + 1)
    row.recovered()

    federation.holds(job, digests)
