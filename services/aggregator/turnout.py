"""Turnout of a job: clients that were asked and never heard, and how many updates were refused.

Pure. A byte for each of the job's clients, whatever the number of rounds.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from services.aggregator.accepted_updates import COULD_NOT
from shared.events import NAMED, Missing

ASKED, HEARD = 1, 2  #: what a client's byte says; 0 of one that nobody asked


class Turnout:
    """Counts of who was asked and heard, over the rounds that were told of; the initial model is nobody's part.

    Where `everybody` is wanted in each round, a client that was away and therefore not asked counts as asked.
    """

    def __init__(self, clients: Sequence[str], *, everybody: bool = False) -> None:
        self._clients = clients
        self._everybody = everybody
        self._marks = bytearray(len(clients))
        self._rounds: set[tuple[int, int]] = set()  # and attempts that were abandoned; 0: that which was committed
        self._refused = self._failed = 0

    def knows(self, number: int) -> bool:
        """True where a committed round was told of."""
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
        """Takes in a round, or an `abandoned` attempt: who was asked, who was accepted, and why others were not."""
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
        """True where each of the job's clients was heard in some round."""
        return self._marks.count(HEARD) == len(self._marks)

    def missing(self) -> Missing:
        """The summary for the job's end."""
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
            return  # a record may name others
        self._marks[place] = max(self._marks[place], mark)

    def _unheard(self) -> Iterator[str]:
        """In the job's order."""
        place = self._marks.find(ASKED)
        while place >= 0:
            yield self._clients[place]
            place = self._marks.find(ASKED, place + 1)
