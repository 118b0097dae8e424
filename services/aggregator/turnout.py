"""Who was asked in a job's rounds and never heard, and how many updates were refused.

Pure. Each round is told once, in any order. It keeps the names of all who were ever asked.
"""

from collections.abc import Iterable, Mapping

from services.aggregator.entries import COULD_NOT
from shared.events import NAMED, Missing


class Turnout:
    """What came of asking clients, over the rounds that were told of; the initial model is nobody's part."""

    def __init__(self) -> None:
        self._rounds: set[tuple[int, int]] = set()  # and attempts that were abandoned; 0: that which was committed
        self._heard: set[str] = set()
        self._unheard: set[str] = set()
        self._refused = self._failed = 0

    def knows(self, number: int) -> bool:
        """Whether a committed round was told of."""
        return (number, 0) in self._rounds

    def tell(
        self,
        number: int,
        cohort: Iterable[str],
        accepted: Iterable[str],
        rejected: Mapping[str, str],
        *,
        abandoned: int = 0,
    ) -> None:
        """Takes in a round, or an `abandoned` attempt: who was asked, who was accepted, and why others were not."""
        if number == 0 or (number, abandoned) in self._rounds:
            return
        self._rounds.add((number, abandoned))
        self._heard.update(accepted)
        self._unheard.update(cohort)
        self._unheard -= self._heard
        failed = sum(reason.startswith(COULD_NOT) for reason in rejected.values())
        self._failed += failed
        self._refused += len(rejected) - failed

    def missing(self) -> Missing:
        """What is to be said of it at the job's end."""
        return Missing(
            clients=len(self._unheard),
            first=tuple(sorted(self._unheard)[:NAMED]),
            refused=self._refused,
            failed=self._failed,
        )
