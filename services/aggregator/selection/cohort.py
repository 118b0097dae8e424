"""The cohort of a round: who could train, whether they are enough, and which of them the job's policy asks.

Pure, and the same on every machine: nothing is drawn but by hashes of the job's seed, the round, the attempt and names.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from services.aggregator.selection import lottery, oort, power_of_choice, round_robin, tifl
from services.aggregator.selection.history import NOTHING, History
from shared.job.catalog.selection import Oort, PowerOfChoice, RoundRobin, SelectAll, Tifl
from shared.job.clients import Listed, Numbered
from shared.job.job_spec import JobSpec

Names = Collection[str]
NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Candidates(Collection[str]):
    """Clients that could be asked, in the job's order: all that are there, without some of them."""

    there: Listed | Numbered
    without: frozenset[str]

    def __len__(self) -> int:
        return len(self.there) - len(self.without)

    def __iter__(self) -> Iterator[str]:
        return (client for client in self.there if client not in self.without)

    def __contains__(self, client: object) -> bool:
        return client in self.there and client not in self.without


def population(spec: JobSpec, alive: Mapping[str, int]) -> Listed | Numbered:
    """The clients that could train now: all of a pool that has a trainer, or the silos that are alive.

    `alive` gives the slots of each pool and silo.
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
    """Who is asked anew in a round, in the order of the job's clients.

    Empty where those that are there are not `enough`, and where so many are `flying` (at work since an earlier round)
    that nobody needs to be asked. Round 0 asks one client for the initial model. Who is `away` is never asked, unless
    the job simulates an absence that selection is not aware of.
    """
    candidates = _candidates(spec, alive, away, in_flight)
    if not _suffice(spec, number, candidates, in_flight):
        return ()
    if number == 0 and spec.silos is not None:  # one after the other: data that do not fit are one silo's
        turns = lottery.drawn(spec, candidates, number, 1, len(candidates))
        return (turns[(attempt - 1) % len(turns)],)
    if number == 0:
        return tuple(lottery.drawn(spec, candidates, number, attempt, 1))
    wanted = min(spec.cohort_size - len(in_flight), len(candidates))
    if wanted <= 0:
        return ()
    if isinstance(spec.select, SelectAll):
        return tuple(candidates)
    return spec.in_order(_chosen(spec, candidates, history, number, attempt, wanted))


def enough(
    spec: JobSpec,
    alive: Mapping[str, int],
    number: int,
    *,
    away: frozenset[str] = NOBODY,
    in_flight: frozenset[str] = NOBODY,
) -> bool:
    """Whether a round can be opened: those who could be asked and those at work already may make its minimum."""
    return _suffice(spec, number, _candidates(spec, alive, away, in_flight), in_flight)


def lacking(spec: JobSpec, alive: Mapping[str, int], away: frozenset[str] = NOBODY) -> str:
    """What a job without a cohort waits for, as a sentence."""
    could = population(spec, alive)
    if spec.pool is not None and not could:
        return (
            f"no trainer of pool {spec.pool} is alive; start one with `python -m services.trainer --pool {spec.pool}`"
        )
    missing = [client for client in spec.clients if client not in could] if spec.silos is not None else []
    if missing:
        return (
            f"{len(could)} of {len(spec.clients)} silos are alive and {spec.minimum} are needed; "
            f"missing: {', '.join(missing[:5])}; start one with `python -m services.trainer --client {missing[0]}`"
        )
    there = len(Candidates(could, frozenset(client for client in away if client in could)))
    return f"{there} of {len(could)} clients are there (simulate.availability) and {spec.minimum} are needed"


def _candidates(spec: JobSpec, alive: Mapping[str, int], away: Names, in_flight: Names) -> Candidates:
    """The clients that could be asked."""
    could = population(spec, alive)
    if spec.simulate is not None and not spec.simulate.aware:
        away = ()
    return Candidates(could, frozenset(client for client in (*away, *in_flight) if client in could))


def _suffice(spec: JobSpec, number: int, candidates: Names, in_flight: Names) -> bool:
    return len(candidates) + len(in_flight) >= (1 if number == 0 else spec.minimum)


def _chosen(
    spec: JobSpec, candidates: Candidates, history: History, number: int, attempt: int, wanted: int
) -> list[str]:
    """So many as are wanted of the candidates, as the job's policy chooses them.

    Those that go by what is known of each client look at each.
    """
    match spec.select:
        case RoundRobin():
            return round_robin.choose(spec, candidates, number, attempt, wanted)
        case PowerOfChoice() as policy:
            return power_of_choice.choose(spec, policy, tuple(candidates), history, number, attempt, wanted)
        case Oort() as policy:
            return oort.choose(spec, policy, tuple(candidates), history, number, attempt, wanted)
        case Tifl() as policy:
            return tifl.choose(spec, policy, tuple(candidates), history, number, attempt, wanted)
        case _:
            return lottery.drawn(spec, candidates, number, attempt, wanted)
