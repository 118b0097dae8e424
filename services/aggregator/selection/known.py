"""What is known of one client."""

from typing import NamedTuple


class Known(NamedTuple):
    """What a client's rounds have told of it; rounds count from 1, and 0 is never."""

    asked: int = 0  # times
    accepted: int = 0  # times that an update of it counted
    last_asked: int = 0  # round
    last_accepted: int = 0  # round
    examples: int = 0  # that it last trained on
    loss: float | None = None  # the last that it reported
    accuracy: float | None = None  # the last that it reported, or that was measured on its held-out examples
    seconds: float | None = None  # that its last update took


STRANGER = Known()  #: who was never asked
