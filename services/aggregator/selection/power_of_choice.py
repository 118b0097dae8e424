"""The clients of the highest loss among a few that are drawn by their examples (Cho et al. 2020, π_rpow-d).

The loss is the last that a client reported; asking for a fresh one would cost a round trip to each candidate.
"""

from collections.abc import Sequence

import numpy as np

from services.aggregator.selection import lottery
from services.aggregator.selection.lottery import Vector
from services.aggregator.selection.policy import STRANGER, Policy, Request
from shared.job.catalog.selection import PowerOfChoice


class PowerOfChoicePolicy(Policy[PowerOfChoice]):
    """Draws d candidates in proportion to their examples and takes those of the highest loss.

    Of equal ones it takes the first drawn. A client that was never asked has an infinite loss, as in the paper, so that
    each is asked once. One that was asked and never delivered has the mean loss, or it would be asked for ever. The
    examples of either are taken to be average.
    """

    keeps_history = True

    def choose(self, settings: PowerOfChoice, request: Request, /) -> list[str]:
        candidates = tuple(request.candidates)
        known = [request.history.clients.get(client, STRANGER) for client in candidates]
        weights = _filled([client.examples or None for client in known])
        lots = lottery.lots(request.spec, candidates, request.number, request.attempt)
        drawn = lottery.weighted(weights, lots, settings.candidates or 2 * request.wanted)
        losses = np.where([client.asked > 0 for client in known], _filled([client.loss for client in known]), np.inf)
        highest = drawn[np.argsort(-losses[drawn], kind="stable")]
        return [candidates[place] for place in highest[: request.wanted]]


def _filled(values: Sequence[float | None]) -> Vector:
    """The values, and their mean where there is none; 1 where there is none at all."""
    found = np.array(values, np.float64)  # NaN where there is none
    missing = np.isnan(found)
    found[missing] = 1.0 if missing.all() else found[~missing].mean()
    return found
