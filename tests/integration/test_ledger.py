"""The referee on a real Redis: one winner of every race, and no step for whoever lost the lease."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared import names
from shared.errors import BadInput, Fenced, Stale
from shared.ledger import Ledger
from tests.conftest import Servers

SECONDS = 10.0
JOB = "t-abc234"
COHORT = ("a", "b", "c")
RACERS = 50


@pytest.fixture
def ledger(servers: Servers) -> Ledger:
    return servers.ledger()


def race(step: Callable[[int], Any]) -> list[Any]:
    """What `step` answers to fifty threads that begin it together."""
    together = threading.Barrier(RACERS)

    def run(number: int) -> Any:
        together.wait(SECONDS)
        return step(number)

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(run, range(RACERS)))


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"


def taken(ledger: Ledger, job: str = JOB, lease: float = 60.0) -> int:
    """A job with an owner; gives the fence."""
    assert ledger.create(job, 3)
    return ledger.claim(job, "one", lease)


def opened(ledger: Ledger, number: int = 0, seconds: float = 60.0, attempt: int = 1) -> int:
    """A job of which round `number` is open; gives the fence."""
    fence = taken(ledger)
    for earlier in range(number):
        ledger.open_round(JOB, fence, earlier, 1, COHORT, seconds)
        ledger.close_round(JOB, fence, earlier)
        ledger.commit_round(JOB, fence, earlier)
    ledger.open_round(JOB, fence, number, attempt, COHORT, seconds)
    return fence


# --- jobs ---------------------------------------------------------------------------------------


def test_one_of_fifty_creates_a_job(ledger: Ledger) -> None:
    """An id belongs to one start, however many try."""
    assert sorted(race(lambda _: ledger.create(JOB, 3))) == [False] * (RACERS - 1) + [True]
    assert [record.id for record in ledger.jobs()] == [JOB]


def test_a_new_job_is_queued(ledger: Ledger) -> None:
    """No owner, no model, and a word on what it waits for."""
    ledger.create(JOB, 3)
    record = ledger.required(JOB)

    assert (record.status, record.detail) == ("queued", "waiting for an aggregator")
    assert (record.round, record.rounds, record.owner, record.fence) == (-1, 3, "", 0)
    assert (record.started, record.ended, record.metrics) == (0.0, 0.0, {})


def test_a_job_that_is_not_there_is_a_persons_mistake(ledger: Ledger) -> None:
    """With the command that lists them."""
    assert ledger.job("no-abc234") is None
    with pytest.raises(BadInput, match="there is no job no-abc234; `fedq jobs` lists them"):
        ledger.required("no-abc234")
    with pytest.raises(Stale, match="job no-abc234 is unknown"):
        ledger.claim("no-abc234", "one", 60)


def test_a_job_can_be_taken_back(ledger: Ledger) -> None:
    """One that could not be announced leaves nothing, and its id is free."""
    ledger.create(JOB, 3)
    ledger.forget(JOB)

    assert ledger.jobs() == []
    assert ledger.create(JOB, 3)


def test_jobs_are_listed_the_newest_first(ledger: Ledger) -> None:
    """By when they were created."""
    for number in range(3):
        ledger.create(f"j{number}-abc234", 1)
        now = ledger.now()
        until(lambda now=now: ledger.now() > now + 0.001, "the next millisecond")  # type: ignore[misc]

    assert [record.id for record in ledger.jobs()] == ["j2-abc234", "j1-abc234", "j0-abc234"]


def test_one_of_fifty_claims_a_job(ledger: Ledger) -> None:
    """The others are told who has it."""
    ledger.create(JOB, 3)

    def claim(number: int) -> int | str:
        try:
            return ledger.claim(JOB, f"owner-{number}", 60)
        except Stale as error:
            return str(error)

    answers = race(claim)
    record = ledger.required(JOB)

    assert [answer for answer in answers if not isinstance(answer, str)] == [1]
    assert set(map(str, answers)) == {"1", f"job {JOB} is owned by {record.owner}"}
    assert (record.status, record.detail, record.fence) == ("running", "", 1)


def test_a_claim_asks_nobody_twice(ledger: Ledger) -> None:
    """The owner itself is refused too: a command that comes again starts no second runner."""
    taken(ledger)
    with pytest.raises(Stale, match="is owned by one"):
        ledger.claim(JOB, "one", 60)


def test_a_lease_that_ran_out_is_anybodys(ledger: Ledger) -> None:
    """The job is an orphan then; the next owner has a higher fence, and the start is the first one's."""
    fence = taken(ledger, lease=0.05)
    begun = ledger.required(JOB).started
    until(lambda: ledger.orphans() == [JOB], "the lease to run out")
    assert ledger.claim(JOB, "two", 60) == fence + 1

    assert ledger.orphans() == []
    assert (ledger.required(JOB).owner, ledger.required(JOB).started) == ("two", begun)


def test_a_renewed_lease_holds(ledger: Ledger) -> None:
    """From the moment it is renewed, for as long as it is renewed for."""
    fence = taken(ledger, lease=0.05)
    ledger.renew(JOB, fence, 60)
    later = ledger.now() + 0.1
    until(lambda: ledger.now() > later, "the first lease to have run out")

    assert ledger.orphans() == []
    with pytest.raises(Stale, match="is owned by one"):
        ledger.claim(JOB, "two", 60)


def test_a_late_renewal_is_good_while_nobody_else_came(ledger: Ledger) -> None:
    """A replica that was held up keeps its job; one that was replaced does not."""
    fence = taken(ledger, lease=0.01)
    until(lambda: ledger.orphans() == [JOB], "the lease to run out")
    ledger.renew(JOB, fence, 60)
    assert ledger.orphans() == []

    ledger.release(JOB, fence)
    ledger.claim(JOB, "two", 60)
    with pytest.raises(Fenced, match=f"job {JOB} belongs to another aggregator now"):
        ledger.renew(JOB, fence, 60)


def test_a_released_job_is_queued_and_an_orphan(ledger: Ledger) -> None:
    """Whoever looks first goes on with it."""
    fence = taken(ledger)
    ledger.release(JOB, fence)

    assert ledger.required(JOB).status == "queued"
    assert ledger.orphans() == [JOB]
    assert ledger.claim(JOB, "two", 60) == fence + 1


def test_a_job_that_nobody_began_is_no_orphan(ledger: Ledger) -> None:
    """Its command is still in the queue."""
    ledger.create(JOB, 3)

    assert ledger.orphans() == []


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_an_ended_job_is_nobodys(ledger: Ledger, status: str) -> None:
    """No orphan, not to be claimed, and the reason stays."""
    fence = taken(ledger)
    ledger.set_metrics(JOB, fence, {"accuracy": 0.5})
    ledger.end(JOB, fence, status, "because")
    record = ledger.required(JOB)

    assert (record.status, record.detail, record.metrics) == (status, "because", {"accuracy": 0.5})
    assert record.started <= record.ended <= ledger.now()
    assert ledger.orphans() == []
    with pytest.raises(Stale, match=f"job {JOB} is {status}"):
        ledger.claim(JOB, "two", 60)


STEPS: dict[str, Callable[[Ledger, int], Any]] = {
    "renew": lambda ledger, fence: ledger.renew(JOB, fence, 60),
    "release": lambda ledger, fence: ledger.release(JOB, fence),
    "describe": lambda ledger, fence: ledger.describe(JOB, fence, "waiting", "old"),
    "end": lambda ledger, fence: ledger.end(JOB, fence, "failed", "old"),
    "set_metrics": lambda ledger, fence: ledger.set_metrics(JOB, fence, {"old": 1.0}),
    "open_round": lambda ledger, fence: ledger.open_round(JOB, fence, 1, 2, ("old",), 1),
    "accept": lambda ledger, fence: ledger.accept(JOB, fence, 1, "a", {"old": 1}),
    "reject": lambda ledger, fence: ledger.reject(JOB, fence, 1, "a", "old"),
    "close_round": lambda ledger, fence: ledger.close_round(JOB, fence, 1),
    "commit_round": lambda ledger, fence: ledger.commit_round(JOB, fence, 1),
    "fail_round": lambda ledger, fence: ledger.fail_round(JOB, fence, 1),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_fenced_owner_changes_nothing(servers: Servers, ledger: Ledger, step: str) -> None:
    """Every step of the one before is refused, and what is in Redis stays as it is, byte by byte."""
    old = opened(ledger, 1)
    ledger.accept(JOB, old, 1, "b", {"examples": 1})
    ledger.release(JOB, old)
    new = ledger.claim(JOB, "two", 60)
    redis = servers.redis()

    def everything() -> dict[str, Any]:
        keys = [names.job_key(JOB), names.round_key(JOB, 1), names.accepted_key(JOB, 1), names.rejected_key(JOB, 1)]
        return {key: redis.hgetall(key) for key in keys}

    before = everything()
    for fence in (old, new + 1, 0):
        with pytest.raises(Fenced, match="belongs to another aggregator now"):
            STEPS[step](ledger, fence)

    assert everything() == before


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_a_job_that_is_not_there_makes_none(ledger: Ledger, step: str) -> None:
    """A record that was wiped is not brought back in pieces."""
    with pytest.raises(Fenced):
        STEPS[step](ledger, 1)

    assert ledger.job(JOB) is None
    assert ledger.round(JOB, 1) is None


# --- rounds -------------------------------------------------------------------------------------


def test_a_round_goes_from_open_to_committed(ledger: Ledger) -> None:
    """Open, accept, close, commit: each is on record as it happens."""
    fence = opened(ledger)
    found = ledger.round(JOB, 0)
    assert found is not None
    assert (found.state, found.attempt, found.cohort, found.accepted, found.rejected) == ("open", 1, COHORT, {}, {})
    assert found.deadline - found.opened == pytest.approx(60)
    assert ledger.required(JOB).detail == "round 0 of 3"

    assert ledger.accept(JOB, fence, 0, "b", {"examples": 2, "who": "ü"}) == "ok"
    assert ledger.accepted(JOB, 0, "b") == {"examples": 2, "who": "ü"}
    assert ledger.accepted(JOB, 0, "a") == {}
    ledger.reject(JOB, fence, 0, "c", "first reason")
    ledger.reject(JOB, fence, 0, "c", "second reason")
    assert ledger.close_round(JOB, fence, 0) == {"b": {"examples": 2, "who": "ü"}}
    ledger.commit_round(JOB, fence, 0)

    found = ledger.round(JOB, 0)
    assert found is not None
    assert (found.state, found.rejected) == ("committed", {"c": "first reason"})
    assert ledger.required(JOB).round == 0


def test_a_round_follows_the_last_committed_one(ledger: Ledger) -> None:
    """None is left out, none is opened again, and none before the one before it is committed."""
    fence = opened(ledger, 1)
    for number in (0, 2, 3):
        with pytest.raises(Stale, match=f"job {JOB} has moved on"):
            ledger.open_round(JOB, fence, number, 1, COHORT, 60)
    ledger.close_round(JOB, fence, 1)
    for number in (1, 2):
        with pytest.raises(Stale, match="has moved on"):
            ledger.open_round(JOB, fence, number, 1, COHORT, 60)
    ledger.commit_round(JOB, fence, 1)
    ledger.open_round(JOB, fence, 2, 1, COHORT, 60)

    found = ledger.round(JOB, 2)
    assert found is not None
    assert found.state == "open"


def test_what_was_not_closed_is_not_committed(ledger: Ledger) -> None:
    """Nor is what was never opened closed: the order is the contract."""
    fence = opened(ledger)
    with pytest.raises(Stale, match="has moved on"):
        ledger.commit_round(JOB, fence, 0)
    for step in (ledger.close_round, ledger.commit_round):
        with pytest.raises(Stale, match="has moved on"):
            step(JOB, fence, 1)

    assert ledger.required(JOB).round == -1
    assert ledger.round(JOB, 1) is None


def test_closing_freezes_the_set(ledger: Ledger) -> None:
    """What comes later is late, and closing again gives the same; so does committing again."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {"examples": 1})
    frozen = ledger.close_round(JOB, fence, 0)
    assert ledger.accept(JOB, fence, 0, "b", {"examples": 2}) == "late"
    assert ledger.standing(JOB, 0, "b") == "late"

    assert ledger.close_round(JOB, fence, 0) == frozen == {"a": {"examples": 1}}
    ledger.commit_round(JOB, fence, 0)
    ledger.commit_round(JOB, fence, 0)
    assert ledger.close_round(JOB, fence, 0) == frozen
    assert ledger.required(JOB).round == 0


def test_one_of_fifty_updates_of_a_client_counts(ledger: Ledger) -> None:
    """The others are duplicates, and what is on record is the one that was told so."""
    fence = opened(ledger)
    answers = race(lambda number: ledger.accept(JOB, fence, 0, "a", {"number": number}))

    assert sorted(answers) == ["duplicate"] * (RACERS - 1) + ["ok"]
    assert ledger.accepted(JOB, 0, "a") == {"number": answers.index("ok")}


def test_all_of_fifty_clients_count(ledger: Ledger) -> None:
    """Updates that come together do not push each other aside, and closing in their midst loses none it said ok to."""
    fence = taken(ledger)
    cohort = tuple(f"client-{number:02}" for number in range(RACERS))
    ledger.open_round(JOB, fence, 0, 1, cohort, 60)
    frozen: dict[str, Any] = {}

    def step(number: int) -> str:
        if number == 0:
            frozen.update(ledger.close_round(JOB, fence, 0))
            return "closed"
        return ledger.accept(JOB, fence, 0, cohort[number], {"number": number})

    answers = race(step)

    assert set(answers) <= {"ok", "late", "closed"}
    assert sorted(frozen) == [cohort[number] for number, answer in enumerate(answers) if answer == "ok"]


def test_standing_tells_how_an_update_would_fare(ledger: Ledger) -> None:
    """The same words as accepting it, without a trace."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {})
    words = {client: ledger.standing(JOB, 0, client) for client in ("a", "b", "stranger")}

    assert words == {"a": "duplicate", "b": "ok", "stranger": "stranger"}
    assert {client: ledger.accept(JOB, fence, 0, client, {}) for client in words} == words
    found = ledger.round(JOB, 0)
    assert found is not None
    assert list(found.accepted) == ["a", "b"]


@pytest.mark.parametrize("stranger", ["", "A", "a ", "a,b", '"a"', "[", "client"])
def test_a_stranger_is_no_member_in_part(ledger: Ledger, stranger: str) -> None:
    """Names are compared whole."""
    fence = opened(ledger)

    assert ledger.accept(JOB, fence, 0, stranger, {}) == "stranger"


def test_after_its_deadline_a_round_takes_nothing(ledger: Ledger) -> None:
    """Though it is still open, by Redis's clock; and it can be closed with what it has."""
    fence = opened(ledger, seconds=0.05)
    found = ledger.round(JOB, 0)
    assert found is not None
    until(lambda: ledger.now() > found.deadline + 0.001, "the deadline")

    assert ledger.accept(JOB, fence, 0, "a", {}) == "late"
    assert ledger.standing(JOB, 0, "a") == "late"
    assert ledger.close_round(JOB, fence, 0) == {}


def test_a_round_that_was_never_opened_takes_nothing(ledger: Ledger) -> None:
    """An update for the next round is late too: there is nobody to count it."""
    fence = opened(ledger)

    assert ledger.accept(JOB, fence, 1, "a", {}) == "late"
    assert ledger.standing(JOB, 1, "a") == "late"


def test_another_attempt_begins_with_nothing(servers: Servers, ledger: Ledger) -> None:
    """Updates and reasons of the failed one are gone, and so is its expiry: the round lives as long as the job."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {})
    ledger.reject(JOB, fence, 0, "b", "bad")
    ledger.fail_round(JOB, fence, 0)
    ledger.open_round(JOB, fence, 0, 2, ("a", "d"), 60)
    found = ledger.round(JOB, 0)

    assert found is not None
    assert (found.state, found.attempt, found.cohort, found.accepted, found.rejected) == ("open", 2, ("a", "d"), {}, {})
    assert ledger.accept(JOB, fence, 0, "a", {}) == "ok"
    assert ledger.accept(JOB, fence, 0, "b", {}) == "stranger"
    assert {servers.redis().ttl(key) for key in (names.round_key(JOB, 0), names.accepted_key(JOB, 0))} == {-1}


def test_a_failed_round_is_kept_for_a_week(servers: Servers, ledger: Ledger) -> None:
    """It has no manifest, so people look here; it takes nothing more, and is not closed."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {})
    ledger.reject(JOB, fence, 0, "b", "bad")
    ledger.fail_round(JOB, fence, 0)
    found = ledger.round(JOB, 0)

    assert found is not None
    assert (found.state, list(found.accepted), found.rejected) == ("failed", ["a"], {"b": "bad"})
    keys = (names.round_key(JOB, 0), names.accepted_key(JOB, 0), names.rejected_key(JOB, 0))
    assert all(7 * 86400 - 60 < servers.redis().ttl(key) <= 7 * 86400 for key in keys)
    assert ledger.accept(JOB, fence, 0, "c", {}) == "late"
    with pytest.raises(Stale, match="has moved on"):
        ledger.close_round(JOB, fence, 0)


def test_a_dropped_round_leaves_nothing(servers: Servers, ledger: Ledger) -> None:
    """The job goes on from it all the same."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {})
    ledger.reject(JOB, fence, 0, "b", "bad")
    ledger.close_round(JOB, fence, 0)
    ledger.commit_round(JOB, fence, 0)
    ledger.drop_round(JOB, 0)
    ledger.drop_round(JOB, 0)

    assert ledger.round(JOB, 0) is None
    assert sorted(servers.redis().keys("*")) == [names.job_key(JOB), names.JOBS]
    with pytest.raises(Stale):
        ledger.open_round(JOB, fence, 0, 1, COHORT, 60)
    ledger.open_round(JOB, fence, 1, 1, COHORT, 60)


def test_times_are_those_of_redis(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process believes it is 1970, and nobody notices."""
    began = ledger.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    fence = opened(ledger, seconds=60)
    ledger.close_round(JOB, fence, 0)
    ledger.end(JOB, fence, "failed", "")
    record, found = ledger.required(JOB), ledger.round(JOB, 0)

    assert found is not None
    times = [record.created, record.started, found.opened, record.ended, ledger.now()]
    assert times == sorted(times)
    assert began - 0.001 <= times[0]
    assert began < ledger.now() < began + SECONDS


def test_the_deadline_that_is_told_is_the_one_on_record(ledger: Ledger) -> None:
    """Trainers and runner count towards the same moment."""
    fence = taken(ledger)
    deadline = ledger.open_round(JOB, fence, 0, 1, COHORT, 1.5)
    found = ledger.round(JOB, 0)

    assert found is not None
    assert (deadline, deadline - found.opened) == (found.deadline, pytest.approx(1.5))
