"""Tiers of equally fast clients, one of which trains in a round (Chai et al. 2020, TiFL, algorithm 2).

Nobody waits for the slow but with the slow. The first rounds ask each client once, to measure it. Then a tier is drawn
among those with credits left; at every interval without progress, tiers of low accuracy become likelier.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from services.aggregator.selection import lottery
from services.aggregator.selection.policy import STRANGER, Facts, History, Known, Policy, Request
from services.aggregator.selection.round_robin import asked_before
from shared.job.catalog.selection import Tifl
from shared.job.job_spec import JobSpec

NAME = "tifl"

Figures = tuple[float | None, ...]


@dataclass(frozen=True)
class Tiers:
    """What TiFL remembers of each tier, the fastest first."""

    credits: tuple[int, ...]  # rounds that it may still be drawn
    chances: tuple[float, ...]  # of being drawn; they sum to 1
    figures: Figures = ()  # how good the model was for it at the last interval: the higher, the better
    current: int | None = None  # drawn last


class TiflPolicy(Policy[Tifl]):
    """Measures each client once, then draws a tier each round; its state is the tiers' credits and chances."""

    keeps_history = True

    def choose(self, settings: Tifl, request: Request, /) -> list[str]:
        return choose(settings, request, tuple(request.candidates))

    def observe(
        self, settings: Tifl, spec: JobSpec, before: History, clients: Mapping[str, Known], facts: Facts, /
    ) -> Tiers:
        return observed(spec, settings, before, clients, facts)

    def state(self, document: Mapping[str, Any], /) -> Tiers:
        rows = {key: tuple(document[key]) for key in ("credits", "chances", "figures")}  # JSON knows no tuples
        return Tiers(**rows, current=document["current"])


def choose(policy: Tifl, request: Request, candidates: tuple[str, ...]) -> list[str]:
    """Choose clients of one tier, each as likely as any other; if it has too few, those of its neighbours too."""
    spec, number, wanted, history = request.spec, request.number, request.wanted, request.history
    order = lottery.lots(spec, candidates, number, request.attempt).order
    if is_profiling(spec, number):
        asked = np.array([history.clients.get(client, STRANGER).asked for client in candidates])
        return [candidates[place] for place in np.lexsort((order, asked))[:wanted]]
    all_tiers = tiers(spec, policy, history.clients)
    tier_of = np.array([all_tiers[client] for client in candidates])
    peopled = np.bincount(tier_of, minlength=policy.tiers) > 0
    uniform = float(lottery.lots(spec, ("",), number, request.attempt).uniform[0])
    tier = _drawn(history.states.get(NAME) or beginning(spec, policy), peopled.tolist(), uniform)
    distance = np.abs(tier_of - tier)
    return [candidates[place] for place in np.lexsort((order, tier_of, distance))[:wanted]]  # the faster one first


def is_profiling(spec: JobSpec, number: int) -> bool:
    """Whether a round measures clients: until each had its turn."""
    return asked_before(spec, number) < spec.population


def tiers(spec: JobSpec, policy: Tifl, clients: Mapping[str, Known]) -> dict[str, int]:
    """The tier of each of the job's clients: equally many in each, by the seconds of their last updates.

    Who has not delivered counts as slower than all that have.
    """

    names = spec.clients
    seconds = np.array([clients.get(client, STRANGER).seconds for client in names], np.float64)  # NaN is sorted last
    order = np.argsort(seconds, kind="stable").tolist()
    return {names[index]: place * policy.tiers // len(order) for place, index in enumerate(order)}


def beginning(spec: JobSpec, policy: Tifl) -> Tiers:
    """All tiers alike, each with credits for its share of the rounds."""
    credits_ = policy.credits or math.ceil(spec.rounds.count / policy.tiers)
    return Tiers((credits_,) * policy.tiers, (1 / policy.tiers,) * policy.tiers)


def observed(spec: JobSpec, policy: Tifl, before: History, now: Mapping[str, Known], facts: Facts) -> Tiers:
    """The tiers after a round: the one that trained has a credit less, and every `interval` rounds chances change."""
    memory: Tiers = before.states.get(NAME) or beginning(spec, policy)
    if is_profiling(spec, facts.number):
        return memory
    if facts.cohort:
        # The tier that most of the cohort are of: neighbours only fill it up.
        tier_of = tiers(spec, policy, before.clients)
        counts = Counter(tier_of[client] for client in facts.cohort)
        current = min(counts, key=lambda tier: (-counts[tier], tier))
        left = [max(0, count - (tier == current)) for tier, count in enumerate(memory.credits)]
        memory = replace(memory, current=current, credits=tuple(left))
    if facts.number % policy.interval:
        return memory
    found = figures(spec, policy, now)
    if _stands_still(memory, found):
        memory = replace(memory, chances=chances(found))
    return replace(memory, figures=found)


def figures(spec: JobSpec, policy: Tifl, clients: Mapping[str, Known]) -> Figures:
    """How good the model is for each tier: its clients' last accuracies, weighted by examples; none: not known.

    Where no client reports an accuracy, the negative losses.
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
    """The worse a tier, the likelier: the i-th worst of T (from 0) with (T − i) / (1 + … + T)."""
    count = len(figures)
    worst_first = sorted(range(count), key=lambda tier: -math.inf if (value := figures[tier]) is None else value)
    rank = {tier: place for place, tier in enumerate(worst_first)}
    return tuple((count - rank[tier]) * 2 / (count * (count + 1)) for tier in range(count))


def _stands_still(memory: Tiers, found: Figures) -> bool:
    """Whether the model is no better for the current tier than an interval ago."""
    if memory.current is None or not memory.figures:
        return False
    then, now = memory.figures[memory.current], found[memory.current]
    return then is not None and now is not None and now <= then


def _drawn(memory: Tiers, peopled: Sequence[bool], uniform: float) -> int:
    """A tier with credits and clients, by the tiers' chances; where none has credits left, any with clients."""
    able = [tier for tier, is_able in enumerate(peopled) if is_able]
    able = [tier for tier in able if memory.credits[tier] > 0] or able
    remaining = uniform * math.fsum(memory.chances[tier] for tier in able)
    for tier in able:
        remaining -= memory.chances[tier]
        if remaining <= 0:
            return tier
    return able[-1]
