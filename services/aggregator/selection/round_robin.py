"""One client after the other, in the job's order, each as often as any other."""

from itertools import islice

from services.aggregator.selection.policy import Policy, Request
from shared.job.catalog.selection import RoundRobin
from shared.job.catalog.strategies import FedBuff
from shared.job.job_spec import JobSpec


class RoundRobinPolicy(Policy[RoundRobin]):
    """Takes the clients whose turn it is.

    A client that cannot be asked is passed over, and has its next turn a cycle later. A further attempt at a round goes
    on with the next clients, since the first ones did not do.
    """

    def choose(self, _: RoundRobin, request: Request, /) -> list[str]:
        clients = request.spec.clients
        start = asked_before(request.spec, request.number) + (request.attempt - 1) * request.spec.cohort_size
        turns = (clients[(start + place) % len(clients)] for place in range(len(clients)))
        return list(islice((client for client in turns if client in request.candidates), request.wanted))


def asked_before(spec: JobSpec, number: int) -> int:
    """Count the clients asked in the rounds before this one, one by one, if all went well.

    A synchronous round asks a cohort; an asynchronous one asks as many as the round before it took out of the buffer.
    """
    if number <= 1:
        return 0
    step = spec.target if isinstance(spec.strategy, FedBuff) else spec.cohort_size
    return spec.cohort_size + (number - 2) * step
