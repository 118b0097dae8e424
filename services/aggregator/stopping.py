"""When a model is good enough, or gets no better: the end of a job before its last round.

Pure.
"""

import math
from collections.abc import Sequence

from shared.job.catalog.rounds import StopSpec


def verdict(stop: StopSpec, values: Sequence[float]) -> str:
    """Why a job whose evaluations gave `values`, the oldest first, needs no further round; empty where it does.

    What is not finite reaches no target and is no improvement, and any number is one on it.
    """
    if not values:
        return ""
    sign = 1.0 if stop.mode == "max" else -1.0
    if stop.target is not None and math.isfinite(values[-1]) and sign * values[-1] >= sign * stop.target:
        return f"{stop.metric} is {values[-1]:.4g}: evaluate.stop.target, {stop.target:g}, is reached"
    if stop.patience is None:
        return ""
    best, since = -math.inf, 0
    for value in values:
        if math.isfinite(value) and (best == -math.inf or sign * value > best + stop.min_delta):
            best, since = sign * value, 0
        else:
            since += 1
    if since < stop.patience:
        return ""
    told = f"better than {sign * best:.4g}" if math.isfinite(best) else "a finite number"
    return f"{stop.metric} has not been {told} for {since} evaluations (evaluate.stop.patience)"
