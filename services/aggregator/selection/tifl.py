"""TiFL: tiers of equally fast clients, one of which trains in a round (Chai et al. 2020, algorithm 2).

Slow clients delay only each other. The first rounds ask each client once, to measure it. Then a tier is drawn among
those with credits left. After each interval without progress, tiers of low accuracy become likelier.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from services.aggregator.selection import lottery
from services.aggregator.selection.policy import STRANGER, ClientStats, Facts, History, Request, SelectionPolicy
from services.aggregator.selection.without_history import asked_before
from shared.job.catalog.selection import Tifl
from shared.job.job_spec import JobSpec

NAME = "tifl"

Figures = tuple[float | None, ...]


@dataclass(frozen=True)
class Tiers:
    """State of TiFL: a value for each tier, the fastest tier first."""

    credits: tuple[int, ...]  # number of rounds in which the tier may still be drawn
    chances: tuple[float, ...]  # probability that the tier is drawn; they sum to 1
    figures: Figures = ()  # quality of the model for the tier at the last interval; higher is better
    current: int | None = None  # the tier drawn last


class TiflPolicy(SelectionPolicy[Tifl]):
    """Measures each client once, then draws a tier each round; its state is the tiers' credits and chances."""

    keeps_history = True

    def choose(self, settings: Tifl, request: Request, /) -> list[str]:
        return choose(settings, request, tuple(request.candidates))

    def observe(
        self, settings: Tifl, spec: JobSpec, before: History, clients: Mapping[str, ClientStats], facts: Facts, /
    ) -> Tiers:
        return observed(spec, settings, before, clients, facts)

    def state(self, document: Mapping[str, Any], /) -> Tiers:
        rows = {key: tuple(document[key]) for key in ("credits", "chances", "figures")}  # JSON knows no tuples
        return Tiers(**rows, current=document["current"])


def choose(policy: Tifl, request: Request, candidates: tuple[str, ...]) -> list[str]:
    """Chooses clients of one tier, each as likely as any other; if it has too few, those of its neighbors too."""
    spec, number, wanted, history = request.spec, request.number, request.wanted, request.history
    order = lottery.lots(spec, candidates, number, request.attempt).order
    if is_profiling(spec, number):
        asked = np.array([history.clients.get(client, STRANGER).asked for client in candidates])
        return [candidates[place] for place in np.lexsort((order, asked))[:wanted]]
    all_tiers = tiers(spec, policy, history.clients)
    tier_of = np.array([all_tiers[client] for client in candidates])
    has_clients = np.bincount(tier_of, minlength=policy.tiers) > 0
    uniform = float(lottery.lots(spec, ("",), number, request.attempt).uniform[0])
    tier = _draw_tier(history.states.get(NAME) or beginning(spec, policy), has_clients.tolist(), uniform)
    distance = np.abs(tier_of - tier)
    return [candidates[place] for place in np.lexsort((order, tier_of, distance))[:wanted]]  # the faster one first


def is_profiling(spec: JobSpec, number: int) -> bool:
    """Returns True if a round measures clients, which ends once each client was asked."""
    return asked_before(spec, number) < spec.population


def tiers(spec: JobSpec, policy: Tifl, clients: Mapping[str, ClientStats]) -> dict[str, int]:
    """Returns each client's tier: equally many clients in each, ranked by the seconds of their last updates.

    A client that has not delivered counts as slower than all that have.
    """
    names = spec.clients
    seconds = np.array([clients.get(client, STRANGER).seconds for client in names], np.float64)  # NaN is sorted last
    order = np.argsort(seconds, kind="stable").tolist()
    return {names[index]: place * policy.tiers // len(order) for place, index in enumerate(order)}


def beginning(spec: JobSpec, policy: Tifl) -> Tiers:
    """Returns the first state: equal chances, and credits for an equal share of the rounds."""
    credits_ = policy.credits or math.ceil(spec.rounds.count / policy.tiers)
    return Tiers((credits_,) * policy.tiers, (1 / policy.tiers,) * policy.tiers)


def observed(spec: JobSpec, policy: Tifl, before: History, now: Mapping[str, ClientStats], facts: Facts) -> Tiers:
    """Returns the state after a round: the trained tier loses a credit; every `interval` rounds chances may change."""
    state: Tiers = before.states.get(NAME) or beginning(spec, policy)
    if is_profiling(spec, facts.number):
        return state
    if facts.cohort:
        # The tier that trained is the one of most of the cohort: clients of its neighbors only fill the cohort up.
        tier_of = tiers(spec, policy, before.clients)
        counts = Counter(tier_of[client] for client in facts.cohort)
        current = min(counts, key=lambda tier: (-counts[tier], tier))
        left = [max(0, count - (tier == current)) for tier, count in enumerate(state.credits)]
        state = replace(state, current=current, credits=tuple(left))
    if facts.number % policy.interval:
        return state
    latest = figures(spec, policy, now)
    if _stands_still(state, latest):
        state = replace(state, chances=chances(latest))
    return replace(state, figures=latest)


def figures(spec: JobSpec, policy: Tifl, clients: Mapping[str, ClientStats]) -> Figures:
    """Returns the quality of the model for each tier: its clients' last accuracies, weighted by their examples.

    The negative losses take their place if no client reports an accuracy. The quality is None if no client of the tier
    has a figure.
    """
    accurate = any(client.accuracy is not None for client in clients.values())
    sums, weights = [0.0] * policy.tiers, [0] * policy.tiers
    for name, tier in tiers(spec, policy, clients).items():
        client = clients.get(name, STRANGER)
        value = client.accuracy if accurate else None if client.loss is None else -client.loss
        if value is not None:
            weight = max(client.examples, 1)
            sums[tier] += value * weight
            weights[tier] += weight
    return tuple(total / weight if weight else None for total, weight in zip(sums, weights, strict=True))


def chances(figures: Figures) -> tuple[float, ...]:
    """Returns the chance of each tier: the i-th worst of T tiers (i from 0) gets (T − i) / (1 + … + T)."""
    count = len(figures)
    worst_first = sorted(range(count), key=lambda tier: -math.inf if (value := figures[tier]) is None else value)
    rank = {tier: place for place, tier in enumerate(worst_first)}
    return tuple((count - rank[tier]) * 2 / (count * (count + 1)) for tier in range(count))


def _stands_still(state: Tiers, latest: Figures) -> bool:
    """Returns True if the model is no better for the current tier than an interval ago."""
    if state.current is None or not state.figures:
        return False
    then, now = state.figures[state.current], latest[state.current]
    return then is not None and now is not None and now <= then


def _draw_tier(state: Tiers, has_clients: Sequence[bool], uniform: float) -> int:
    """Draws a tier with credits and clients by the tiers' chances; if none has credits left, any with clients."""
    able = [tier for tier, is_able in enumerate(has_clients) if is_able]
    able = [tier for tier in able if state.credits[tier] > 0] or able
    remaining = uniform * math.fsum(state.chances[tier] for tier in able)
    for tier in able:
        remaining -= state.chances[tier]
        if remaining <= 0:
            return tier
    return able[-1]
