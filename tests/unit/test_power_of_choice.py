"""Power of choice: the highest losses among a few that are drawn by their examples."""

import hashlib
import math
from typing import Any

from services.aggregator.selection.cohort import select
from services.aggregator.selection.policies import observe
from services.aggregator.selection.policy import NOTHING, ClientStats, Facts, History, Report
from shared.job import job_spec


def spec(*, clients: int = 4, candidates: int | None = None, total: int = 30, **changes: Any) -> job_spec.JobSpec:
    return job_spec.parse(
        {
            "name": "t",
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": total},
            "select": {"name": "power_of_choice", "clients": clients, "candidates": candidates},
            "rounds": {"count": 1000},
            "pool": "cpu",
        }
        | changes
    )


def chosen(job: job_spec.JobSpec, number: int, history: History = NOTHING, attempt: int = 1, **there: Any) -> set[str]:
    return set(select(job, {"cpu": 1}, number, attempt, history, **there))


def uniform(seed: int, number: int, attempt: int, client: str) -> float:
    """A client's own number in (0, 1]: the second eight bytes of its hash."""
    digest = hashlib.sha256(f"{seed}/{number}/{attempt}/{client}".encode()).digest()
    return (int.from_bytes(digest[8:16], "big") + 1) / 2**64


def test_a_cohort_is_what_the_paper_says_of_the_last_losses() -> None:
    """Over rounds: d drawn by examples without replacement, then the m of the highest loss; infinite before the first.

    Each draw without replacement in proportion to p is that of the smallest Exp(1) / p, one for each client.
    """
    job = spec(clients=4, candidates=9)
    examples = {client: 3 + 7 * index % 40 for index, client in enumerate(job.clients)}
    losses: dict[str, float] = {}
    seen: dict[str, int] = {}
    history = NOTHING
    for number in range(1, 25):
        mean = sum(seen.values()) / len(seen) if seen else 1.0
        clock = {
            client: -math.log(uniform(job.seed, number, 1, client)) / seen.get(client, mean) for client in job.clients
        }
        drawn = sorted(job.clients, key=clock.__getitem__)[:9]
        expected = sorted(drawn, key=lambda client: (-losses.get(client, math.inf), clock[client]))[:4]

        cohort = chosen(job, number, history)
        assert cohort == set(expected)

        reports = {}
        for client in cohort:
            seen[client] = examples[client]
            losses[client] = (sum(map(ord, client)) * 37 % 101) / (10 + number)
            reports[client] = Report(examples[client], {"client_loss": losses[client]}, 1.0)
        history = observe(history, job, Facts(number, tuple(sorted(cohort)), reports))
    assert len(seen) == 30


def test_candidates_are_drawn_in_proportion_to_their_examples() -> None:
    """With as many candidates as clients of the round the loss decides nothing, and only the draw is left."""
    job = spec(clients=1, candidates=1, total=4)
    examples = dict(zip(job.clients, (10, 20, 30, 40), strict=True))
    history = History({client: ClientStats(1, 1, 1, 1, count, 1.0) for client, count in examples.items()})
    counts = dict.fromkeys(job.clients, 0)
    for number in range(1, 2001):
        (client,) = chosen(job, number, history)
        counts[client] += 1

    for client, count in examples.items():
        expected = 2000 * count / 100
        assert abs(counts[client] - expected) < 5 * math.sqrt(expected)


def test_twice_as_many_candidates_as_are_asked_where_the_job_does_not_say() -> None:
    """So with all but a few losses equal, one of the highest is asked as often as it is a candidate: half the time."""
    job = spec(clients=5, total=20)
    history = History({client: ClientStats(1, 1, 1, 1, 10, 1.0) for client in job.clients})
    history = History({**history.clients, job.clients[3]: ClientStats(1, 1, 1, 1, 10, 9.0)})
    times = sum(job.clients[3] in chosen(job, number, history) for number in range(1, 801))

    assert abs(times - 400) < 5 * math.sqrt(200)


def test_who_was_asked_in_vain_is_not_asked_for_ever() -> None:
    """It has the mean loss, not an infinite one."""
    job = spec(clients=2, candidates=6, total=6)
    known = {client: ClientStats(1, 1, 1, 1, 10, float(place)) for place, client in enumerate(job.clients)}
    history = History({**known, job.clients[0]: ClientStats(asked=4, last_asked=4)})

    assert chosen(job, 9, history) == {job.clients[4], job.clients[5]}


def test_nobody_is_chosen_who_cannot_be_asked() -> None:
    """Neither who is away nor who is still at work, whose place is kept."""
    job = spec(clients=4, candidates=30)
    away, in_flight = frozenset(job.clients[:10]), frozenset(job.clients[10:12])
    cohort = chosen(job, 1, away=away, in_flight=in_flight)

    assert len(cohort) == 2
    assert not cohort & (away | in_flight)
