"""TiFL: tiers by speed, drawn by credits and accuracy, against the paper's algorithm 2 written here once more."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest

from services.aggregator.selection import tifl
from services.aggregator.selection.cohort import select
from services.aggregator.selection.policies import observe
from services.aggregator.selection.policy import NOTHING, ClientStats, Facts, History, Report
from services.aggregator.selection.tifl import Tiers
from shared.job import job_spec
from shared.job.catalog.selection import Tifl


def spec(total: int = 24, count: int = 60, **policy: Any) -> job_spec.JobSpec:
    return job_spec.parse(
        {
            "name": "t",
            "seed": 9,
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": total},
            "select": {"name": "tifl", "clients": 3, "tiers": 4, "interval": 5} | policy,
            "rounds": {"count": count, "minimum": 1},
            "pool": "cpu",
        }
    )


def policy_of(job: job_spec.JobSpec) -> Tifl:
    assert isinstance(job.select, Tifl)
    return job.select


def chosen(job: job_spec.JobSpec, number: int, history: History = NOTHING, attempt: int = 1, **there: Any) -> set[str]:
    return set(select(job, {"cpu": 1}, number, attempt, history, **there))


def measured(job: job_spec.JobSpec, **of_all: Any) -> History:
    """All clients, the first the fastest."""
    row = ClientStats(1, 1, 1, 1, 10)._replace(**of_all)
    return History({client: row._replace(seconds=1.0 + place) for place, client in enumerate(job.clients)})


def words(job: job_spec.JobSpec, number: int, client: str) -> tuple[bytes, float]:
    digest = hashlib.sha256(f"{job.seed}/{number}/1/{client}".encode()).digest()
    return digest, (int.from_bytes(digest[8:16], "big") + 1) / 2**64


def test_the_first_rounds_measure_each_client_once() -> None:
    """24 clients, 3 a round: eight rounds, in which everybody has one turn."""
    job, history, asked = spec(), NOTHING, []
    for number in range(1, 9):
        cohort = chosen(job, number, history)
        asked += cohort
        history = observe(history, job, Facts(number, tuple(cohort), {}))

    assert sorted(asked) == list(job.clients)
    assert history.states["tifl"].credits == (15,) * 4  # ⌈60 rounds / 4 tiers⌉; measuring costs none


def test_tiers_are_equally_many_clients_by_their_speed() -> None:
    """And who has not delivered is of the slowest."""
    job = spec(total=12, clients=2)
    seconds = dict(zip(job.clients, (9, 1, 8, 2, 7, 3, 6, 4, 5, 10, None, 11), strict=True))
    clients = {
        client: ClientStats(1, 1, 1, 1, 10, seconds=value) for client, value in seconds.items() if value is not None
    }
    found = tifl.tiers(job, policy_of(job), clients)

    assert [sorted(seconds[client] or 99 for client in found if found[client] == tier) for tier in range(4)] == [
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
        [10, 11, 99],
    ]


class Paper:
    """Algorithm 2 of Chai et al. 2020, of clients whose tiers are known."""

    def __init__(self, job: job_spec.JobSpec, tier_of: dict[str, int], examples: dict[str, int]) -> None:
        self.job, self.tier_of, self.examples = job, tier_of, examples
        self.credit, self.chance = [15] * 4, [0.25] * 4
        self.accuracy: dict[str, float] = {}
        self.before: list[float] | None = None
        self.current = -1
        self.changes = 0

    def select(self, number: int) -> set[str]:
        able = [tier for tier in range(4) if self.credit[tier] > 0]
        point = words(self.job, number, "")[1] * sum(self.chance[tier] for tier in able)
        reached = np.cumsum([self.chance[tier] for tier in able])
        self.current = able[int(np.searchsorted(reached, point))]
        self.credit[self.current] -= 1
        members = [client for client in self.job.clients if self.tier_of[client] == self.current]
        return set(sorted(members, key=lambda client: words(self.job, number, client)[0])[:3])

    def change(self) -> list[float]:
        """At an interval: A_t, the accuracy on all examples of a tier's clients."""
        now = []
        for tier in range(4):
            members = [client for client in self.accuracy if self.tier_of[client] == tier]
            right = sum(self.accuracy[client] * self.examples[client] for client in members)
            now.append(right / sum(self.examples[client] for client in members))
        if self.before is not None and now[self.current] <= self.before[self.current]:
            self.changes += 1
            for place, tier in enumerate(sorted(range(4), key=now.__getitem__)):
                self.chance[tier] = (4 - place) / 10
        self.before = now
        return now


def test_rounds_go_as_the_paper_has_it() -> None:
    """Sixty rounds of clients of unequal speed, examples and accuracy: cohorts, credits and chances of every round."""
    job, rng, history = spec(), np.random.default_rng(8), NOTHING
    seconds = {client: float(rng.lognormal(0, 1)) for client in job.clients}
    examples = {client: int(rng.integers(5, 100)) for client in job.clients}
    order = sorted(job.clients, key=seconds.__getitem__)
    paper = Paper(job, {client: place // 6 for place, client in enumerate(order)}, examples)
    for number in range(1, 61):
        cohort = chosen(job, number, history)
        if number > 8:  # all are measured
            assert cohort == paper.select(number)

        found = {client: float(rng.uniform(0, 1)) for client in sorted(cohort)}
        paper.accuracy |= found
        reports = {
            client: Report(examples[client], {"client_accuracy": accuracy}, seconds[client])
            for client, accuracy in found.items()
        }
        history = observe(history, job, Facts(number, tuple(found), reports))
        if number > 8 and number % 5 == 0:
            np.testing.assert_allclose(np.array(history.states["tifl"].figures, np.float64), paper.change(), rtol=1e-6)
        assert list(history.states["tifl"].credits) == paper.credit
        np.testing.assert_allclose(history.states["tifl"].chances, paper.chance, rtol=1e-6)
    assert paper.changes >= 2
    assert sum(paper.credit) == 60 - 52


def test_worse_tiers_are_likelier() -> None:
    """By their rank; one of which nothing is known counts as the worst."""
    assert tifl.chances((0.9, 0.2, 0.5)) == pytest.approx((1 / 6, 3 / 6, 2 / 6))
    assert tifl.chances((0.9, 0.2, None)) == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    assert math.fsum(tifl.chances((0.1,) * 7)) == pytest.approx(1)


def test_tiers_are_drawn_by_their_chances_among_those_with_credits() -> None:
    """A tier without is never drawn; without any at all, every tier may be."""
    job = spec(count=1000)
    known = measured(job)
    tier_of = tifl.tiers(job, policy_of(job), known.clients)

    def counts(credits_: tuple[int, ...], rounds: int) -> list[int]:
        memory = Tiers(credits_, (0.4, 0.3, 0.2, 0.1))
        history = History(known.clients, {"tifl": memory})
        drawn = [{tier_of[client] for client in chosen(job, number, history)} for number in range(9, 9 + rounds)]
        assert all(len(tiers) == 1 for tiers in drawn)
        return [sum(tier in tiers for tiers in drawn) for tier in range(4)]

    for count, expected in zip(counts((9, 9, 9, 9), 1000), (400, 300, 200, 100), strict=True):
        assert abs(count - expected) < 5 * math.sqrt(expected)
    assert counts((9, 0, 9, 0), 200)[1::2] == [0, 0]
    assert all(counts((0, 0, 0, 0), 200))


def test_where_a_tier_is_too_few_its_neighbours_help_the_faster_first() -> None:
    """So that the round lasts no longer than it must."""
    job = spec()
    clients = job.clients
    memory = Tiers((1, 1, 9, 1), (0.0, 0.0, 1.0, 0.0))
    history = History(measured(job).clients, {"tifl": memory})
    away = frozenset((*clients[6:11], *clients[13:18]))  # one is left of the second tier, and one of the third
    cohort = chosen(job, 20, history, away=away)

    assert cohort > {clients[11], clients[12]}
    assert cohort & set(clients[18:])  # then the slower neighbour, before the fastest tier, which is further off


def test_losses_stand_in_where_no_client_reports_an_accuracy() -> None:
    """The lower, the better."""
    job = spec(total=12, clients=2)
    known = measured(job).clients
    clients = {
        client: row._replace(loss=float(place), examples=1 + place % 3)
        for place, (client, row) in enumerate(known.items())
    }

    assert tifl.figures(job, policy_of(job), clients) == pytest.approx(
        tuple(-sum((1 + place % 3) * place for place in range(3 * t, 3 * t + 3)) / 6 for t in range(4))
    )
    accurate = clients | {job.clients[0]: clients[job.clients[0]]._replace(accuracy=0.5)}
    assert tifl.figures(job, policy_of(job), accurate) == (0.5, None, None, None)


def test_another_attempt_draws_another_tier_or_cohort() -> None:
    """The first did not do."""
    job = spec()
    history = measured(job)

    assert len({frozenset(chosen(job, 20, history, attempt)) for attempt in range(1, 6)}) > 1


def test_nobody_is_chosen_who_cannot_be_asked() -> None:
    """Neither while clients are measured nor later."""
    job = spec()
    away, in_flight = frozenset(job.clients[:10]), frozenset(job.clients[10:11])
    for number, history in ((1, NOTHING), (20, measured(job))):
        cohort = chosen(job, number, history, away=away, in_flight=in_flight)
        assert len(cohort) == 2
        assert not cohort & (away | in_flight)
