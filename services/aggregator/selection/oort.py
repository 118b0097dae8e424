"""Oort: exploits useful and fast clients, and explores unknown ones (Lai et al. 2021, OSDI, algorithm 1).

The parameters and the pacer are those of the authors' code in FedScale. That code leaves two cases undefined: no client
to exploit yet, and no client left to explore. Here the other group fills the cohort, so that it is never smaller than
it could be.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from services.aggregator.selection import lottery
from services.aggregator.selection.lottery import Lots, Places, Vector
from services.aggregator.selection.policy import STRANGER, ClientStats, Facts, History, Request, SelectionPolicy
from shared.job.catalog.selection import Oort
from shared.job.job_spec import JobSpec

NAME = "oort"


@dataclass(frozen=True)
class Pacer:
    """Limit on how slow a client may be, and the utility of exploited clients, which moves the limit."""

    threshold: float  # percentile of the clients' durations that is the preferred duration
    before: float = 0.0  # sum of the rounds' mean utilities over the last complete `pacer_step` rounds
    now: float = 0.0  # the same sum over the rounds since


class OortPolicy(SelectionPolicy[Oort]):
    """Exploits the clients of the highest score, and explores those that never delivered; its state is the pacer."""

    keeps_history = True

    def choose(self, settings: Oort, request: Request, /) -> list[str]:
        return choose(settings, request, tuple(request.candidates))

    def observe(
        self, settings: Oort, spec: JobSpec, before: History, clients: Mapping[str, ClientStats], facts: Facts, /
    ) -> Pacer:
        return observed(settings, before.states.get(NAME), before.clients, clients, facts)

    def state(self, document: Mapping[str, Any], /) -> Pacer:
        return Pacer(**document)


def choose(policy: Oort, request: Request, candidates: tuple[str, ...]) -> list[str]:
    """Chooses a share of the cohort among clients that never delivered, the rest among the others by score."""
    spec, number, wanted, history = request.spec, request.number, request.wanted, request.history
    lots = lottery.lots(spec, candidates, number, request.attempt)
    stats = [history.clients.get(client, STRANGER) for client in candidates]
    resting = _resting(policy, history, spec.population)
    active = np.array([client not in resting for client in candidates])
    delivered = np.array([client.accepted > 0 for client in stats])
    explored, unexplored = np.flatnonzero(active & delivered), np.flatnonzero(active & ~delivered)
    to_explore, to_exploit = shares(policy, number, wanted, len(explored), len(unexplored))

    pacer: Pacer | None = history.states.get(NAME)
    threshold = pacer.threshold if pacer else policy.round_threshold
    by_score = scores(policy, [stats[place] for place in explored], preferred_seconds(history, threshold), number)
    exploited = explored[_draw_exploited(policy, by_score, lottery.of(lots, explored), to_exploit)]
    asked = np.array([client.asked for client in stats])
    new = unexplored[_draw_explored(policy, asked[unexplored], lottery.of(lots, unexplored), to_explore)]
    # Resting clients fill the cohort, since a round without enough clients would fail.
    rested = np.flatnonzero(~active)
    rested = rested[np.lexsort((lots.order[rested], asked[rested]))[: wanted - to_explore - to_exploit]]
    return [candidates[place] for place in (*exploited, *new, *rested)]


def shares(policy: Oort, number: int, wanted: int, explored: int, unexplored: int) -> tuple[int, int]:
    """Returns the numbers of clients to explore and to exploit; at least one is explored if there is one and a share.

    The share to explore is max(exploration_factor · exploration_decay^(round − 1), exploration_min).
    """
    share = max(policy.exploration_factor * policy.exploration_decay ** (number - 1), policy.exploration_min)
    to_explore = min(max(int(wanted * share + 1e-9), 1 if share > 0 else 0), unexplored)
    to_exploit = min(wanted - to_explore, explored)
    return min(wanted - to_exploit, unexplored), to_exploit


def utility(client: ClientStats) -> float:
    """Returns |B| · loss: the paper's |B| · √(mean of squared losses) with the mean loss; |B| if no loss is known."""
    return client.examples * (1.0 if client.loss is None else max(client.loss, 0.0))


def scores(policy: Oort, clients: Sequence[ClientStats], preferred: float, number: int) -> Vector:
    """Returns the score (≥ 0) in round `number` of each client, all of which have delivered before.

    Utilities are clipped at a quantile, so that no outlier wins every round, and scaled to [0, 1]. The score adds
    √(alpha · ln(round) / last round it delivered in), since an old utility may have changed. The score of a client that
    takes longer than `preferred` seconds is multiplied by (preferred / its seconds)^penalty.
    """
    if not clients:
        return np.empty(0)
    utilities = np.array([utility(client) for client in clients])
    clip = np.sort(utilities)[_place(policy.clip_bound, len(clients))]
    clipped = np.minimum(utilities, clip)
    least = clipped.min() * 0.999  # the least useful client keeps a score above 0
    result: Vector = (clipped - least) / (clip - least) if clip > least else np.ones(len(clients))
    last = np.array([client.last_accepted for client in clients], np.float64)
    result += np.sqrt(policy.exploration_alpha * math.log(max(number, 1)) / np.maximum(last, 1))
    seconds = np.array([client.seconds or 0.0 for client in clients])
    slow = seconds > preferred
    result[slow] *= (preferred / seconds[slow]) ** policy.round_penalty
    return result


def preferred_seconds(history: History, threshold: float) -> float:
    """Returns the clients' duration at the percentile `threshold`, in seconds; infinite from the 100th on."""
    seconds = sorted(client.seconds for client in history.clients.values() if client.seconds is not None)
    return seconds[_place(threshold / 100, len(seconds))] if seconds and threshold < 100 else math.inf


def observed(
    policy: Oort, pacer: Pacer | None, before: Mapping[str, ClientStats], now: Mapping[str, ClientStats], facts: Facts
) -> Pacer:
    """Returns the pacer after a round; every `pacer_step` rounds it compares the utility with that of as many before.

    If the utility is about the same (± 10 %), clients this fast have nothing more to give, so slower ones are let in.
    If it differs by at least 5 times the earlier utility, the job can afford faster clients.
    """
    pacer = pacer or Pacer(policy.round_threshold)
    exploited = [now[client] for client in facts.reports if before.get(client, STRANGER).accepted]
    mean = math.fsum(utility(client) for client in exploited) / len(exploited) if exploited else 0.0
    pacer = replace(pacer, now=pacer.now + mean)
    if facts.number % policy.pacer_step:
        return pacer
    threshold = pacer.threshold
    if facts.number >= 2 * policy.pacer_step:
        change = abs(pacer.now - pacer.before)
        if change <= 0.1 * pacer.before:
            threshold = min(100.0, threshold + policy.pacer_delta)
        elif change >= 5 * pacer.before:
            threshold = max(policy.pacer_delta, threshold - policy.pacer_delta)
    return Pacer(threshold, before=pacer.now)


def _draw_exploited(policy: Oort, scores: Vector, lots: Lots, size: int) -> Places:
    """Draws `size` clients by score, among those with at least `cut_off_util` times the `size`-th highest score."""
    if not size:
        return np.empty(0, np.intp)
    marginal = np.sort(scores)[len(scores) - size]
    admitted = np.flatnonzero(scores >= policy.cut_off_util * marginal)
    return admitted[lottery.weighted(scores[admitted], lottery.of(lots, admitted), size)]


def _draw_explored(policy: Oort, asked: npt.NDArray[np.int64], lots: Lots, size: int) -> Places:
    """Draws `size` clients by speed among the fastest `sample_window` · `size`.

    A client that never delivered has no known speed; how often it was `asked` in vain stands for it.
    """
    window = np.lexsort((lots.order, asked))[: int(policy.sample_window * size)]
    return window[lottery.weighted(1 / (1 + asked[window]), lottery.of(lots, window), size)]


def _resting(policy: Oort, history: History, population: int) -> frozenset[str]:
    """Returns the clients asked most, if more than `blacklist_rounds` times, up to a share of the population."""
    if policy.blacklist_rounds < 0:
        return frozenset()
    tired = [client for client, stats in history.clients.items() if stats.asked > policy.blacklist_rounds]
    tired.sort(key=lambda client: (-history.clients[client].asked, client))
    return frozenset(tired[: int(policy.blacklist_max_len * population)])


def _place(share: float, count: int) -> int:
    """Returns the index of a quantile among `count` sorted values."""
    return min(int(count * share), count - 1)
