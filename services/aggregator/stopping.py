"""When a model is good enough, or gets no better: the end of a job before its last round.

Pure.
"""

from collections.abc import Sequence

from shared.catalog.rounds import StopSpec


def verdict(stop: StopSpec, values: Sequence[float]) -> str:
    """Why a job whose evaluations gave `values`, the oldest first, needs no further round; empty where it does."""
    if not values:
        return ""
    sign = 1.0 if stop.mode == "max" else -1.0
    if stop.target is not None and sign * values[-1] >= sign * stop.target:
        return f"{stop.metric} is {values[-1]:.4g}: evaluate.stop.target, {stop.target:g}, is reached"
    if stop.patience is None:
        return ""
    best, since = sign * values[0], 0
    for value in values[1:]:
        if sign * value > best + stop.min_delta:
            best, since = sign * value, 0
        else:
            since += 1
    if since < stop.patience:
        return ""
    return f"{stop.metric} has not been better than {sign * best:.4g} for {since} evaluations (evaluate.stop.patience)"
