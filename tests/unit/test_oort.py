"""Oort: against the paper's algorithm, written here once more and from the paper's side."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest

from services.aggregator.selection import oort
from services.aggregator.selection.cohort import select
from services.aggregator.selection.oort import Pacer
from services.aggregator.selection.policies import observe
from services.aggregator.selection.policy import NOTHING, ClientStats, Facts, History, Report
from shared.job import job_spec
from shared.job.catalog.selection import Oort


def spec(total: int = 40, **policy: Any) -> job_spec.JobSpec:
    return job_spec.parse(
        {
            "name": "t",
            "seed": 5,
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": total},
            "select": {"name": "oort", "clients": 8} | policy,
            "rounds": {"count": 1000, "minimum": 1},
            "pool": "cpu",
        }
    )


def chosen(job: job_spec.JobSpec, number: int, history: History = NOTHING, attempt: int = 1, **there: Any) -> set[str]:
    return set(select(job, {"cpu": 1}, number, attempt, history, **there))


def report(examples: int, loss: float, seconds: float) -> Report:
    return Report(examples, {"client_loss": loss}, seconds)


def delivered(**clients: tuple[int, float, float, int]) -> History:
    """Clients by (examples, loss, seconds, last round)."""
    return History(
        {
            name.replace("_", "-"): ClientStats(1, 1, last, last, examples, loss, None, seconds)
            for name, (examples, loss, seconds, last) in clients.items()
        }
    )


class Paper:
    """Algorithm 1 of Lai et al. 2021 and its pacer as in FedScale, with lists of all that happened."""

    def __init__(self, job: job_spec.JobSpec) -> None:
        assert isinstance(job.select, Oort)
        self.policy, self.job = job.select, job
        self.reward: dict[str, float] = {}
        self.duration: dict[str, float] = {}
        self.last: dict[str, int] = {}
        self.asked: dict[str, int] = dict.fromkeys(job.clients, 0)
        self.exploited_utility: list[float] = []
        self.percentile = self.policy.round_threshold

    def words(self, number: int, client: str) -> tuple[bytes, float]:
        digest = hashlib.sha256(f"{self.job.seed}/{number}/1/{client}".encode()).digest()
        return digest, (int.from_bytes(digest[8:16], "big") + 1) / 2**64

    def draw(self, number: int, weights: dict[str, float], size: int) -> list[str]:
        """One after the other in proportion to the weights: the first arrivals of Poisson processes of such rates."""
        return sorted(weights, key=lambda client: -math.log(self.words(number, client)[1]) / weights[client])[:size]

    def scores(self, number: int) -> dict[str, float]:
        rewards = sorted(self.reward.values())
        clip = rewards[min(int(len(rewards) * self.policy.clip_bound), len(rewards) - 1)]
        low = min(rewards) * 0.999
        durations = sorted(self.duration.values())
        place = min(int(len(durations) * self.percentile / 100), len(durations) - 1)
        preferred = durations[place] if self.percentile < 100 else math.inf
        found = {}
        for client, reward in self.reward.items():
            score = (min(reward, clip) - low) / (clip - low)
            score += math.sqrt(self.policy.exploration_alpha * math.log(number) / self.last[client])
            if self.duration[client] > preferred:
                score *= (preferred / self.duration[client]) ** self.policy.round_penalty
            found[client] = score
        return found

    def select(self, number: int, wanted: int) -> set[str]:
        policy = self.policy
        epsilon = max(policy.exploration_factor * policy.exploration_decay ** (number - 1), policy.exploration_min)
        unexplored = [client for client in self.job.clients if client not in self.reward]
        explore = min(int(epsilon * wanted + 1e-9), len(unexplored))
        exploit = min(wanted - explore, len(self.reward))
        explore = min(wanted - exploit, len(unexplored))
        cohort: list[str] = []
        if exploit:
            scores = self.scores(number)
            cut_off = sorted(scores.values(), reverse=True)[exploit - 1] * policy.cut_off_util
            cohort += self.draw(
                number, {client: score for client, score in scores.items() if score >= cut_off}, exploit
            )
        if explore:
            unexplored.sort(key=lambda client: (self.asked[client], self.words(number, client)[0]))
            window = unexplored[: int(policy.sample_window * explore)]
            cohort += self.draw(number, {client: 1 / (1 + self.asked[client]) for client in window}, explore)
        return set(cohort)

    def feed(self, number: int, cohort: set[str], reports: dict[str, Report]) -> None:
        for client in cohort:
            self.asked[client] += 1
        fresh = {client: found.examples * found.metrics["client_loss"] for client, found in reports.items()}
        again = [utility for client, utility in fresh.items() if client in self.reward]
        self.exploited_utility.append(sum(again) / len(again) if again else 0.0)
        self.reward |= fresh
        self.duration |= {client: found.seconds for client, found in reports.items()}
        self.last |= dict.fromkeys(reports, number)
        step = self.policy.pacer_step
        if number >= 2 * step and number % step == 0:
            before = sum(self.exploited_utility[-2 * step : -step])
            now = sum(self.exploited_utility[-step:])
            if abs(now - before) <= 0.1 * before:
                self.percentile = min(100.0, self.percentile + self.policy.pacer_delta)
            elif abs(now - before) >= 5 * before:
                self.percentile = max(self.policy.pacer_delta, self.percentile - self.policy.pacer_delta)


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"exploration_factor": 0.5, "exploration_decay": 0.9, "exploration_min": 0.25, "sample_window": 1.5},
        {"exploration_alpha": 2.0, "round_threshold": 60, "round_penalty": 0.7, "clip_bound": 0.5},
        {"cut_off_util": 0.95, "pacer_step": 3, "pacer_delta": 12.5, "exploration_factor": 0.4},
    ],
    ids=["defaults", "exploration", "scores", "pacer"],
)
def test_every_cohort_and_score_is_the_papers(policy: dict[str, Any]) -> None:
    """Sixty rounds of clients of unequal examples, losses and speeds, one in nine of whom never delivers."""
    job = spec(**policy)
    paper, history, rng = Paper(job), NOTHING, np.random.default_rng(3)
    examples = {client: int(rng.integers(5, 300)) for client in job.clients}
    pace = {client: float(rng.lognormal(1.0, 1.0)) for client in job.clients}
    thresholds = set()
    for number in range(1, 61):
        cohort = chosen(job, number, history)
        assert cohort == paper.select(number, 8)

        if paper.reward:
            known = {client: history.clients[client] for client in paper.reward}
            threshold = history.states["oort"].threshold if "oort" in history.states else paper.policy.round_threshold
            found = oort.scores(paper.policy, list(known.values()), oort.preferred_seconds(history, threshold), number)
            expected = np.array([paper.scores(number)[client] for client in known])
            np.testing.assert_allclose(found, expected, rtol=1e-6)

        reports = {
            client: report(examples[client], float(rng.lognormal(0, 1)) * (1 + 20 * (number > 40)), pace[client])
            for client in sorted(cohort)
            if int(client[-2:]) % 9
        }
        paper.feed(number, cohort, reports)
        history = observe(history, job, Facts(number, tuple(sorted(cohort)), reports))
        assert history.states["oort"].threshold == pytest.approx(paper.percentile, rel=1e-9)
        thresholds.add(history.states["oort"].threshold)
    assert len(paper.reward) == 40 - 5
    assert "pacer_step" not in policy or len(thresholds) > 2  # the pacer had something to do


def test_exploration_asks_everybody_in_the_end() -> None:
    """Even where its share is small: at least one new client a round, while there is one."""
    job = spec(total=30, clients=3, exploration_factor=0.3, exploration_min=0.01)
    history, seen = NOTHING, set()
    for number in range(1, 31):
        cohort = chosen(job, number, history)
        assert len(cohort) == 3
        seen |= cohort
        reports = {client: report(10, 1.0, 1.0) for client in cohort}
        history = observe(history, job, Facts(number, tuple(cohort), reports))

    assert seen == set(job.clients)


def test_no_exploration_at_all_exploits_whom_it_knows() -> None:
    """But the first cohort has to come from somewhere."""
    job = spec(total=30, exploration_factor=0, exploration_min=0)
    first = chosen(job, 1)
    history = observe(NOTHING, job, Facts(1, tuple(first), {client: report(9, 1.0, 1.0) for client in first}))

    assert len(first) == 8
    assert chosen(job, 2, history) == first


def test_who_was_asked_in_vain_is_explored_after_who_was_not_asked() -> None:
    """Nothing else is known of their speed."""
    job = spec(total=20, clients=5, sample_window=1)
    silent = {client: ClientStats(asked=3, last_asked=3) for client in job.clients[:15]}

    assert chosen(job, 4, History(silent)) == set(job.clients[15:])


def test_a_cohort_is_full_where_it_can_be() -> None:
    """When nobody is left to explore, their share goes to the others."""
    job = spec(total=8)
    history = delivered(**{name.replace("-", "_"): (10, 1.0, 1.0, 1) for name in job.clients})

    assert chosen(job, 2, history) == set(job.clients)


def test_the_useful_and_the_fast_are_exploited() -> None:
    """By utility first; the slow pay for it with the square of how much slower they are."""
    policy = Oort(clients=1, exploration_alpha=0)
    known = [
        ClientStats(1, 1, 1, 1, 100, 2.0, None, 1.0),
        ClientStats(1, 1, 1, 1, 100, 1.0, None, 1.0),
        ClientStats(1, 1, 1, 1, 100, 2.0, None, 4.0),
    ]
    high, low, slow = oort.scores(policy, known, 2.0, 9)

    assert high == pytest.approx(1.0)
    assert low == pytest.approx(0.1 / 100.1)
    assert slow == pytest.approx(high * (2 / 4) ** 2)


def test_a_client_not_heard_of_for_long_gains() -> None:
    """√(alpha · ln t / L), and the older its last update the more."""
    policy = Oort(clients=1, exploration_alpha=0.4)
    known = [ClientStats(1, 1, last, last, 10, 1.0, None, 1.0) for last in (1, 4, 25)]

    np.testing.assert_allclose(
        oort.scores(policy, known, 2.0, 30),
        1.0 + np.sqrt(0.4 * np.log(30) / np.array([1, 4, 25])),
        rtol=1e-6,
    )


def test_who_was_asked_often_rests() -> None:
    """Those asked most, up to a share of all; and they come back where a round would be too small without them."""
    job = spec(total=10, clients=4, blacklist_rounds=5, blacklist_max_len=0.3, exploration_factor=0, exploration_min=0)
    asked = dict(zip(job.clients, (9, 8, 7, 6, 1, 1, 1, 1, 1, 1), strict=True))
    history = History({client: ClientStats(times, 1, 3, 3, 10, 1.0, None, 1.0) for client, times in asked.items()})
    seen = set().union(*(chosen(job, number, history) for number in range(4, 60)))

    assert seen == set(job.clients[3:])  # the fourth is tired too, and three may rest
    few = chosen(job, 4, history, away=frozenset(job.clients[5:]))
    assert few == {*job.clients[2:5], job.clients[1]}


def test_a_loss_is_not_needed() -> None:
    """One's own local step may report none: then examples are the utility."""
    assert oort.utility(ClientStats(1, 1, 1, 1, 7, None)) == 7
    assert oort.utility(ClientStats(1, 1, 1, 1, 7, -2.0)) == 0
    assert oort.utility(ClientStats(1, 1, 1, 1, 7, 0.5)) == 3.5


def test_worthless_clients_are_as_good_as_each_other() -> None:
    """Utilities of 0 are no division by 0."""
    policy = Oort(clients=1, exploration_alpha=0)

    assert oort.scores(policy, [ClientStats(1, 1, 1, 1, 5, 0.0, None, 1.0)] * 3, 1.0, 2).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("before", "now", "threshold"),
    [(100.0, 109.0, 35.0), (100.0, 91.0, 35.0), (100.0, 150.0, 30.0), (100.0, 50.0, 30.0), (100.0, 601.0, 25.0)],
)
def test_the_pacer_lets_slower_clients_in_when_utility_is_flat(before: float, now: float, threshold: float) -> None:
    """And faster ones alone when there is plenty."""
    policy = Oort(clients=1, pacer_step=4)
    clients = {"a": ClientStats(2, 2, 8, 8, 1, now, None, 1.0)}
    found = oort.observed(
        policy, Pacer(30.0, before, 0.0), clients, clients, Facts(8, ("a",), {"a": report(1, now, 1)})
    )

    assert found == Pacer(threshold, before=now, now=0.0)


def test_a_preferred_duration_is_a_percentile_and_none_at_a_hundred() -> None:
    """Of all who delivered."""
    history = delivered(**{f"c{index}": (1, 1.0, float(index), 1) for index in range(1, 11)})

    assert oort.preferred_seconds(history, 30) == 4.0
    assert oort.preferred_seconds(history, 99) == 10.0
    assert oort.preferred_seconds(history, 100) == math.inf
    assert oort.preferred_seconds(NOTHING, 30) == math.inf


def test_nobody_is_chosen_who_cannot_be_asked() -> None:
    """Neither who is away nor who is still at work, whose place is kept; another attempt draws anew."""
    job = spec(total=40)
    away, in_flight = frozenset(job.clients[:20]), frozenset(job.clients[20:23])
    first, second = (chosen(job, 3, attempt=attempt, away=away, in_flight=in_flight) for attempt in (1, 2))

    assert len(first) == len(second) == 5
    assert not (first | second) & (away | in_flight)
    assert first != second
