"""Who is slow, far, absent or hostile in an experiment."""

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.job import job_spec, profiles
from shared.job.job_spec import JobSpec


def spec(*, clients: int = 20, seed: int = 0, **simulate: Any) -> JobSpec:
    return job_spec.parse(
        {
            "name": "t",
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": clients},
            "rounds": {"count": 2},
            "simulate": {"seed": seed} | simulate,
            "pool": "cpu",
        }
    )


def ratios(job: JobSpec) -> list[float]:
    return [profiles.ratio(job, client) for client in job.clients]


def test_without_a_simulation_clients_are_as_they_are() -> None:
    """Nobody is slow, far, absent or hostile, and nothing has to be asked first."""
    for job in (spec(), JobSpec.model_validate(spec().model_dump() | {"simulate": None})):
        client = job.clients[0]
        assert profiles.ratio(job, client) == 1
        assert profiles.transfer(job, client, 10**9, up=True) == 0
        assert profiles.is_there(job, client, 5)
        assert not profiles.drops_out(job, client, 1)
        assert profiles.hostile(job) == frozenset()


# --- speed ----------------------------------------------------------------------------------


@given(st.integers(1, 60), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 99))
def test_profiles_slow_down_exact_shares(clients: int, slow: float, medium: float, seed: int) -> None:
    """One in ten of ten clients is one, not one by chance; another seed makes others slow."""
    speed = {"name": "profiles", "slow": slow, "medium": medium, "ratios": [4, 2, 1]}
    found = ratios(spec(clients=clients, seed=seed, speed=speed))

    assert found.count(4) == round(slow * clients)
    assert found.count(2) == min(round(medium * clients), clients - round(slow * clients))
    assert found.count(1) == clients - found.count(4) - found.count(2)


def test_another_seed_makes_others_slow() -> None:
    """And the same one the same, in any process."""
    one, same, other = (ratios(spec(seed=seed, speed={"name": "profiles"})) for seed in (1, 1, 2))

    assert one == same
    assert one != other


def test_phones_are_spread_over_the_table() -> None:
    """Each kind is as likely as any other, and the fastest takes once as long."""
    counts = np.unique(ratios(spec(clients=1500, speed={"name": "phones"})), return_counts=True)
    table = sorted(profiles.PHONES.values())

    assert counts[0].tolist() == table
    assert table[0] == 1
    assert max(abs(counts[1] - 100)) < 5 * math.sqrt(100)


def test_lognormal_speeds_are_lognormal_and_never_faster_than_the_trainer() -> None:
    """ln(ratio) is a normal number of the given deviation where that is positive, and 0 elsewhere."""
    found = np.log(ratios(spec(clients=2000, speed={"name": "lognormal", "sigma": 0.5})))
    normal = statistics.NormalDist(0, 0.5)

    assert found.min() == 0
    assert abs(np.mean(found == 0) - 0.5) < 0.06
    for quantile in (0.6, 0.75, 0.9):
        assert np.quantile(found, quantile) == pytest.approx(normal.inv_cdf(quantile), abs=0.06)


def test_given_ratios_are_as_given() -> None:
    """And who is not named is as fast as its trainer."""
    job = spec(clients=3, speed={"name": "ratios", "ratios": {"client-1": 3}})

    assert ratios(job) == [1, 3, 1]


# --- network --------------------------------------------------------------------------------


def test_bytes_travel_by_latency_and_rate() -> None:
    """A million bytes at 8 megabits a second take a second, and 100 ms to set out."""
    job = spec(network={"latency": "100ms", "down_mbps": 80, "up_mbps": 8})

    assert profiles.transfer(job, "client-00", 10**6, up=True) == pytest.approx(1.1)
    assert profiles.transfer(job, "client-00", 10**6, up=False) == pytest.approx(0.2)
    assert profiles.transfer(spec(network={"latency": 2}), "client-00", 10**9, up=True) == 2
    assert profiles.transfer(spec(network={"up_mbps": 8}), "client-00", 10**9, up=False) == 0


def test_rates_are_drawn_around_those_of_the_job() -> None:
    """Lognormal, by client; who is slow one way is slow both ways."""
    job = spec(clients=2000, network={"down_mbps": 80, "up_mbps": 8, "sigma": 0.7})
    up = np.log([profiles.transfer(job, client, 10**6, up=True) for client in job.clients])
    down = np.log([profiles.transfer(job, client, 10**7, up=False) for client in job.clients])

    np.testing.assert_allclose(up, down, rtol=1e-9, atol=1e-12)
    assert abs(up.mean()) < 5 * 0.7 / math.sqrt(2000)
    assert up.std() == pytest.approx(0.7, rel=0.1)


# --- availability ---------------------------------------------------------------------------


@given(st.floats(0.5, 100), st.floats(0.5, 100), st.floats(0, 10_000), st.integers(0, 99))
def test_a_cycle_comes_and_goes(there: float, away: float, seconds: float, seed: int) -> None:
    """Who is away comes when `arrival` says, and stays as long as it should."""
    job = spec(seed=seed, availability={"name": "cycle", "there": there, "away": away})
    client = job.clients[3]
    wait = profiles.arrival(job, client, seconds)

    assert wait <= away + 1e-6
    assert profiles.is_there(job, client, seconds) is (wait == 0)
    if wait:
        tiny = there * 1e-3
        assert profiles.is_there(job, client, seconds + wait + tiny)
        assert profiles.is_there(job, client, seconds + wait + there - tiny)
        assert not profiles.is_there(job, client, seconds + wait - tiny) or wait < tiny


def test_clients_do_not_come_and_go_together() -> None:
    """Each has a moment of its own, so that the right share of them are there at any time."""
    job = spec(clients=1000, availability={"name": "cycle", "there": 30, "away": 90})
    for seconds in (0, 17, 1000):
        there = sum(profiles.is_there(job, client, seconds) for client in job.clients)
        assert abs(there - 250) < 5 * math.sqrt(1000 * 0.25 * 0.75)


@pytest.mark.parametrize(
    ("seconds", "wait"), [(0, 10), (10, 0), (19.5, 0), (20, 20), (40, 0), (49, 0), (50, 60), (100, 10), (115, 0)]
)
def test_a_trace_with_a_period_begins_again(seconds: float, wait: float) -> None:
    """A span holds its beginning and not its end."""
    trace = {"name": "trace", "spans": {"client-01": [[10, 20], [40, 50]]}, "period": 100}
    job = spec(availability=trace)

    assert profiles.arrival(job, "client-01", seconds) == wait
    assert profiles.is_there(job, "client-00", seconds)  # who is not listed always is


def test_a_trace_without_a_period_ends() -> None:
    """And so does one without spans."""
    job = spec(availability={"name": "trace", "spans": {"client-01": [[10, 20]], "client-02": []}})

    assert [profiles.arrival(job, "client-01", seconds) for seconds in (3, 12, 20)] == [7, 0, math.inf]
    assert not profiles.is_there(job, "client-02", 12)


# --- faults and attacks ---------------------------------------------------------------------


def test_clients_drop_out_with_the_given_probability() -> None:
    """Others in each round, and in each attempt at it."""
    job = spec(clients=100, dropout={"rate": 0.2})
    rounds = [frozenset(c for c in job.clients if profiles.drops_out(job, c, number)) for number in range(1, 51)]
    again = frozenset(client for client in job.clients if profiles.drops_out(job, client, 1, attempt=2))

    assert len({*rounds, again}) == 51
    assert abs(sum(map(len, rounds)) - 1000) < 5 * math.sqrt(5000 * 0.2 * 0.8)


@given(st.integers(1, 80), st.floats(0, 1), st.integers(0, 99))
def test_exactly_the_given_share_of_the_clients_are_hostile(clients: int, fraction: float, seed: int) -> None:
    """Two of ten are two, whatever the seed."""
    job = spec(clients=clients, seed=seed, attack={"name": "label_flip", "fraction": fraction})

    assert len(profiles.hostile(job)) == round(fraction * clients)
    assert profiles.hostile(job) <= set(job.clients)


def test_another_seed_makes_others_hostile_and_the_hostile_are_not_the_slow() -> None:
    """Each thing is drawn for itself."""
    attack, speed = {"name": "scaled_update", "fraction": 0.3}, {"name": "profiles", "slow": 0.3}
    first, second = (spec(clients=100, seed=seed, attack=attack, speed=speed) for seed in (1, 2))
    slow = {client for client in first.clients if profiles.ratio(first, client) == 2.5}

    assert profiles.hostile(first) != profiles.hostile(second)
    assert slow != profiles.hostile(first)


def test_labels_are_turned_round() -> None:
    """Of numbers, arrays and tensors, whose type stays."""
    assert profiles.flipped(0, 10) == 9
    np.testing.assert_array_equal(profiles.flipped(np.array([0, 1, 9]), 10), [9, 8, 0])
    flipped = profiles.flipped(torch.tensor([0, 3]), 4)
    assert flipped.dtype == torch.int64
    assert flipped.tolist() == [3, 0]
