"""Power of choice: takes the highest losses among a few clients drawn by their examples (Cho et al. 2020, π_rpow-d).

The loss is the last that a client reported; to ask for a fresh one would cost a round trip to each candidate.
"""

from collections.abc import Sequence

import numpy as np

from services.aggregator.selection import lottery
from services.aggregator.selection.lottery import Vector
from services.aggregator.selection.policy import STRANGER, Request, SelectionPolicy
from shared.job.catalog.selection import PowerOfChoice


class PowerOfChoicePolicy(SelectionPolicy[PowerOfChoice]):
    """Draws d candidates in proportion to their examples and takes those of the highest loss.

    Among equal losses it takes the client drawn first. A client that was never asked has an infinite loss, as in the
    paper, so that each is asked once. A client that was asked and never delivered has the mean loss; with an infinite
    one it would be asked forever. Both kinds of client count with the mean number of examples.
    """

    keeps_history = True

    def choose(self, settings: PowerOfChoice, request: Request, /) -> list[str]:
        candidates = tuple(request.candidates)
        stats = [request.history.clients.get(client, STRANGER) for client in candidates]
        weights = _filled([client.examples or None for client in stats])
        lots = lottery.lots(request.spec, candidates, request.number, request.attempt)
        drawn = lottery.weighted(weights, lots, settings.candidates or 2 * request.wanted)
        losses = np.where([client.asked > 0 for client in stats], _filled([client.loss for client in stats]), np.inf)
        highest = drawn[np.argsort(-losses[drawn], kind="stable")]
        return [candidates[place] for place in highest[: request.wanted]]


def _filled(values: Sequence[float | None]) -> Vector:
    """Returns the values with each missing one replaced by their mean, or by 1 if all are missing."""
    filled = np.array(values, np.float64)  # numpy reads None as NaN
    missing = np.isnan(filled)
    filled[missing] = 1.0 if missing.all() else filled[~missing].mean()
    return filled
