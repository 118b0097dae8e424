"""Simulated impairments of a pool's clients, from a job's `simulate` section: slow, far, absent or hostile ones.

Pure: each answer follows from the job and a client's name, and from the round or the second if it may change. So
every trainer and every aggregator simulates the same world, even after a restart.
"""

import hashlib
import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from shared.job.catalog.simulation import Cycle, LogNormal, Phones, Profiles, Ratios, Trace
from shared.job.clients import Listed, Numbered
from shared.job.job_spec import JobSpec

#: Times of phones as multiples of the fastest one's, by class and age. Drawing devices from such a table is EasyFL's
#: idea (Zhuang et al. 2022); the figures are rounded from the observations of AI-Benchmark (Ignatov et al. 2019):
#: speed nearly doubles from one generation to the next, and a cheaper class is one to three generations behind.
PHONES = {
    "flagship, new": 1.0,
    "flagship, 1 year old": 1.8,
    "flagship, 2 years old": 3.2,
    "flagship, 3 years old": 5.8,
    "upper class, new": 1.5,
    "upper class, 1 year old": 2.7,
    "upper class, 2 years old": 4.9,
    "upper class, 3 years old": 8.7,
    "middle class, new": 2.5,
    "middle class, 1 year old": 4.5,
    "middle class, 2 years old": 8.1,
    "middle class, 3 years old": 14.0,
    "entry class, new": 5.0,
    "entry class, 1 year old": 9.0,
    "entry class, 2 years old": 16.0,
}

_NORMAL = NormalDist()
_SPEEDS = tuple(PHONES.values())


# --- speed ----------------------------------------------------------------------------------


def ratio(spec: JobSpec, client: str) -> float:
    """The factor, ≥ 1, by which a client takes longer than its trainer."""
    simulate = spec.simulate
    match simulate.speed if simulate else None:
        case Profiles() as speed:
            slow, medium = round(speed.slow * spec.population), round(speed.medium * spec.population)
            place = _place(spec, "speed", client)
            return speed.ratios[0 if place < slow else 1 if place < slow + medium else 2]
        case Phones():
            return _SPEEDS[int(_uniform(spec, "phone", client) * len(_SPEEDS))]
        case LogNormal(sigma=sigma):
            return max(1.0, math.exp(sigma * _normal(spec, "speed", client)))
        case Ratios(ratios=ratios):
            return ratios.get(client, 1.0)
        case _:
            return 1.0


# --- network --------------------------------------------------------------------------------


def transfer(spec: JobSpec, client: str, size: int, *, up: bool) -> float:
    """Seconds that a transfer of so many bytes to or from a client takes: latency + bytes / rate.

    A client's rates are the job's rates times exp(N(0, sigma)), with the same factor in both directions.
    """
    network = spec.simulate.network if spec.simulate else None
    if network is None:
        return 0.0
    rate = network.up_mbps if up else network.down_mbps
    seconds = network.latency or 0.0
    if rate is None:
        return seconds
    return seconds + size * 8e-6 / (rate * math.exp(network.sigma * _normal(spec, "network", client)))


# --- availability ---------------------------------------------------------------------------


def is_there(spec: JobSpec, client: str, seconds: float) -> bool:
    """True if a client is present, so many seconds after the job began."""
    return arrival(spec, client, seconds) == 0


def arrival(spec: JobSpec, client: str, seconds: float) -> float:
    """Seconds until a client is present: 0 if it is now, infinite if it never will be again."""
    simulate = spec.simulate
    match simulate.availability if simulate else None:
        case Cycle(there=there, away=away):
            period = there + away
            now = (seconds + _uniform(spec, "cycle", client) * period) % period
            return 0.0 if now < there else period - now
        case Trace() as trace if client in trace.spans:
            return _traced(trace, trace.spans[client], seconds)
        case _:
            return 0.0


def _traced(trace: Trace, spans: tuple[tuple[float, float], ...], seconds: float) -> float:
    now = seconds if trace.period is None else seconds % trace.period
    for start, end in spans:
        if now < end:
            return max(0.0, start - now)
    return math.inf if trace.period is None or not spans else trace.period - now + spans[0][0]


# --- faults and attacks ---------------------------------------------------------------------


def drops_out(spec: JobSpec, client: str, number: int, attempt: int = 1) -> bool:
    """True if a client that is asked in an attempt at a round gives no update."""
    dropout = spec.simulate.dropout if spec.simulate else None
    return dropout is not None and _uniform(spec, f"dropout/{number}/{attempt}", client) < dropout.rate


def hostile(spec: JobSpec) -> frozenset[str]:
    """The clients that attack: exactly round(fraction · all of them)."""
    attack = spec.simulate.attack if spec.simulate else None
    if spec.simulate is None or attack is None:
        return frozenset()
    return _first(spec.simulate.seed, "attack", spec.clients, round(attack.fraction * spec.population))


def flipped(y: Any, classes: int) -> Any:
    """Flipped labels, y → classes − 1 − y, for a number, an array or a tensor."""
    return classes - 1 - y


# --- chance ---------------------------------------------------------------------------------


def _uniform(spec: JobSpec, what: str, client: str) -> float:
    """A pseudorandom number in (0, 1) for a client, different for each quantity that is drawn."""
    seed = spec.simulate.seed if spec.simulate else 0
    return ((int.from_bytes(_hash(seed, what, client)[:8]) >> 12) + 0.5) * 2.0**-52


def _normal(spec: JobSpec, what: str, client: str) -> float:
    return _NORMAL.inv_cdf(_uniform(spec, what, client))


def _place(spec: JobSpec, what: str, client: str) -> int:
    """The place of a client in a shuffle of all clients, so that shares of them are exact."""
    return _places(spec.simulate.seed if spec.simulate else 0, what, spec.clients)[client]


@lru_cache(maxsize=8)
def _places(seed: int, what: str, clients: Listed | Numbered) -> dict[str, int]:
    order = sorted(clients, key=lambda client: _hash(seed, what, client))
    return {client: place for place, client in enumerate(order)}


@lru_cache(maxsize=8)
def _first(seed: int, what: str, clients: Listed | Numbered, size: int) -> frozenset[str]:
    return frozenset(client for client, place in _places(seed, what, clients).items() if place < size)


def _hash(seed: int, what: str, client: str) -> bytes:
    return hashlib.sha256(f"{seed}/{what}/{client}".encode()).digest()
