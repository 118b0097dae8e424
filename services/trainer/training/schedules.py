"""The learning rate of a round."""

import math

from shared.job.catalog.training import Cosine, Exponential, ScheduleSpec, StepDecay


def rate(schedule: ScheduleSpec, lr: float, number: int, rounds: int) -> float:
    """The learning rate of round `number`, from 1, of `rounds`, where the optimizer's is `lr`.

    In the first `warmup` rounds it is lr · number / warmup; what the schedule does begins where that has reached lr
    (Goyal et al. 2017 for the warm-up, Loshchilov and Hutter 2016 for the cosine). It is never above lr, and after the
    warm-up never below the schedule's floor, unless lr itself is.
    """
    if number < schedule.warmup:
        return lr * number / schedule.warmup
    whole = max(1, schedule.warmup)
    elapsed = max(0, number - whole)
    match schedule:
        case StepDecay(every=every, gamma=gamma, floor=floor):
            return max(lr * gamma ** (elapsed // every), min(lr, floor))
        case Exponential(gamma=gamma, floor=floor):
            return max(lr * gamma**elapsed, min(lr, floor))
        case Cosine(floor=floor):
            part = min(1.0, elapsed / max(1, rounds - whole))
            share = (1 + math.cos(math.pi * part)) / 2
            return share * lr + (1 - share) * min(lr, floor)
    return lr
