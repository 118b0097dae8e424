"""Cohort of a round: finds the clients that could train, checks that they are enough, and has the policy choose.

Pure, and the same on every machine: all draws are hashes of the job's seed, the round, the attempt and the names.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from services.aggregator.selection import lottery
from services.aggregator.selection.policies import POLICIES
from services.aggregator.selection.policy import NOTHING, History, Request
from shared.job.clients import Listed, Numbered
from shared.job.job_spec import JobSpec

Names = Collection[str]
NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Candidates(Collection[str]):
    """Clients that could be asked, in the job's order: all that are alive, without the excluded ones."""

    alive: Listed | Numbered
    excluded: frozenset[str]  # a subset of `alive`

    def __len__(self) -> int:
        return len(self.alive) - len(self.excluded)

    def __iter__(self) -> Iterator[str]:
        return (client for client in self.alive if client not in self.excluded)

    def __contains__(self, client: object) -> bool:
        return client in self.alive and client not in self.excluded


def population(spec: JobSpec, alive: Mapping[str, int]) -> Listed | Numbered:
    """Returns the clients that could train now: all of a pool that has a trainer, or the silos that are alive.

    `alive` gives the number of slots of each pool and silo.
    """
    if spec.pool is not None:
        return spec.clients if alive.get(spec.pool) else Listed()
    return Listed(client for client in spec.clients if alive.get(client))


def select(
    spec: JobSpec,
    alive: Mapping[str, int],
    number: int,
    attempt: int,
    history: History = NOTHING,
    *,
    away: frozenset[str] = NOBODY,
    in_flight: frozenset[str] = NOBODY,
) -> tuple[str, ...]:
    """Chooses the clients to ask in a round, in the order of the job's clients.

    The result is empty if the candidates are not `enough`, or if so many clients are `in_flight` (asked in an earlier
    round and still training) that no other is needed. Round 0 asks one client for the initial model. A client that is
    `away` is never asked, unless the job simulates an absence that selection is not aware of.
    """
    candidates = _candidates(spec, alive, away, in_flight)
    if not _suffice(spec, number, candidates, in_flight):
        return ()
    if number == 0 and spec.silos is not None:  # each attempt asks another silo: one silo's data may not fit the model
        turns = lottery.drawn(spec, candidates, number, 1, len(candidates))
        return (turns[(attempt - 1) % len(turns)],)
    if number == 0:
        return tuple(lottery.drawn(spec, candidates, number, attempt, 1))
    wanted = min(spec.cohort_size - len(in_flight), len(candidates))
    if wanted <= 0:
        return ()
    request = Request(spec, number, attempt, wanted, candidates, history)
    chosen = POLICIES[spec.select.name].choose(spec.select, request)
    return tuple(chosen) if chosen is candidates else spec.in_order(chosen)  # the candidates are in order already


def enough(
    spec: JobSpec,
    alive: Mapping[str, int],
    number: int,
    *,
    away: frozenset[str] = NOBODY,
    in_flight: frozenset[str] = NOBODY,
) -> bool:
    """Returns True if the clients that could be asked and those in flight reach the round's minimum."""
    return _suffice(spec, number, _candidates(spec, alive, away, in_flight), in_flight)


def lacking(spec: JobSpec, alive: Mapping[str, int], away: frozenset[str] = NOBODY) -> str:
    """Returns a sentence that says which clients a job without a cohort waits for."""
    able = population(spec, alive)
    if spec.pool is not None and not able:
        return (
            f"no trainer of pool {spec.pool} is alive; start one with `python -m services.trainer --pool {spec.pool}`"
        )
    missing = [client for client in spec.clients if client not in able] if spec.silos is not None else []
    if missing:
        return (
            f"{len(able)} of {len(spec.clients)} silos are alive and {spec.minimum} are needed; "
            f"missing: {', '.join(missing[:5])}; start one with `python -m services.trainer --client {missing[0]}`"
        )
    present = len(Candidates(able, frozenset(client for client in away if client in able)))
    return f"{present} of {len(able)} clients are there (simulate.availability) and {spec.minimum} are needed"


def _candidates(spec: JobSpec, alive: Mapping[str, int], away: Names, in_flight: Names) -> Candidates:
    """Returns the clients that could be asked: alive, present and not in flight."""
    able = population(spec, alive)
    if spec.simulate is not None and not spec.simulate.aware:
        away = ()
    return Candidates(able, frozenset(client for client in (*away, *in_flight) if client in able))


def _suffice(spec: JobSpec, number: int, candidates: Names, in_flight: Names) -> bool:
    return len(candidates) + len(in_flight) >= (1 if number == 0 else spec.minimum)
