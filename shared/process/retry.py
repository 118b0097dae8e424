"""Retry: pauses between tries at a server that is away, which double up to a limit, with jitter, up to a deadline.

The jitter keeps clients that failed together from coming back together (Brooker 2015, "Exponential Backoff and
Jitter"). The caller decides after which errors to try again, and how to wait out a pause, so that it can be woken.
"""

import math
import random
import time
from collections.abc import Callable


class Retry:
    """Tries of one piece of work, from the first to the deadline."""

    def __init__(
        self,
        first: float,
        most: float,
        *,
        patience: float = math.inf,
        least: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`first` and `most` are the longest first and the longest later pause, `patience` the time in all; seconds.

        A pause is drawn between its part `least` and the whole of it; `least` 0 is full jitter.
        """
        self._first, self._most, self._least = first, most, least
        self._clock = clock
        self._deadline = clock() + patience
        self._longest = first

    @property
    def is_over(self) -> bool:
        """True once the patience is used up."""
        return self._clock() >= self._deadline

    def ends_within(self, pause: float) -> bool:
        """True if the patience is used up when `pause` seconds are over."""
        return self._clock() + pause >= self._deadline

    def pause(self) -> float:
        """Draws the seconds to wait before the next try."""
        drawn = random.uniform(self._least * self._longest, self._longest)  # noqa: S311 - jitter needs no secret
        self._longest = min(2 * self._longest, self._most)
        return drawn

    def succeeded(self) -> None:
        """Begins again with short pauses, after a try that succeeded."""
        self._longest = self._first
