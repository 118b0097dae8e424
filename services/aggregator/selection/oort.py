"""Guided selection: useful and fast clients are exploited, unknown ones explored (Lai et al. 2021, OSDI, algorithm 1).

The parameters and the pacer are those of the authors' code in FedScale; what it leaves undefined (nobody to exploit
yet, nobody left to explore) is filled from the other side, so that a cohort is never smaller than it could be.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from services.aggregator.selection import lottery
from services.aggregator.selection.lottery import Lots, Places, Vector
from services.aggregator.selection.policy import STRANGER, Facts, History, Known, Policy, Request
from shared.job.catalog.selection import Oort
from shared.job.job_spec import JobSpec

NAME = "oort"


@dataclass(frozen=True)
class Pacer:
    """How slow a client may be, and the utility that exploited clients gave since the pacer was last asked."""

    threshold: float  # percentile of durations that is the preferred one
    before: float = 0.0  # sum over the last `pacer_step` rounds that are complete
    now: float = 0.0  # sum over the rounds since


class OortPolicy(Policy[Oort]):
    """Exploits the clients of the highest score, and explores those that never delivered; its state is the pacer."""

    keeps_history = True

    def choose(self, settings: Oort, request: Request, /) -> list[str]:
        return choose(settings, request, tuple(request.candidates))

    def observe(
        self, settings: Oort, spec: JobSpec, before: History, clients: Mapping[str, Known], facts: Facts, /
    ) -> Pacer:
        return observed(settings, before.states.get(NAME), before.clients, clients, facts)

    def state(self, document: Mapping[str, Any], /) -> Pacer:
        return Pacer(**document)


def choose(policy: Oort, request: Request, candidates: tuple[str, ...]) -> list[str]:
    """Choose a share of the cohort among clients that never delivered, the rest among the others by score."""
    spec, number, wanted, history = request.spec, request.number, request.wanted, request.history
    lots = lottery.lots(spec, candidates, number, request.attempt)
    known = [history.clients.get(client, STRANGER) for client in candidates]
    resting = _resting(policy, history, spec.population)
    active = np.array([client not in resting for client in candidates])
    delivered = np.array([client.accepted > 0 for client in known])
    explored, unexplored = np.flatnonzero(active & delivered), np.flatnonzero(active & ~delivered)
    to_explore, to_exploit = shares(policy, number, wanted, len(explored), len(unexplored))

    pacer: Pacer | None = history.states.get(NAME)
    threshold = pacer.threshold if pacer else policy.round_threshold
    found = scores(policy, [known[place] for place in explored], preferred_seconds(history, threshold), number)
    exploited = explored[_exploited(policy, found, lottery.of(lots, explored), to_exploit)]
    asked = np.array([client.asked for client in known])
    new = unexplored[_explored(policy, asked[unexplored], lottery.of(lots, unexplored), to_explore)]
    # Better some that rest than a round without enough clients.
    rested = np.flatnonzero(~active)
    rested = rested[np.lexsort((lots.order[rested], asked[rested]))[: wanted - to_explore - to_exploit]]
    return [candidates[place] for place in (*exploited, *new, *rested)]


def shares(policy: Oort, number: int, wanted: int, explored: int, unexplored: int) -> tuple[int, int]:
    """How many are explored and how many exploited; at least one is explored while there is one and any share at all.

    The share is max(exploration_factor · exploration_decay^(round − 1), exploration_min).
    """
    share = max(policy.exploration_factor * policy.exploration_decay ** (number - 1), policy.exploration_min)
    to_explore = min(max(int(wanted * share + 1e-9), 1 if share > 0 else 0), unexplored)
    to_exploit = min(wanted - to_explore, explored)
    return min(wanted - to_exploit, unexplored), to_exploit


def utility(client: Known) -> float:
    """|B| · loss, the paper's |B| · √(mean of squared losses) where only their mean is known; |B| where nothing is."""
    return client.examples * (1.0 if client.loss is None else max(client.loss, 0.0))


def scores(policy: Oort, clients: Sequence[Known], preferred: float, number: int) -> Vector:
    """The score of each client that has delivered, ≥ 0: what it is worth to ask it in round `number`.

    Utilities are clipped at a quantile, lest an outlier win every round, and brought to [0, 1]; to that comes
    √(alpha · ln(round) / last round it delivered in), for what may have changed since. Who takes longer than the
    `preferred` seconds is worth (preferred / own)^penalty times as much.
    """
    if not clients:
        return np.empty(0)
    utilities = np.array([utility(client) for client in clients])
    clip = np.sort(utilities)[_place(policy.clip_bound, len(clients))]
    clipped = np.minimum(utilities, clip)
    least = clipped.min() * 0.999  # so that the least useful one is not worthless
    found: Vector = (clipped - least) / (clip - least) if clip > least else np.ones(len(clients))
    last = np.array([client.last_accepted for client in clients], np.float64)
    found += np.sqrt(policy.exploration_alpha * math.log(max(number, 1)) / np.maximum(last, 1))
    seconds = np.array([client.seconds or 0.0 for client in clients])
    slow = seconds > preferred
    found[slow] *= (preferred / seconds[slow]) ** policy.round_penalty
    return found


def preferred_seconds(history: History, threshold: float) -> float:
    """The duration at a percentile of all that are known; infinite from the 100th on."""
    seconds = sorted(client.seconds for client in history.clients.values() if client.seconds is not None)
    return seconds[_place(threshold / 100, len(seconds))] if seconds and threshold < 100 else math.inf


def observed(
    policy: Oort, pacer: Pacer | None, before: Mapping[str, Known], now: Mapping[str, Known], facts: Facts
) -> Pacer:
    """The pacer after a round: every `pacer_step` rounds it compares what exploited clients gave with as many before.

    About the same (± 10 %): selection has come to an end with clients this fast, so slower ones are let in. Far more
    (6 times as much): it can afford faster ones.
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


def _exploited(policy: Oort, scores: Vector, lots: Lots, size: int) -> Places:
    """Draws by score among those whose score is at least `cut_off_util` of the last that would be taken by it."""
    if not size:
        return np.empty(0, np.intp)
    marginal = np.sort(scores)[len(scores) - size]
    admitted = np.flatnonzero(scores >= policy.cut_off_util * marginal)
    return admitted[lottery.weighted(scores[admitted], lottery.of(lots, admitted), size)]


def _explored(policy: Oort, asked: npt.NDArray[np.int64], lots: Lots, size: int) -> Places:
    """Draws by speed among the fastest `sample_window` · size.

    Nothing is known of the speed of who never delivered, but for how often it was `asked` in vain.
    """
    window = np.lexsort((lots.order, asked))[: int(policy.sample_window * size)]
    return window[lottery.weighted(1 / (1 + asked[window]), lottery.of(lots, window), size)]


def _resting(policy: Oort, history: History, population: int) -> frozenset[str]:
    """Who was asked more than `blacklist_rounds` times: those asked most, up to a share of all."""
    if policy.blacklist_rounds < 0:
        return frozenset()
    tired = [client for client, known in history.clients.items() if known.asked > policy.blacklist_rounds]
    tired.sort(key=lambda client: (-history.clients[client].asked, client))
    return frozenset(tired[: int(policy.blacklist_max_len * population)])


def _place(share: float, count: int) -> int:
    """Where a quantile is among so many sorted values."""
    return min(int(count * share), count - 1)
