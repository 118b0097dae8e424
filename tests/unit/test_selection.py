"""Who trains in a round."""

from hypothesis import given
from hypothesis import strategies as st

from services.aggregator.selection import lacking, select
from shared import jobs


def spec(**changes):
    document = {
        "name": "t",
        "model": {"name": "softmax"},
        "data": {"name": "digits", "clients": 20},
        "select": {"name": "random", "clients": 5},
        "rounds": {"count": 3},
        "pool": "cpu",
    } | changes
    return jobs.parse({key: value for key, value in document.items() if value is not None})


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


def test_silos_take_part_when_they_are_alive() -> None:
    """The living silos are asked where they are enough, and nobody where they are not."""
    job = silos("a", "b", "c", target=3, minimum=2)

    assert select(job, {"a": 1, "c": 1}, 1, 1) == ("a", "c")
    assert select(job, {"c": 1}, 1, 1) == ()
    assert "missing: a, b" in lacking(job, {"c": 1})
