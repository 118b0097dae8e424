"""Outcome of a job by its evaluations: it stops early, finishes, or fails because its figures are not finite.

Pure.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from shared.job.catalog.rounds import StopSpec
from shared.record.rounds import Unsound

NAMED = 4  #: figures or clients in a sentence


def early_stop(stop: StopSpec, values: Sequence[float]) -> str:
    """Returns the reason why a job with these `values`, the oldest first, needs no further round; empty if it does.

    A value that is not finite reaches no target and is no improvement; any finite one improves on it.
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
    goal = f"better than {sign * best:.4g}" if math.isfinite(best) else "a finite number"
    return f"{stop.metric} has not been {goal} for {since} evaluations (evaluate.stop.patience)"


def after(
    before: Unsound, number: int, metrics: Mapping[str, float], clients: Mapping[str, Mapping[str, float]]
) -> Unsound:
    """Returns the figures that are not finite in the evaluation of round `number`, which follows that of `before`."""
    since = {name: before.since.get(name, number) for name in sorted(metrics) if not is_finite(metrics[name])}
    at = tuple(client for client, own in sorted(clients.items()) if not all(map(is_finite, own.values())))
    return Unsound(since=since, clients=at)


def ending(unsound: Unsound, metrics: Mapping[str, float | None]) -> tuple[Literal["finished", "failed"], str]:
    """Returns the outcome of a job that has finished its rounds, and a sentence on its last figures, `metrics`.

    The job has failed if its model's loss is not finite on the test set, or on the clients if there is no test set.
    """
    loss = "loss" if "loss" in metrics else "local_loss"
    if loss in unsound.since:
        at = f", at {_some(unsound.clients)}" if loss == "local_loss" and unsound.clients else ""
        return "failed", f"the model's {loss} is not a finite number since the evaluation of round " + (
            f"{unsound.since[loss]}{at}; the models of earlier rounds are in the record"
        )
    wrong = [name for name in sorted(metrics) if not is_finite(metrics[name])]
    if not wrong:
        return "finished", ""
    return "finished", f"not a finite number at the end: {_some(wrong)}"


def is_finite(value: float | None) -> bool:
    """Returns True for a finite number; a record has null for any other number."""
    return value is not None and math.isfinite(value)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
