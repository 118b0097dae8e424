"""The roster on a real Redis: leases that are kept, given up and run out, each exactly once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.events import Heartbeat
from shared.redis.roster import Roster, groups
from tests.conftest import Servers

SECONDS = 60.0


@pytest.fixture
def roster(servers: Servers) -> Roster:
    return servers.roster()


def beat(trainer: str = "one", **changes: Any) -> Heartbeat:
    values: dict[str, Any] = {
        "trainer": trainer, "pool": "cpu", "client": None, "host": "höst", "pid": 7, "device": "cuda:0",
        "slots": 4, "busy": 1, "sent_at": 0.0,
    }  # fmt: skip
    return Heartbeat(**values | changes)


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
    return found


def race(threads: int, step: Callable[[], Any]) -> list[Any]:
    together = threading.Barrier(threads)

    def run(_: int) -> Any:
        together.wait(SECONDS)
        return step()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def test_a_trainer_joins_once(roster: Roster) -> None:
    """Its first sign of life admits it; each later one only keeps it there."""
    assert roster.admit(beat(), 60) is True
    assert roster.admit(beat(), 60) is False
    assert [member.trainer for member in roster.alive()] == ["one"]


def test_one_of_many_heartbeats_is_the_first(roster: Roster) -> None:
    """A trainer is announced once, however many replicas of the registry hear it."""
    assert sorted(race(20, lambda: roster.admit(beat(), 60))) == [False] * 19 + [True]


def test_a_member_is_as_its_last_heartbeat_showed_it(servers: Servers, roster: Roster) -> None:
    """Every field, the time its lease still runs, and how far its clock is off."""
    roster.admit(beat(busy=0), 60)
    now = servers.ledger().now()
    roster.admit(beat(busy=3, sent_at=now - 100), 30)
    (member,) = roster.alive()

    assert (member.trainer, member.pool, member.client, member.group) == ("one", "cpu", None, "cpu")
    assert (member.host, member.pid, member.device, member.slots, member.busy) == ("höst", 7, "cuda:0", 4, 3)
    assert 20 < member.alive_for <= 30
    assert member.skew == pytest.approx(-100, abs=5)


def test_members_come_in_the_order_of_their_names(roster: Roster) -> None:
    """Whenever they joined; a silo has a client where others have a pool."""
    roster.admit(beat("z"), 10)
    roster.admit(beat("b", pool=None, client="hospital-a"), 30)
    roster.admit(beat("a"), 20)

    assert [(member.trainer, member.group) for member in roster.alive()] == [
        ("a", "cpu"),
        ("b", "hospital-a"),
        ("z", "cpu"),
    ]
    assert groups(roster.alive()) == {"cpu": 8, "hospital-a": 4}


def test_nobody_is_alive_in_an_empty_roster(roster: Roster) -> None:
    """And there is nothing to wait for."""
    assert (roster.alive(), roster.sweep(), roster.next_expiry(), roster.remove("one")) == ([], [], None, False)


def test_who_leaves_is_gone_at_once(servers: Servers, roster: Roster) -> None:
    """One of several callers did it; nothing is left in Redis, and a later heartbeat is a new trainer's."""
    roster.admit(beat(), 60)

    assert sorted(race(8, lambda: roster.remove("one"))) == [False] * 7 + [True]
    assert (roster.alive(), roster.sweep(), servers.redis().keys("*")) == ([], [], [])
    assert roster.admit(beat(), 60) is True


def test_who_is_silent_is_not_alive_and_is_swept_once(servers: Servers, roster: Roster) -> None:
    """Not counted from the moment its lease ends, even before anybody swept."""
    roster.admit(beat("silent"), 0.05)
    roster.admit(beat("alive"), 60)
    until(lambda: [member.trainer for member in roster.alive()] == ["alive"], "the lease to run out")

    assert roster.next_expiry() == 0.0
    assert roster.sweep() == ["silent"]
    assert roster.sweep() == []
    assert servers.redis().exists("fedq:trainer:silent") == 0
    assert roster.admit(beat("silent"), 60) is True


def test_a_heartbeat_before_the_sweep_saves_a_trainer(roster: Roster) -> None:
    """Late, but nobody had said it was lost: so it neither leaves nor joins."""
    roster.admit(beat(), 0.01)
    until(lambda: not roster.alive(), "the lease to run out")

    assert roster.admit(beat(), 60) is False
    assert roster.sweep() == []
    assert len(roster.alive()) == 1


def test_each_lost_trainer_is_named_to_one_sweeper(roster: Roster) -> None:
    """Of ten that sweep together, several times over; those alive are named to none."""
    lost = sorted(f"lost-{number:02}" for number in range(40))
    for number, trainer in enumerate(lost):
        roster.admit(beat(trainer), 0.001 * number)
    roster.admit(beat("alive"), 60)

    def sweep() -> list[str]:
        deadline = time.monotonic() + SECONDS
        named: list[str] = []
        while len(roster.alive()) > 1 or roster.next_expiry() == 0.0:
            named += roster.sweep()
            assert time.monotonic() < deadline
        return named

    named = [trainer for found in race(10, sweep) for trainer in found]

    assert sorted(named) == lost
    assert [member.trainer for member in roster.alive()] == ["alive"]


def test_the_next_expiry_is_the_first_ones(roster: Roster) -> None:
    """Whoever waits that long and sweeps finds it."""
    roster.admit(beat("late"), 60)
    roster.admit(beat("soon"), 0.2)
    left = roster.next_expiry()

    assert left is not None
    assert 0 < left <= 0.2
    assert threading.Event().wait(left) is False  # the registry waits so
    assert until(roster.sweep, "the trainer that is lost") == ["soon"]
    assert 50 < (roster.next_expiry() or 0) <= 60


def test_leases_are_counted_by_redis(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's clock stands still and nobody notices."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    roster.admit(beat(), 60)
    (member,) = roster.alive()

    assert 50 < member.alive_for <= 60
    assert member.skew < -1e9  # `sent_at` is 1970
