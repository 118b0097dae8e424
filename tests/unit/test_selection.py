"""Who trains in a round."""

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.aggregator.selection.cohort import enough, lacking, select
from services.aggregator.selection.policy import ClientStats, History
from shared.job import job_spec

POLICIES = ("random", "round_robin", "power_of_choice", "oort", "tifl")


def spec(**changes):
    document = {
        "name": "t",
        "model": {"name": "softmax"},
        "data": {"name": "digits", "clients": 20},
        "select": {"name": "random", "clients": 5},
        "rounds": {"count": 3},
        "pool": "cpu",
    } | changes
    return job_spec.parse({key: value for key, value in document.items() if value is not None})


def silos(*names: str, **rounds: int):
    return spec(
        data={"name": "m:data"},
        select={"name": "all"},
        pool=None,
        silos=list(names),
        rounds={"count": 3} | rounds,
    )


def test_the_same_seed_and_round_choose_the_same_cohort() -> None:
    """Selection is a function: no state, no clock."""
    assert select(spec(seed=1), {"cpu": 1}, 4, 1) == select(spec(seed=1), {"cpu": 9}, 4, 1)


def test_rounds_and_seeds_draw_anew() -> None:
    """Another round, attempt or seed gives another cohort."""
    drawn = {select(spec(seed=seed), {"cpu": 1}, number, 1) for seed in (1, 2) for number in range(1, 6)}

    assert len(drawn) == 10


def test_every_client_has_its_turn() -> None:
    """Over many rounds the draw is fair to within chance."""
    counts: dict[str, int] = {}
    for number in range(1, 401):
        for client in select(spec(), {"cpu": 1}, number, 1):
            counts[client] = counts.get(client, 0) + 1

    assert len(counts) == 20
    assert all(60 < count < 145 for count in counts.values())  # mean 100, ± 5 standard deviations


@given(st.integers(1, 20), st.floats(1, 3))
def test_over_selection_asks_more_clients_for_the_same_target(clients: int, factor: float) -> None:
    """The cohort grows by the factor, at most to everybody; the target stays."""
    job = spec(select={"name": "random", "clients": clients, "over_select": factor})
    cohort = select(job, {"cpu": 1}, 1, 1)

    assert clients <= len(cohort) <= 20
    assert len(cohort) == job.cohort_size
    assert job.target == clients


def test_all_selects_everybody() -> None:
    """`all` is every client of the pool, in order."""
    assert select(spec(select={"name": "all"}), {"cpu": 1}, 1, 1) == spec().clients


def test_a_pool_without_a_trainer_gives_no_cohort() -> None:
    """And the wait says what to start."""
    assert select(spec(), {"gpu": 4}, 1, 1) == ()
    assert "--pool cpu" in lacking(spec(), {"gpu": 4})


def test_round_zero_asks_one_client() -> None:
    """The initial model comes from one trainer."""
    assert len(select(spec(), {"cpu": 1}, 0, 1)) == 1


def test_each_silo_in_turn_is_asked_for_the_initial_model() -> None:
    """The data of one may not fit; the next attempt is another's."""
    job = silos("a", "b", "c", "d")
    alive = dict.fromkeys("acd", 1)

    assert {select(job, alive, 0, attempt) for attempt in (1, 2, 3)} == {("a",), ("c",), ("d",)}
    assert select(job, alive, 0, 4) == select(job, alive, 0, 1)


def test_silos_take_part_when_they_are_alive() -> None:
    """The living silos are asked where they are enough, and nobody where they are not."""
    job = silos("a", "b", "c", target=3, minimum=2)

    assert select(job, {"a": 1, "c": 1}, 1, 1) == ("a", "c")
    assert select(job, {"c": 1}, 1, 1) == ()
    assert "missing: a, b" in lacking(job, {"c": 1})


def policy(name: str, clients: int = 4, **changes):
    return spec(select={"name": name, "clients": clients} | changes)


def known(job: job_spec.JobSpec) -> History:
    """All clients but the last, each with figures of its own."""
    return History(
        {
            client: ClientStats(2, 1, 3, 1 + place % 3, 10 + place, 1 / (1 + place), None, 1.0 + place % 7)
            for place, client in enumerate(job.clients[:-1])
        }
    )


@given(st.integers(0, 2**31 - 1), st.integers(1, 10**6), st.integers(1, 100))
def test_a_random_cohort_is_that_of_the_smallest_hashes(seed: int, number: int, attempt: int) -> None:
    """As it always was: a job that is taken over by another version goes on with the same cohorts."""
    job = spec(seed=seed)
    order = sorted(job.clients, key=lambda name: hashlib.sha256(f"{seed}/{number}/{attempt}/{name}".encode()).digest())

    assert set(select(job, {"cpu": 1}, number, attempt)) == set(order[:5])


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_a_function_that_asks_so_many_in_order(name: str) -> None:
    """With a history and without; in the order of the job's clients, whatever the order of what is known of them."""
    job = policy(name)
    history = known(job)
    backwards = History(dict(reversed(history.clients.items())))
    for number in range(1, 12):
        for given_ in (History(), history):
            cohort = select(job, {"cpu": 1}, number, 1, given_)
            assert len(cohort) == 4
            assert list(cohort) == [client for client in job.clients if client in cohort]
        assert cohort == select(job, {"cpu": 5}, number, 1, backwards)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_over_selects(name: str) -> None:
    """Asks more than it waits for, at most everybody."""
    job = policy(name, clients=3, over_select=1.5, **({"tiers": 4} if name == "tifl" else {}))

    assert len(select(job, {"cpu": 1}, 9, 1, known(job))) == 5
    assert job.target == 3
    if name != "tifl":
        everybody = policy(name, clients=15, over_select=3)
        assert select(everybody, {"cpu": 1}, 2, 1, known(everybody)) == everybody.clients


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_asks_those_that_are_there(name: str) -> None:
    """As many as it wants; fewer where there are fewer, down to what a round needs, and then nobody."""
    job = spec(select={"name": name, "clients": 4}, rounds={"count": 3, "minimum": 2})
    there = job.clients[3:6]

    for number in (1, 9):
        away = frozenset(job.clients) - {*there}
        assert select(job, {"cpu": 1}, number, 1, known(job), away=away) == there
        assert select(job, {"cpu": 1}, number, 1, known(job), away=away | {*there[:2]}) == ()


def test_a_job_may_simulate_that_selection_does_not_know_who_is_away() -> None:
    """Then it asks as if all were there, and they do not answer."""
    changes = {"availability": {"name": "cycle", "there": 60, "away": 60}}
    aware, unaware = spec(simulate=changes), spec(simulate=changes | {"aware": False})
    away = frozenset(select(unaware, {"cpu": 1}, 1, 1))

    assert not away & set(select(aware, {"cpu": 1}, 1, 1, away=away))
    assert set(select(unaware, {"cpu": 1}, 1, 1, away=away)) == away


def test_round_robin_asks_each_as_often_as_any_other() -> None:
    """Cohort after cohort, also where they do not divide the clients."""
    job = policy("round_robin", clients=6)
    counts = dict.fromkeys(job.clients, 0)
    for number in range(1, 41):
        for client in select(job, {"cpu": 1}, number, 1):
            counts[client] += 1
        assert max(counts.values()) - min(counts.values()) <= 1

    assert set(counts.values()) == {12}


def test_round_robin_passes_over_who_is_not_there() -> None:
    """And the next ones take their turns."""
    job = policy("round_robin", clients=4)

    assert select(job, {"cpu": 1}, 2, 1) == job.clients[4:8]
    assert select(job, {"cpu": 1}, 2, 1, away=frozenset(job.clients[5:7])) == (*job.clients[4:5], *job.clients[7:10])
    assert select(job, {"cpu": 1}, 2, 2) == job.clients[8:12]  # another attempt: those who are next


def test_round_robin_of_an_asynchronous_job_goes_on_where_it_stopped() -> None:
    """Each round asks as many as the one before took out of the buffer."""
    job = spec(select={"name": "round_robin", "clients": 6}, strategy={"name": "fedbuff", "buffer_size": 2})
    in_flight: list[str] = []
    asked: list[str] = []
    for number in range(1, 19):
        fresh = select(job, {"cpu": 1}, number, 1, in_flight=frozenset(in_flight))
        asked += [client for client in (*job.clients, *job.clients) if client in fresh][: len(fresh)]
        in_flight = [*in_flight, *fresh][2:]  # the two that were asked first deliver

    assert {asked.count(client) for client in job.clients} == {2}


@pytest.mark.parametrize("name", POLICIES)
def test_who_is_still_at_work_is_not_asked_again(name: str) -> None:
    """Only as many new ones are asked as places are free."""
    job = spec(
        select={"name": name, "clients": 5, "over_select": 1.2} | ({"tiers": 3} if name == "tifl" else {}),
        strategy={"name": "fedbuff", "buffer_size": 2},
    )
    in_flight = frozenset(job.clients[::5])
    fresh = select(job, {"cpu": 1}, 3, 1, known(job), in_flight=in_flight)

    assert len(fresh) == 2
    assert not in_flight & set(fresh)


def test_nobody_new_is_asked_where_all_places_are_taken_and_that_is_enough() -> None:
    """An empty cohort has two meanings, and `enough` tells them apart."""
    job = spec(select={"name": "random", "clients": 4}, strategy={"name": "fedbuff", "buffer_size": 2})
    busy, everybody = frozenset(job.clients[:4]), frozenset(job.clients)

    assert select(job, {"cpu": 1}, 3, 1, in_flight=busy) == ()
    assert enough(job, {"cpu": 1}, 3, in_flight=busy)
    assert enough(job, {"cpu": 1}, 3, in_flight=busy, away=everybody - busy)
    assert select(job, {"cpu": 1}, 3, 1, away=everybody) == ()
    assert not enough(job, {"cpu": 1}, 3, away=everybody)
    assert not enough(job, {}, 3)


def test_a_job_whose_clients_are_away_says_so() -> None:
    """Nothing needs to be started: they come back."""
    job = spec(simulate={"availability": {"name": "cycle", "there": 60, "away": 60}})

    assert lacking(job, {"cpu": 1}, frozenset(job.clients[2:])) == (
        "2 of 20 clients are there (simulate.availability) and 5 are needed"
    )
    assert "--pool cpu" in lacking(job, {}, frozenset(job.clients[2:]))


@pytest.mark.parametrize("name", POLICIES)
def test_many_clients_are_no_matter(name: str) -> None:
    """A fraction of a second for 20,000: nothing goes through all of them for each of them."""
    job = spec(data={"name": "digits", "clients": 20_000}, select={"name": name, "clients": 100})
    history = known(job)
    began = time.process_time()

    assert len(select(job, {"cpu": 1}, 5000, 1, history)) == 100
    assert time.process_time() - began < 0.3
