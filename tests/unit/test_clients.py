"""Names of clients: they are what a list of them would be, and nobody makes the list."""

import hashlib
import tracemalloc
from collections import Counter
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.aggregator import job_state
from services.aggregator.evaluation import evaluators
from services.aggregator.protocol import Accepted, Looked, Opened
from services.aggregator.selection import lottery
from services.aggregator.selection.cohort import enough, select
from shared.job import job_spec
from shared.job.clients import Listed, Numbered
from shared.job.job_spec import JobSpec

MILLION = 1_000_000
ALIVE = {"pool": 1}


def spec(clients: int, **changes: Any) -> JobSpec:
    document = {
        "name": "many",
        "model": {"name": "softmax"},
        "data": {"name": "m:data", "clients": clients, "local_test": 0.2},
        "select": {"name": "random", "clients": 100},
        "rounds": {"count": 3, "minimum": 1},
        "evaluate": {"where": "clients", "clients": 100},
        "pool": "pool",
    }
    return job_spec.parse(document | changes)


# --- sequences of names -------------------------------------------------------------------------


@given(count=st.integers(1, 1200), place=st.integers(-1300, 1300), step=st.integers(-3, 3).filter(bool))
@settings(deadline=None)
def test_numbered_names_are_the_tuple_of_them(count: int, place: int, step: int) -> None:
    width = len(str(count - 1))
    plain = tuple(f"client-{number:0{width}d}" for number in range(count))
    found = Numbered(count)

    assert (len(found), found, tuple(found), plain) == (count, plain, plain, found)
    assert (found[place::step], found[:place]) == (plain[place::step], plain[:place])
    if -count <= place < count:
        assert found[place] == plain[place]
        assert found.index(plain[place]) == plain.index(plain[place])
    else:
        with pytest.raises(IndexError):
            found[place]


name = st.one_of(
    st.integers(0, 1100).map(lambda number: f"client-{number}"),
    st.integers(0, 1100).map(lambda number: f"client-{number:04d}"),
    st.sampled_from(["", "client-", "client-+1", "client- 1", "client-1 ", "client-1_0", "client-٣", "7", "Client-1"]),
    st.text(max_size=9),
)


@given(count=st.integers(1, 1100), names=st.lists(name, max_size=5))
@settings(deadline=None)
def test_a_name_is_in_it_or_it_is_not(count: int, names: list[str]) -> None:
    """Digits of other scripts, signs, spaces and another width make another name."""
    found, plain = Numbered(count), tuple(Numbered(count))
    for one in names:
        assert (one in found) == (one in plain) == (one in Listed(plain))
        if one not in found:
            for names_of in (found, Listed(plain)):
                with pytest.raises(ValueError, match="is no"):
                    names_of.index(one)


def test_a_list_knows_the_place_of_each() -> None:
    found = Listed(("b", "a"))

    assert found == ("b", "a")
    assert ["a" in found, "c" in found, found.index("a")] == [True, False, 1]
    assert Listed() == ()


def test_some_are_put_in_the_jobs_order() -> None:
    """Not in that of their names: a job may name its silos in any."""
    silos = job_spec.parse(
        {
            "name": "silos",
            "model": {"name": "softmax"},
            "data": {"name": "m:data"},
            "rounds": {"count": 1},
            "silos": ["z", "b", "m"],
        }
    )

    assert silos.in_order({"m", "z"}) == ("z", "m")
    assert spec(200).in_order(["client-010", "client-002"]) == ("client-002", "client-010")


# --- an order of chance -------------------------------------------------------------------------


@given(count=st.integers(1, 60), seed=st.text(max_size=4))
@settings(deadline=None)
def test_a_shuffle_has_each_once(count: int, seed: str) -> None:
    clients = Numbered(count)
    order = list(lottery.shuffled(seed, clients))

    assert sorted(order) == list(clients)
    assert order == list(lottery.shuffled(seed, clients))
    assert list(islice(lottery.shuffled(seed, clients), 3)) == order[:3]


def test_a_shuffle_favours_nobody() -> None:
    """Each of 8 at each of the first 4 places about as often as any other: 1,000 times of 8,000, sigma 30."""
    counts = Counter(
        (place, client)
        for seed in range(8000)
        for place, client in enumerate(islice(lottery.shuffled(str(seed), Numbered(8)), 4))
    )

    assert len(counts) == 32
    assert all(850 < count < 1150 for count in counts.values())


# --- a million ----------------------------------------------------------------------------------


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails whoever goes through all names."""

    def listing(_: Numbered) -> Any:
        raise AssertionError("all names are looked at")

    monkeypatch.setattr(Numbered, "__iter__", listing)


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize("policy", ["random", "round_robin"])
def test_a_round_of_a_million_clients_costs_what_its_cohort_does(policy: str) -> None:
    """From the look at the roster to the evaluation, whoever is at work or away: in time, and in memory."""
    job = spec(MILLION, select={"name": policy, "clients": 100})
    away = frozenset(job.clients[:50])
    tracemalloc.start()
    try:
        cohorts = [select(job, ALIVE, number, 1, away=away) for number in (0, 1, 2)]
        assert enough(job, ALIVE, 1, away=away)
        state, _ = job_state.begin(job, 0)
        state, (opened,) = job_state.step(state, Looked(ALIVE), 0)
        state, _ = job_state.step(state, Opened(60), 0)
        state, _ = job_state.step(state, Accepted(state.cohort[0]), 0)
        measuring = evaluators(job, ALIVE, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [len(set(cohort)) for cohort in (*cohorts, state.cohort, measuring)] == [1, 100, 100, 100, 100]
    assert isinstance(opened, job_state.Open)
    assert [list(cohort) for cohort in cohorts] == [sorted(cohort) for cohort in cohorts]
    assert not away & {client for cohort in cohorts for client in cohort}
    assert peak < 1_000_000


def test_everybody_but_one_can_be_drawn_of_many() -> None:
    """Of more clients than are listed, when all but one are wanted, or only one is there."""
    many = spec(lottery.LISTED + 1, select={"name": "random", "clients": lottery.LISTED})
    cohort = select(many, ALIVE, 1, 1)
    others = frozenset(many.clients) - {"client-00007"}

    assert len(set(cohort)) == lottery.LISTED
    assert select(many, ALIVE, 1, 1, away=others) == ("client-00007",)


def test_as_many_as_are_listed_are_drawn_by_the_smallest_hashes() -> None:
    """As they always were: a job that is taken over by another version goes on with the same cohorts."""
    job = spec(lottery.LISTED)
    order = sorted(job.clients, key=lambda name: hashlib.sha256(f"0/7/1/{name}".encode()).digest())

    assert select(job, ALIVE, 7, 1) == tuple(sorted(order[:100]))


def test_draws_of_many_differ_by_seed_round_and_attempt() -> None:
    drawn = {
        select(spec(MILLION, seed=seed), ALIVE, number, attempt)
        for seed in (1, 2)
        for number in (1, 2)
        for attempt in (1, 2)
    }

    assert len(drawn) == 8
