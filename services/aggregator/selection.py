"""Who trains in a round: a pure function of the job, who is alive, and the round."""

import hashlib
from collections.abc import Mapping

from shared.catalog.selection import SelectAll
from shared.jobs import JobSpec


def population(spec: JobSpec, alive: Mapping[str, int]) -> tuple[str, ...]:
    """The clients that could train now: all of a pool that has a trainer, or the silos that are alive.

    `alive` gives the slots of each pool and silo.
    """
    if spec.pool is not None:
        return spec.clients if alive.get(spec.pool) else ()
    return tuple(client for client in spec.clients if alive.get(client))


def select(spec: JobSpec, alive: Mapping[str, int], number: int, attempt: int) -> tuple[str, ...]:
    """The cohort of a round, in the order of the job's clients; empty where too few are alive.

    Round 0 asks one client for the initial model. A random cohort holds the clients whose hash of (seed, round,
    attempt, name) is smallest: as good as a shuffle, and the same in every version of Python.
    """
    candidates = population(spec, alive)
    needed, size = (1, 1) if number == 0 else (spec.minimum, spec.cohort_size)
    if len(candidates) < needed:
        return ()
    if number > 0 and isinstance(spec.select, SelectAll):
        return candidates

    def lot(client: str) -> bytes:
        return hashlib.sha256(f"{spec.seed}/{number}/{attempt}/{client}".encode()).digest()

    chosen = set(sorted(candidates, key=lot)[:size])
    return tuple(client for client in candidates if client in chosen)


def lacking(spec: JobSpec, alive: Mapping[str, int]) -> str:
    """What a job without a cohort waits for, as a sentence."""
    if spec.pool is not None:
        return (
            f"no trainer of pool {spec.pool} is alive; start one with `python -m services.trainer --pool {spec.pool}`"
        )
    missing = [client for client in spec.clients if not alive.get(client)]
    return (
        f"{len(spec.clients) - len(missing)} of {len(spec.clients)} silos are alive and {spec.minimum} are needed; "
        f"missing: {', '.join(missing[:5])}; start one with `python -m services.trainer --client {missing[0]}`"
    )
