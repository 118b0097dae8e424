"""The cohort of a round: the clients that could train, if they are enough, and those that the job's policy asks.

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
    """Choose the clients to ask in a round, in the order of the job's clients.

    The result is empty if the candidates are not `enough`, and if so many clients are `in_flight` (at work since an
    earlier round) that no other is needed. Round 0 asks one client for the initial model. A client that is `away` is
    never asked, unless the job simulates an absence that selection is not aware of.
    """
    candidates = _candidates(spec, alive, away, in_flight)
    if not _suffice(spec, number, candidates, in_flight):
        return ()
    if number == 0 and spec.silos is not None:  # take turns: data that do not fit the model may be one silo's only
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
    """Tell if a round can be opened: the clients that could be asked and those in flight reach its minimum."""
    return _suffice(spec, number, _candidates(spec, alive, away, in_flight), in_flight)


def lacking(spec: JobSpec, alive: Mapping[str, int], away: frozenset[str] = NOBODY) -> str:
    """Return a sentence that says which clients a job without a cohort waits for."""
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
