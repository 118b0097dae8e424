"""The referee on a real Redis: one winner of every race, and no step for whoever lost the lease."""

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from shared import names
from shared.errors import BadInput, Fenced, LedgerLost, Stale
from shared.process import settings
from shared.redis import ledger as ledgers
from shared.redis.ledger import ANNOUNCED, LOG, PIECE, Conflict, JobRecord, Ledger, Sum, Totals, Wanted
from tests.conftest import Servers

SECONDS = 60.0
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


def orphans(ledger: Ledger) -> list[str]:
    return ledger.orphans()[0]


def pass_a_millisecond(ledger: Ledger) -> None:
    """Times in the record are whole milliseconds; from here on they are later ones."""
    now = ledger.now()
    until(lambda: ledger.now() > now + 0.001, "the next millisecond")


def raw(servers: Servers) -> redis.Redis:
    """The driver itself, whose answers are bytes."""
    return redis.Redis.from_url(servers.settings(settings.Record).redis_url.get_secret_value())


def everything(servers: Servers) -> dict[bytes, bytes]:
    """Each key of the database, byte by byte."""
    driver = raw(servers)
    return {key: driver.dump(key) for key in driver.keys("*")}


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
        pass_a_millisecond(ledger)

    assert [record.id for record in ledger.jobs()] == ["j2-abc234", "j1-abc234", "j0-abc234"]


def test_one_of_fifty_claims_a_job(ledger: Ledger) -> None:
    """The others are told who has it; the fence is the time."""
    ledger.create(JOB, 3)
    began = ledger.now()

    def claim(number: int) -> int | str:
        try:
            return ledger.claim(JOB, f"owner-{number}", 60)
        except Stale as error:
            return str(error)

    answers = race(claim)
    record = ledger.required(JOB)

    assert [answer for answer in answers if not isinstance(answer, str)] == [record.fence]
    assert set(map(str, answers)) == {str(record.fence), f"job {JOB} is owned by {record.owner}"}
    assert (record.status, record.detail, record.claims) == ("running", "", 1)
    assert began - 0.001 <= record.fence / 1000 <= ledger.now()


def test_a_claim_asks_nobody_twice(ledger: Ledger) -> None:
    """The owner itself is refused too: a command that comes again starts no second runner."""
    taken(ledger)
    with pytest.raises(Stale, match="is owned by one"):
        ledger.claim(JOB, "one", 60)


def test_a_lease_that_ran_out_is_anybodys(ledger: Ledger) -> None:
    """The job is an orphan then; the next owner has a higher fence, and the start is the first one's."""
    fence = taken(ledger, lease=0.05)
    begun = ledger.required(JOB).started
    until(lambda: orphans(ledger) == [JOB], "the lease to run out")
    assert ledger.claim(JOB, "two", 60) > fence

    assert orphans(ledger) == []
    assert (ledger.required(JOB).owner, ledger.required(JOB).started) == ("two", begun)


def test_a_renewed_lease_holds(ledger: Ledger) -> None:
    """From the moment it is renewed, for as long as it is renewed for."""
    fence = taken(ledger, lease=0.05)
    ledger.renew(JOB, fence, 60)
    later = ledger.now() + 0.1
    until(lambda: ledger.now() > later, "the first lease to have run out")

    assert orphans(ledger) == []
    with pytest.raises(Stale, match="is owned by one"):
        ledger.claim(JOB, "two", 60)


def test_a_late_renewal_is_good_while_nobody_else_came(ledger: Ledger) -> None:
    """A replica that was held up keeps its job; one that was replaced does not."""
    fence = taken(ledger, lease=0.01)
    until(lambda: orphans(ledger) == [JOB], "the lease to run out")
    ledger.renew(JOB, fence, 60)
    assert orphans(ledger) == []

    ledger.release(JOB, fence)
    ledger.claim(JOB, "two", 60)
    with pytest.raises(Fenced, match=f"job {JOB} belongs to another aggregator now"):
        ledger.renew(JOB, fence, 60)


def test_a_released_job_is_queued_and_an_orphan(ledger: Ledger) -> None:
    """Whoever looks first goes on with it."""
    fence = taken(ledger)
    ledger.release(JOB, fence)

    assert ledger.required(JOB).status == "queued"
    assert orphans(ledger) == [JOB]
    assert ledger.claim(JOB, "two", 60) > fence


def test_a_job_that_nobody_began_waits_for_its_command(servers: Servers, ledger: Ledger) -> None:
    """The command is still in the queue; half a minute later it is taken for lost, and the job for an orphan."""
    ledger.create(JOB, 3)
    found, left = ledger.orphans()
    assert found == []
    assert left is not None
    assert 0 < left <= ANNOUNCED

    announced = int(servers.redis().hget(names.job_key(JOB), "announced"))
    servers.redis().hset(names.job_key(JOB), "announced", announced - int(ANNOUNCED * 1000))
    assert ledger.orphans() == ([JOB], None)


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_an_ended_job_is_nobodys(ledger: Ledger, status: str) -> None:
    """No orphan, not to be claimed, and the reason stays."""
    fence = taken(ledger)
    ledger.set_metrics(JOB, fence, {"accuracy": 0.5})
    ledger.end(JOB, fence, status, "because")
    record = ledger.required(JOB)

    assert (record.status, record.detail, record.metrics) == (status, "because", {"accuracy": 0.5})
    assert record.started <= record.ended <= ledger.now()
    assert orphans(ledger) == []
    with pytest.raises(Stale, match=f"job {JOB} is {status}"):
        ledger.claim(JOB, "two", 60)


STEPS: dict[str, Callable[[Ledger, int], Any]] = {
    "renew": lambda ledger, fence: ledger.renew(JOB, fence, 60),
    "check_owned": lambda ledger, fence: ledger.check_owned(JOB, fence),
    "advance": lambda ledger, fence: ledger.advance(JOB, fence, 2),
    "release": lambda ledger, fence: ledger.release(JOB, fence),
    "describe": lambda ledger, fence: ledger.describe(JOB, fence, "waiting", "old"),
    "end": lambda ledger, fence: ledger.end(JOB, fence, "failed", "old"),
    "set_metrics": lambda ledger, fence: ledger.set_metrics(JOB, fence, {"old": 1.0}),
    "open_round": lambda ledger, fence: ledger.open_round(JOB, fence, 1, 2, ("old",), 1),
    "extend": lambda ledger, fence: ledger.extend(JOB, fence, 1, 900, 900),
    "accept": lambda ledger, fence: ledger.accept(JOB, fence, 1, "a", {"old": 1}),
    "reject": lambda ledger, fence: ledger.reject(JOB, fence, 1, "a", "old"),
    "exclude": lambda ledger, fence: ledger.exclude(JOB, fence, 1, "b", "old"),
    "close_round": lambda ledger, fence: ledger.close_round(JOB, fence, 1),
    "commit_round": lambda ledger, fence: ledger.commit_round(JOB, fence, 1),
    "fail_round": lambda ledger, fence: ledger.fail_round(JOB, fence, 1, "old"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_fenced_owner_changes_nothing(servers: Servers, ledger: Ledger, step: str) -> None:
    """Every step of the one before is refused, and what is in Redis stays as it is, byte by byte."""
    old = opened(ledger, 1)
    ledger.accept(JOB, old, 1, "b", {"examples": 1})
    ledger.release(JOB, old)
    new = ledger.claim(JOB, "two", 60)
    before = everything(servers)
    for fence in (old, new + 1, 0):
        with pytest.raises(Fenced, match="belongs to another aggregator now"):
            STEPS[step](ledger, fence)

    assert everything(servers) == before


@pytest.mark.parametrize("step", STEPS)
def test_an_owner_who_slept_changes_nothing(servers: Servers, ledger: Ledger, step: str) -> None:
    """Its lease ran out while it was paused, and it wakes up in the middle of another's round."""
    paused = opened(ledger, 1)
    ledger.accept(JOB, paused, 1, "b", {"examples": 1})
    ledger.renew(JOB, paused, 0)
    new = ledger.claim(JOB, "two", 60)
    ledger.open_round(JOB, new, 1, 1, COHORT, 60)
    ledger.accept(JOB, new, 1, "b", {"examples": 1})
    before = everything(servers)
    with pytest.raises(Fenced):
        STEPS[step](ledger, paused)

    assert everything(servers) == before


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_a_job_that_is_not_there_makes_none(servers: Servers, ledger: Ledger, step: str) -> None:
    """A record that was wiped is not brought back in pieces, and who asks learns that it is lost."""
    with pytest.raises(LedgerLost, match=f"Redis has lost the record of job {JOB}"):
        STEPS[step](ledger, 1)

    assert everything(servers) == {}


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
    assert ledger.accepted(JOB, 0, ["b", "a"]) == {"b": {"examples": 2, "who": "ü"}}
    ledger.reject(JOB, fence, 0, "c", "first reason")
    ledger.reject_all(JOB, fence, 0, {"c": "second reason", "d": "its own"})
    assert ledger.close_round(JOB, fence, 0).accepted == {"b": {"examples": 2, "who": "ü"}}
    ledger.commit_round(JOB, fence, 0)

    found = ledger.round(JOB, 0)
    assert found is not None
    assert (found.state, found.rejected) == ("committed", {"c": "first reason", "d": "its own"})
    assert ledger.required(JOB).round == 0


def test_a_round_follows_the_last_committed_one(ledger: Ledger) -> None:
    """None is left out, none is opened again, and none before the one before it is committed."""
    fence = opened(ledger, 1)
    for number in (0, 2, 3):
        with pytest.raises(Conflict, match=f"job {JOB} has moved on"):
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
    with pytest.raises(LedgerLost, match="Redis has lost"):
        ledger.close_round(JOB, fence, 1)
    with pytest.raises(Conflict, match="has moved on"):
        ledger.commit_round(JOB, fence, 1)

    assert ledger.required(JOB).round == -1
    assert ledger.round(JOB, 1) is None


def test_closing_freezes_the_set(ledger: Ledger) -> None:
    """What comes later is late, and closing again gives the same; so does committing again."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {"examples": 1})
    frozen = ledger.close_round(JOB, fence, 0).accepted
    assert ledger.accept(JOB, fence, 0, "b", {"examples": 2}) == "late"
    assert ledger.admission(JOB, 0, "b") == "late"

    assert ledger.close_round(JOB, fence, 0).accepted == frozen == {"a": {"examples": 1}}
    ledger.commit_round(JOB, fence, 0)
    ledger.commit_round(JOB, fence, 0)
    assert ledger.close_round(JOB, fence, 0).accepted == frozen
    assert ledger.required(JOB).round == 0


def test_one_of_fifty_updates_of_a_client_counts(ledger: Ledger) -> None:
    """The others are duplicates, and what is on record is the one that was told so."""
    fence = opened(ledger)
    answers = race(lambda number: ledger.accept(JOB, fence, 0, "a", {"number": number}))

    assert sorted(answers) == ["duplicate"] * (RACERS - 1) + ["ok"]
    assert ledger.accepted(JOB, 0, ["a"]) == {"a": {"number": answers.index("ok")}}


def test_all_of_fifty_clients_count(ledger: Ledger) -> None:
    """Updates that come together do not push each other aside, and closing in their midst loses none it said ok to."""
    fence = taken(ledger)
    cohort = tuple(f"client-{number:02}" for number in range(RACERS))
    ledger.open_round(JOB, fence, 0, 1, cohort, 60)
    frozen: dict[str, Any] = {}

    def step(number: int) -> str:
        if number == 0:
            frozen.update(ledger.close_round(JOB, fence, 0).accepted)
            return "closed"
        return ledger.accept(JOB, fence, 0, cohort[number], {"number": number})

    answers = race(step)

    assert set(answers) <= {"ok", "late", "closed"}
    assert sorted(frozen) == [cohort[number] for number, answer in enumerate(answers) if answer == "ok"]


def test_standing_tells_how_an_update_would_fare(ledger: Ledger) -> None:
    """The same words as accepting it, without a trace."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {})
    words = {client: ledger.admission(JOB, 0, client) for client in ("a", "b", "stranger")}

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
    assert ledger.admission(JOB, 0, "a") == "late"
    assert ledger.close_round(JOB, fence, 0).accepted == {}


def test_a_round_that_was_never_opened_takes_nothing(ledger: Ledger) -> None:
    """An update for the next round is late too: there is nobody to count it."""
    fence = opened(ledger)

    assert ledger.accept(JOB, fence, 1, "a", {}) == "late"
    assert ledger.admission(JOB, 1, "a") == "late"


def test_another_attempt_begins_with_nothing(servers: Servers, ledger: Ledger) -> None:
    """Updates and reasons of the failed one are gone, and so is its expiry: the round lives as long as the job."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {})
    ledger.reject(JOB, fence, 0, "b", "bad")
    ledger.fail_round(JOB, fence, 0, "too few")
    ledger.open_round(JOB, fence, 0, 2, ("a", "d"), 60)
    found = ledger.round(JOB, 0)

    assert found is not None
    assert (found.state, found.attempt, found.cohort, found.accepted, found.rejected) == ("open", 2, ("a", "d"), {}, {})
    assert ledger.accept(JOB, fence, 0, "a", {}) == "ok"
    assert ledger.accept(JOB, fence, 0, "b", {}) == "stranger"
    keys = (names.round_key(JOB, 0), names.accepted_key(JOB, 0), names.cohort_key(JOB, 0))
    assert {servers.redis().ttl(key) for key in keys} == {-1}


def test_a_failed_round_is_kept_for_a_week(servers: Servers, ledger: Ledger) -> None:
    """It has no manifest, so people look here; it takes nothing more, and is not closed."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {})
    ledger.reject(JOB, fence, 0, "b", "bad")
    ledger.fail_round(JOB, fence, 0, "too few")
    found = ledger.round(JOB, 0)

    assert found is not None
    assert (found.state, found.reason) == ("failed", "too few")
    assert (list(found.accepted), found.rejected) == (["a"], {"b": "bad"})
    keys = (
        names.round_key(JOB, 0),
        names.accepted_key(JOB, 0),
        names.rejected_key(JOB, 0),
        names.cohort_key(JOB, 0),
    )
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


# --- what an operator wants ---------------------------------------------------------------------


def test_what_an_operator_wants_reaches_the_owner(ledger: Ledger) -> None:
    """With the renewal of the lease, and it stays until something else is wanted."""
    fence = taken(ledger)
    assert ledger.renew(JOB, fence, 60) == Wanted("running", "")
    assert ledger.want(JOB, Wanted("paused", "the grid is hot")) == "ok"

    assert ledger.renew(JOB, fence, 60) == Wanted("paused", "the grid is hot")
    assert ledger.required(JOB).wanted == Wanted("paused", "the grid is hot")
    ledger.release(JOB, fence)
    assert ledger.renew(JOB, ledger.claim(JOB, "two", 60), 60) == Wanted("paused", "the grid is hot")


def test_of_an_ended_job_nothing_is_wanted(ledger: Ledger) -> None:
    """The person is told that it is unknown, or how it ended."""
    assert ledger.want(JOB, Wanted("stopped", "")) == "unknown"
    ledger.end(JOB, taken(ledger), "failed", "because")

    assert ledger.want(JOB, Wanted("stopped", "enough")) == "failed"
    assert ledger.required(JOB).wanted == Wanted()


def test_a_paused_job_lies_still_until_it_is_revived(ledger: Ledger) -> None:
    """Nobody's orphan, not to be claimed; revived it goes on with what its open round had."""
    fence = opened(ledger, 1)
    ledger.accept(JOB, fence, 1, "a", {"examples": 1})
    ledger.want(JOB, Wanted("paused", "later"))
    ledger.release(JOB, fence, "paused", "later")
    assert (ledger.required(JOB).status, ledger.required(JOB).detail) == ("paused", "later")
    assert ledger.orphans() == ([], None)
    with pytest.raises(Stale, match=f"job {JOB} is paused"):
        ledger.claim(JOB, "two", 60)

    assert ledger.revive(JOB, 3) == "ok"
    record, found = ledger.required(JOB), ledger.round(JOB, 1)
    assert (record.status, record.wanted, record.claims) == ("queued", Wanted(), 0)
    assert found is not None
    assert list(found.accepted) == ["a"]
    assert ledger.claim(JOB, "two", 60) > fence


def test_an_ended_job_is_revived_with_more_rounds(ledger: Ledger) -> None:
    """It is queued as if it were new, but for its model; the round that failed begins anew."""
    fence = opened(ledger, 1)
    ledger.accept(JOB, fence, 1, "a", {"examples": 1})
    ledger.fail_round(JOB, fence, 1, "too few")
    ledger.end(JOB, fence, "failed", "too few")
    pass_a_millisecond(ledger)
    assert ledger.revive(JOB, 7) == "ok"
    record = ledger.required(JOB)

    assert (record.status, record.round, record.rounds, record.ended) == ("queued", 0, 7, 0.0)
    assert ledger.round(JOB, 1) is None
    found, left = ledger.orphans()
    assert found == []
    assert left is not None
    assert 0 < left <= ANNOUNCED
    assert ledger.revive(JOB, 9) == "conflict"
    assert ledger.revive("no-abc234", 9) == "unknown"
    assert ledger.required(JOB).rounds == 7


# --- owners that come and go --------------------------------------------------------------------


def test_owners_without_a_commit_are_counted(ledger: Ledger) -> None:
    """A job that ends each of its owners is known by it; a commit, or one that the store knows, starts again at 0.

    An owner that hands the job over has not been lost.
    """
    fence = taken(ledger)
    for count in (1, 2, 3):
        assert ledger.required(JOB).claims == count
        ledger.renew(JOB, fence, 0)
        fence = ledger.claim(JOB, "again", 60)
    ledger.open_round(JOB, fence, 0, 1, COHORT, 60)
    ledger.close_round(JOB, fence, 0)
    ledger.commit_round(JOB, fence, 0)
    assert ledger.required(JOB).claims == 0

    for _ in range(3):
        ledger.release(JOB, fence)
        fence = ledger.claim(JOB, "again", 60)
    assert ledger.required(JOB).claims == 1
    ledger.advance(JOB, fence, 0)
    assert ledger.required(JOB).claims == 1
    ledger.advance(JOB, fence, 1)
    assert ledger.required(JOB).claims == 0


def test_a_job_claimed_and_released_at_once_is_an_orphan_at_once(ledger: Ledger) -> None:
    """Though all of it be within the millisecond of its creation: its command was heard."""
    for number in range(RACERS):
        job = f"j{number}-abc234"
        ledger.create(job, 1)
        ledger.release(job, ledger.claim(job, "one", 60))

    assert len(orphans(ledger)) == RACERS


def test_the_next_orphan_is_foretold(ledger: Ledger) -> None:
    """Whoever looks need not look again before the first lease can have run out."""
    assert ledger.orphans() == ([], None)
    for number, lease in enumerate((60.0, 0.0, 20.0)):
        taken(ledger, f"j{number}-abc234", lease)
    found, left = ledger.orphans()

    assert found == ["j1-abc234"]
    assert left is not None
    assert 0 < left <= 20


def test_a_fence_never_falls_though_redis_forgets_it(servers: Servers, ledger: Ledger) -> None:
    """Redis is flushed and the job restored, over and over: whoever owned it before is fenced on the spot."""
    fences = [taken(ledger)]
    for _ in range(RACERS):
        record = ledger.required(JOB)
        servers.redis().flushdb()
        assert ledger.restore(record)
        with pytest.raises(Fenced):
            ledger.check_owned(JOB, fences[-1])
        fences.append(ledger.claim(JOB, "next", 60))

    assert all(earlier < later for earlier, later in itertools.pairwise(fences))


def test_every_owner_can_be_unseated(ledger: Ledger) -> None:
    """Redis went back in time, and whoever owns a job by it may know what it no longer does; the others are let be."""
    owned, new, over = taken(ledger), "new-abc234", "over-abc234"
    ledger.create(new, 1)
    ledger.end(over, taken(ledger, over), "finished", "")
    before = [ledger.required(new), ledger.required(over)]
    ledger.drop_owners(owned)
    assert [ledger.required(new), ledger.required(over)] == before
    assert orphans(ledger) == [JOB]
    with pytest.raises(Fenced):
        ledger.renew(JOB, owned, 60)

    dropped, fence = ledger.required(JOB).fence, ledger.claim(JOB, "next", 60)
    assert owned < dropped < fence
    ledger.drop_owners(owned)
    ledger.check_owned(JOB, fence)  # claimed since


def test_a_fence_is_given_once(ledger: Ledger) -> None:
    """Also to owners that follow each other within one millisecond."""
    ledger.create(JOB, 3)
    fences = []
    for _ in range(RACERS):
        fences.append(ledger.claim(JOB, "one", 60))
        ledger.release(JOB, fences[-1])

    assert all(earlier < later for earlier, later in itertools.pairwise(fences))


# --- what the object store knows ----------------------------------------------------------------


def kept(**changes: Any) -> JobRecord:
    """A job as the object store may have it."""
    known = JobRecord(
        id=JOB,
        status="queued",
        detail="",
        round=4,
        rounds=9,
        owner="",
        fence=0,
        created=1e9,
        started=1e9 + 1,
        ended=0.0,
    )
    return dataclasses.replace(known, **changes)


def test_a_job_is_restored_once(ledger: Ledger) -> None:
    """As the store has it, an orphan at once; a job that Redis knows is left alone."""
    assert ledger.restore(kept(metrics={"loss": 0.5}, wanted=Wanted("paused", "later")))
    record = ledger.required(JOB)
    assert (record.status, record.round, record.rounds, record.claims) == ("queued", 4, 9, 0)
    assert (record.created, record.started, record.ended) == (1e9, 1e9 + 1, 0.0)
    assert (record.metrics, record.wanted) == ({"loss": 0.5}, Wanted("paused", "later"))
    assert ledger.orphans() == ([JOB], None)
    assert [found.id for found in ledger.jobs()] == [JOB]

    assert not ledger.restore(kept(round=5))
    assert ledger.required(JOB) == record


def test_one_of_fifty_restores_a_job(ledger: Ledger) -> None:
    """Replicas that notice the loss together make one record of it."""
    answers = race(lambda number: ledger.restore(kept(round=number)))

    assert sorted(answers) == [False] * (RACERS - 1) + [True]
    assert ledger.required(JOB).round == answers.index(True)


def test_an_ended_job_is_restored_as_ended(ledger: Ledger) -> None:
    """With its end, and it stays nobody's."""
    ledger.restore(kept(status="finished", detail="done", ended=2e9))

    assert (ledger.required(JOB).status, ledger.required(JOB).detail) == ("finished", "done")
    assert ledger.required(JOB).ended == 2e9
    assert ledger.orphans() == ([], None)
    with pytest.raises(Stale, match="is finished"):
        ledger.claim(JOB, "one", 60)


def test_a_restored_job_goes_on(ledger: Ledger) -> None:
    """From the round after the last one that the store has, and from no other."""
    ledger.restore(kept())
    fence = ledger.claim(JOB, "one", 60)
    with pytest.raises(Conflict):
        ledger.open_round(JOB, fence, 4, 1, COHORT, 60)
    ledger.open_round(JOB, fence, 5, 1, COHORT, 60)

    assert ledger.accept(JOB, fence, 5, "a", {}) == "ok"


def test_the_store_may_be_ahead(ledger: Ledger) -> None:
    """Its manifests are commits that Redis missed: what Redis has of those rounds is dropped, and nothing goes back."""
    fence = opened(ledger, 1)
    ledger.accept(JOB, fence, 1, "a", {})
    ledger.advance(JOB, fence, 3)
    assert ledger.required(JOB).round == 3
    assert [ledger.round(JOB, number) for number in range(4)] == [None] * 4

    ledger.advance(JOB, fence, 2)
    assert ledger.required(JOB).round == 3
    ledger.open_round(JOB, fence, 4, 1, COHORT, 60)


# --- what rounds came to --------------------------------------------------------------------------

ROUND = Totals(
    rounds={"committed": Sum(1, 1.5)},
    parts={"train": Sum(2, 0.75), "fold": Sum(2, 0.000_001)},
    updates={"accepted": 2, "rejected": 1},
)
FAILED = Totals(rounds={"failed": Sum(1, 60.0)}, updates={"abandoned": 1})


def test_a_round_is_counted_where_it_is_committed(ledger: Ledger) -> None:
    """Once, however often it is said, by the owner or by the next one who finds its manifest."""
    assert ledger.totals() == Totals()
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {})
    ledger.close_round(JOB, fence, 0)
    assert ledger.totals() == Totals(), "closed is not committed"
    for _ in range(2):
        ledger.commit_round(JOB, fence, 0, ROUND)
        assert ledger.totals() == ROUND
    ledger.release(JOB, fence)
    fence = ledger.claim(JOB, "two", 60)
    ledger.advance(JOB, fence, 0, ROUND)
    assert ledger.totals() == ROUND


def test_a_commit_that_only_the_store_knows_is_counted_with_it(ledger: Ledger) -> None:
    """Its owner died between the manifest and the ledger; it may still be alive enough to say so."""
    old = opened(ledger)
    ledger.close_round(JOB, old, 0)
    ledger.release(JOB, old)
    fence = ledger.claim(JOB, "two", 60)
    for _ in range(2):
        ledger.advance(JOB, fence, 0, ROUND)
        with pytest.raises(Fenced):
            ledger.commit_round(JOB, old, 0, ROUND)

    assert ledger.totals() == ROUND


def test_each_attempt_that_fails_is_counted_once(ledger: Ledger) -> None:
    """And adds to what was counted before."""
    fence = opened(ledger)
    for attempt in (1, 2):
        ledger.open_round(JOB, fence, 0, attempt, COHORT, 60)
        for _ in range(2):
            ledger.fail_round(JOB, fence, 0, "too few", FAILED)
        assert ledger.totals().rounds == {"failed": Sum(attempt, attempt * 60.0)}
    ledger.open_round(JOB, fence, 0, 3, COHORT, 60)
    ledger.close_round(JOB, fence, 0)
    ledger.commit_round(JOB, fence, 0, ROUND)

    assert ledger.totals().updates == {"abandoned": 2, "accepted": 2, "rejected": 1}
    assert ledger.totals().rounds == {"committed": Sum(1, 1.5), "failed": Sum(2, 120.0)}
    assert ledger.totals().parts == ROUND.parts


def test_an_open_round_shows_how_far_it_is(ledger: Ledger) -> None:
    """Until it is committed or has failed."""
    fence = taken(ledger)
    assert ledger.progress(JOB, 0) is None
    ledger.open_round(JOB, fence, 0, 1, COHORT, 60, target=2)
    assert ledger.progress(JOB, 0) == (0, 2)
    ledger.accept_all(JOB, fence, 0, {"a": {}, "b": {}})
    ledger.close_round(JOB, fence, 0)
    assert ledger.progress(JOB, 0) == (2, 2)
    ledger.commit_round(JOB, fence, 0)
    assert ledger.progress(JOB, 0) is None

    ledger.open_round(JOB, fence, 1, 1, COHORT, 60)
    assert ledger.progress(JOB, 1) == (0, len(COHORT))
    ledger.fail_round(JOB, fence, 1, "too few")
    assert ledger.progress(JOB, 1) is None


# --- a round that is held up, or loses what it had ------------------------------------------------


def test_an_open_round_is_given_more_time(ledger: Ledger) -> None:
    """From now, never less than it had, and never more than the limit from its opening."""
    fence = opened(ledger, seconds=10)
    found = ledger.round(JOB, 0)
    assert found is not None

    assert ledger.extend(JOB, fence, 0, 1, 100) == pytest.approx(10, abs=1)
    assert ledger.extend(JOB, fence, 0, 20, 100) == pytest.approx(20, abs=1)
    assert ledger.extend(JOB, fence, 0, 500, 100) == pytest.approx(100, abs=1)
    extended = ledger.round(JOB, 0)
    assert extended is not None
    assert (extended.opened, extended.deadline) == (found.opened, pytest.approx(found.opened + 100))


def test_a_round_that_is_over_its_deadline_can_be_extended(ledger: Ledger) -> None:
    """What was late a moment ago counts again; there is nothing left where the limit is passed."""
    fence = opened(ledger, seconds=0.02)
    until(lambda: ledger.admission(JOB, 0, "a") == "late", "the deadline")
    assert ledger.extend(JOB, fence, 0, 60, 0.02) == 0
    assert ledger.admission(JOB, 0, "a") == "late"

    assert ledger.extend(JOB, fence, 0, 60, 60) > 0
    assert ledger.accept(JOB, fence, 0, "a", {}) == "ok"


def test_only_an_open_round_is_extended(ledger: Ledger) -> None:
    """A closed one has moved on, and one that Redis does not have is lost."""
    fence = opened(ledger)
    with pytest.raises(LedgerLost, match="Redis has lost"):
        ledger.extend(JOB, fence, 1, 60, 60)
    ledger.close_round(JOB, fence, 0)
    with pytest.raises(Conflict):
        ledger.extend(JOB, fence, 0, 60, 60)


def test_an_update_that_cannot_be_had_is_excluded_with_the_reason(ledger: Ledger) -> None:
    """It counts no more, the reason is that of its exclusion, and the client may send another."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {"number": 1})
    ledger.accept(JOB, fence, 0, "b", {"number": 2})
    ledger.reject(JOB, fence, 0, "a", "a second update")
    ledger.exclude(JOB, fence, 0, "a", "its blob is gone")
    ledger.exclude(JOB, fence, 0, "c", "never counted")
    found = ledger.round(JOB, 0)

    assert found is not None
    assert (list(found.accepted), found.rejected) == (["b"], {"a": "its blob is gone"})
    assert ledger.accept(JOB, fence, 0, "a", {"number": 3}) == "ok"
    assert sorted(ledger.close_round(JOB, fence, 0).accepted) == ["a", "b"]
    with pytest.raises(Conflict):
        ledger.exclude(JOB, fence, 0, "a", "too late for that")


def test_a_close_that_finds_too_few_freezes_nothing(ledger: Ledger) -> None:
    """Redis has forgotten an update that was counted: it is the caller's to bring it back."""
    fence = opened(ledger)
    ledger.accept(JOB, fence, 0, "a", {"number": 1})
    with pytest.raises(LedgerLost, match="Redis has lost"):
        ledger.close_round(JOB, fence, 0, counted=2)
    found = ledger.round(JOB, 0)
    assert found is not None
    assert found.state == "open"

    assert ledger.accept(JOB, fence, 0, "b", {"number": 2}) == "ok"
    assert sorted(ledger.close_round(JOB, fence, 0, counted=2).accepted) == ["a", "b"]
    assert sorted(ledger.close_round(JOB, fence, 0, counted=3).accepted) == ["a", "b"], "what is frozen is frozen"


def test_a_round_that_is_not_there_does_not_fail(servers: Servers, ledger: Ledger) -> None:
    """Half a record would be unreadable; and what is committed is committed."""
    fence = opened(ledger)
    before = everything(servers)
    with pytest.raises(LedgerLost):
        ledger.fail_round(JOB, fence, 1, "too few")
    assert everything(servers) == before

    ledger.close_round(JOB, fence, 0)
    ledger.commit_round(JOB, fence, 0)
    with pytest.raises(Conflict):
        ledger.fail_round(JOB, fence, 0, "too few")


def test_waiting_is_counted_from_its_beginning(ledger: Ledger) -> None:
    """However often it is said again, until a round opens or the job runs."""
    fence = taken(ledger)
    assert ledger.required(JOB).waiting == 0
    ledger.describe(JOB, fence, "waiting", "no trainers")
    since = ledger.required(JOB).waiting
    pass_a_millisecond(ledger)
    ledger.describe(JOB, fence, "waiting", "still none")
    assert (ledger.required(JOB).waiting, ledger.required(JOB).detail) == (since, "still none")

    ledger.open_round(JOB, fence, 0, 1, COHORT, 60)
    assert ledger.required(JOB).waiting == 0
    ledger.describe(JOB, fence, "waiting", "none again")
    assert ledger.required(JOB).waiting > since
    ledger.describe(JOB, fence, "running", "")
    assert ledger.required(JOB).waiting == 0


# --- what went wrong ----------------------------------------------------------------------------


def test_faults_are_counted_and_a_jobs_are_told_in_order(ledger: Ledger) -> None:
    """The count is everybody's, the log is the job's."""
    began = ledger.now()
    ledger.note("record-lost", "Redis was flushed")
    ledger.note("record-lost", "again, with ü", JOB, 3)
    ledger.note_all("late", ["b"], JOB)

    assert ledger.faults() == {"late": 1, "record-lost": 2}
    first, second = ledger.log(JOB)
    assert (first["fault"], first["round"], first["detail"]) == ("record-lost", 3, "again, with ü")
    assert (second["fault"], second["round"], second["detail"]) == ("late", -1, "b")
    assert began - 0.001 <= first["at"] <= second["at"] <= ledger.now()


def test_a_log_does_not_grow_for_ever(ledger: Ledger) -> None:
    """Its oldest lines go first, and a line has an end."""
    for number in range(LOG + 5):
        ledger.note("late", str(number), JOB)
    ledger.note("late", "x" * 5000, JOB)
    lines = ledger.log(JOB)

    assert len(lines) == LOG
    assert (lines[0]["detail"], lines[-1]["detail"]) == ("6", "x" * 1000)
    assert ledger.faults() == {"late": LOG + 6}


def test_the_pulse_notices_that_redis_went_back(servers: Servers, ledger: Ledger) -> None:
    """Each look finds the one before; a flush leaves none to find, and a roll-back an older one, until it is healed."""
    before, first = ledger.pulse("one", -1)
    assert before == -1
    saved = raw(servers).dump(names.pulse_key("one"))
    pass_a_millisecond(ledger)
    before, second = ledger.pulse("one", first)
    assert before == first < second

    raw(servers).restore(names.pulse_key("one"), 0, saved, replace=True)
    for _ in range(2):  # however often it looks
        before, third = ledger.pulse("one", second)
        assert before == first < second < third
    _, healed = ledger.pulse("one", -1)
    assert ledger.pulse("one", healed)[0] == healed

    servers.redis().flushdb()
    assert [ledger.pulse("one", healed)[0] for _ in range(2)] == [-1, -1]


def test_no_replica_hides_from_another_that_redis_went_back(servers: Servers, ledger: Ledger) -> None:
    """One that slept, or has just begun, knows of nothing that is gone, and looks first."""
    _, known = ledger.pulse("one", -1)
    servers.redis().flushdb()
    ledger.pulse("two", -1)

    assert ledger.pulse("one", known)[0] == -1
    assert 0 < servers.redis().ttl(names.pulse_key("two")) <= 7 * 86400


# --- huge rounds ----------------------------------------------------------------------------------


def cohort_of(size: int) -> tuple[str, ...]:
    return tuple(f"client-{number:06d}" for number in range(size))


@pytest.mark.parametrize("size", [1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_a_cohort_of_any_size_is_read_as_it_was_opened(servers: Servers, ledger: Ledger, size: int) -> None:
    """In pieces or in one, with all that it accepted, and nothing of the pieces is left beside it."""
    fence, cohort = taken(ledger), cohort_of(size)[::-1]
    ledger.open_round(JOB, fence, 0, 1, cohort, 60)
    for start in range(0, size, 500):
        part = cohort[start : start + 500]
        assert ledger.accept_all(JOB, fence, 0, {client: {"number": client} for client in part}) == "ok"
    found = ledger.close_round(JOB, fence, 0)

    assert found.cohort == cohort
    assert found.accepted == {client: {"number": client} for client in cohort}
    assert names.staged_key(JOB, 0, fence) not in servers.redis().keys("*")


def test_a_smaller_cohort_takes_over_nothing_of_a_larger_one(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the attempt before, nor of pieces that waited for a call that never came."""
    fence, cohort = taken(ledger), cohort_of(9)
    monkeypatch.setattr(ledgers, "PIECE", 2)
    ledger.open_round(JOB, fence, 0, 1, cohort, 60)
    with monkeypatch.context() as patched:
        patched.setattr(ledgers, "_ms", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ledger.open_round(JOB, fence, 0, 2, cohort, 60)
    ledger.fail_round(JOB, fence, 0, "too few")
    ledger.open_round(JOB, fence, 0, 2, cohort[:3], 60)
    found = ledger.round(JOB, 0)

    assert found is not None
    assert found.cohort == cohort[:3]
    assert ledger.accept(JOB, fence, 0, cohort[8], {}) == "stranger"


def interrupted(_: float) -> int:
    """The process dies between two calls."""
    raise KeyboardInterrupt


def test_a_cohort_whose_pieces_are_gone_is_not_opened(
    servers: Servers, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis forgot them between two calls: the round would ask fewer than it says."""
    fence = taken(ledger)
    monkeypatch.setattr(ledgers, "PIECE", 2)

    def forgetting(seconds: float) -> int:
        servers.redis().delete(names.staged_key(JOB, 0, fence))
        return int(seconds * 1000)

    monkeypatch.setattr(ledgers, "_ms", forgetting)
    with pytest.raises(LedgerLost):
        ledger.open_round(JOB, fence, 0, 1, cohort_of(5), 60)
    assert ledger.round(JOB, 0) is None


def test_who_was_fenced_gathers_no_cohort(servers: Servers, ledger: Ledger) -> None:
    fence = taken(ledger)
    with pytest.raises(Fenced):
        ledger.open_round(JOB, fence - 1, 0, 1, cohort_of(PIECE + 1), 60)
    assert servers.redis().keys("*:cohort*") == []


def test_accepting_costs_the_same_in_any_cohort(servers: Servers, ledger: Ledger) -> None:
    """Redis's own processor time for a batch of 50, in a round of 30,000 as in one of 100."""

    fence = taken(ledger)

    def spent(number: int, size: int) -> float:
        cohort = cohort_of(size)
        ledger.open_round(JOB, fence, number, 1, cohort, 600)
        before = processor(servers)
        for start in range(0, 100, 50):
            part = cohort[start : start + 50]
            assert ledger.accept_all(JOB, fence, number, {client: {} for client in part}) == "ok"
            assert ledger.admission(JOB, number, part[0]) == "duplicate"
        took = processor(servers) - before
        ledger.close_round(JOB, fence, number)
        ledger.commit_round(JOB, fence, number)
        return took

    small, large = spent(0, 100), spent(1, 30_000)
    assert large < 10 * small + 0.02, f"{large:.4f} s in a cohort of 30,000, {small:.4f} s in one of 100"


def processor(servers: Servers) -> float:
    """Seconds that Redis has worked, whoever else works on the machine."""
    found = servers.redis().info("cpu")
    return float(found["used_cpu_user"] + found["used_cpu_sys"])


def test_what_a_batch_has_in_common_is_in_memory_once(ledger: Ledger) -> None:
    """And each entry is still what was said: equal numbers of another kind are not the same."""
    fence = opened(ledger)
    blob = {"key": "k", "size": 1, "digest": "d"}
    said: dict[str, Any] = {
        "a": {"blob": blob, "metrics": {"loss": 1}},
        "b": {"blob": blob, "metrics": {"loss": 1.0}},
        "c": {"blob": blob, "metrics": {"loss": -0.0}, "state": {"loss": 0.0}},
    }
    ledger.accept_all(JOB, fence, 0, said)
    found = ledger.close_round(JOB, fence, 0).accepted

    assert repr(found) == repr(said)
    assert found["a"]["blob"] is found["b"]["blob"] is found["c"]["blob"]
