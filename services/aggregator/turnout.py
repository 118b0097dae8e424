"""Turnout of a job: the clients that were asked and never delivered, and the number of updates refused.

Pure. It takes one byte for each of the job's clients, for any number of rounds.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from services.aggregator.accepted_updates import COULD_NOT
from shared.events import NAMED, Missing

ASKED, HEARD = 1, 2  #: values of a client's byte: asked only, or an update accepted; 0: never asked


class Turnout:
    """Counts of clients asked and clients accepted, over the rounds passed to `tell`; round 0 does not count.

    If `everybody` is wanted in each round, a client that was away, and so was not asked, counts as asked.
    """

    def __init__(self, clients: Sequence[str], *, everybody: bool = False) -> None:
        self._clients = clients
        self._everybody = everybody
        self._marks = bytearray(len(clients))
        self._rounds: set[tuple[int, int]] = set()  # (round, abandoned attempt), or (round, 0) if it was committed
        self._refused = self._failed = 0

    def knows(self, number: int) -> bool:
        """Returns True if a committed round was counted already."""
        return (number, 0) in self._rounds

    def tell(
        self,
        number: int,
        cohort: Iterable[str],
        accepted: Container[str],
        rejected: Mapping[str, str],
        *,
        abandoned: int = 0,
    ) -> None:
        """Counts a round, or an `abandoned` attempt, once; `rejected` has the reason of each rejected client."""
        if number == 0 or (number, abandoned) in self._rounds:
            return
        self._rounds.add((number, abandoned))
        for client in self._clients if self._everybody else cohort:
            self._mark(client, HEARD if client in accepted else ASKED)
        failed = sum(reason.startswith(COULD_NOT) for reason in rejected.values())
        self._failed += failed
        self._refused += len(rejected) - failed

    @property
    def complete(self) -> bool:
        """True if an update of each of the job's clients was accepted in some round."""
        return self._marks.count(HEARD) == len(self._marks)

    def missing(self) -> Missing:
        """Returns the summary for the job's final event."""
        return Missing(
            clients=self._marks.count(ASKED),
            first=tuple(islice(self._unheard(), NAMED)),
            refused=self._refused,
            failed=self._failed,
        )

    def _mark(self, client: str, mark: int) -> None:
        try:
            place = self._clients.index(client)
        except ValueError:
            return  # a record is external input, and may name clients that are not in the job
        self._marks[place] = max(self._marks[place], mark)

    def _unheard(self) -> Iterator[str]:
        """Yields the clients that were asked and never accepted, in the job's order."""
        place = self._marks.find(ASKED)
        while place >= 0:
            yield self._clients[place]
            place = self._marks.find(ASKED, place + 1)
