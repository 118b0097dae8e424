"""Who counts as alive: the one rule, as a function of how often trainers report.

Pure.
"""


def lease(interval: float, patience: int) -> float:
    """Seconds for which one heartbeat keeps a trainer alive: `patience` intervals of silence end it."""
    return interval * patience
