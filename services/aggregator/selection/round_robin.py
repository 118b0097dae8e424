"""One client after the other, in the job's order, each as often as any other."""

from collections.abc import Collection
from itertools import islice

from shared.job.catalog.strategies import FedBuff
from shared.job.job_spec import JobSpec


def choose(spec: JobSpec, candidates: Collection[str], number: int, attempt: int, wanted: int) -> list[str]:
    """Those whose turn it is; who cannot be asked is passed over, and has its next turn a cycle later.

    A further attempt at a round goes on with the next, since the first did not do.
    """
    clients = spec.clients
    start = asked_before(spec, number) + (attempt - 1) * spec.cohort_size
    turns = (clients[(start + place) % len(clients)] for place in range(len(clients)))
    return list(islice((client for client in turns if client in candidates), wanted))


def asked_before(spec: JobSpec, number: int) -> int:
    """How many clients were asked in the rounds before this one, one by one, where all went well.

    A synchronous round asks a cohort; an asynchronous one asks as many as the round before it took out of the buffer.
    """
    if number <= 1:
        return 0
    step = spec.target if isinstance(spec.strategy, FedBuff) else spec.cohort_size
    return spec.cohort_size + (number - 2) * step
