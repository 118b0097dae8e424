"""Policies that need no history of the clients: every client, some at random, or one after the other."""

from collections.abc import Collection
from itertools import islice

from services.aggregator.selection import lottery
from services.aggregator.selection.policy import Request, SelectionPolicy
from shared.job.catalog.selection import RoundRobin, SelectAll, SelectRandom
from shared.job.catalog.strategies import FedBuff
from shared.job.job_spec import JobSpec


class AllPolicy(SelectionPolicy[SelectAll]):
    """Every client, every round."""

    def choose(self, _: SelectAll, request: Request, /) -> Collection[str]:
        return request.candidates


class RandomPolicy(SelectionPolicy[SelectRandom]):
    """Some of the clients, each as likely as any other."""

    def choose(self, _: SelectRandom, request: Request, /) -> list[str]:
        return lottery.drawn(request.spec, request.candidates, request.number, request.attempt, request.wanted)


class RoundRobinPolicy(SelectionPolicy[RoundRobin]):
    """One client after the other, in the job's order, each as often as any other.

    A client that cannot be asked is passed over, and has its next turn a cycle later. A second attempt at a round
    continues with the next clients, because the first attempt failed with the clients before them.
    """

    def choose(self, _: RoundRobin, request: Request, /) -> list[str]:
        clients = request.spec.clients
        start = asked_before(request.spec, request.number) + (request.attempt - 1) * request.spec.cohort_size
        turns = (clients[(start + place) % len(clients)] for place in range(len(clients)))
        return list(islice((client for client in turns if client in request.candidates), request.wanted))


def asked_before(spec: JobSpec, number: int) -> int:
    """Counts the clients asked in the rounds before this one, if no round failed; a client counts each time.

    A synchronous round asks a cohort. An asynchronous round asks as many clients as the round before it took updates
    out of the buffer.
    """
    if number <= 1:
        return 0
    step = spec.target if isinstance(spec.strategy, FedBuff) else spec.cohort_size
    return spec.cohort_size + (number - 2) * step
