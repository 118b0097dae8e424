"""The steps of torch's optimizers, by torch's own functions for them, and the learning rate of a round.

The classes would load torch's compiler, which nothing uses here: 150 MB and more than a second, in every slot.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from shared.job.catalog.training import Adam, AdamW, Cosine, Exponential, OptimizerSpec, ScheduleSpec, Sgd, StepDecay

Gradients = Sequence[Tensor | None]  #: the gradient of each parameter; None if the loss does not reach it


class Optimizer(Protocol):
    """Changes the parameters that it was made for; one is made for each client and round, without memory of others."""

    def step(self, gradients: Gradients) -> None:
        """Takes one step in place, and leaves alone what has no gradient. Called without autograd."""


def optimizer_of(spec: OptimizerSpec, lr: float, parameters: Sequence[Tensor]) -> Optimizer:
    """The optimizer that a job names, at the learning rate of the round."""
    return _Sgd(spec, lr, parameters) if isinstance(spec, Sgd) else _Adam(spec, lr, parameters)


class _Sgd:
    def __init__(self, spec: Sgd, lr: float, parameters: Sequence[Tensor]) -> None:
        self._spec, self._lr, self._parameters = spec, lr, parameters
        self._momenta: list[Tensor | None] = [None] * len(parameters)
        self._foreach = _foreach(parameters)

    def step(self, gradients: Gradients) -> None:
        used = _used(gradients)
        momenta = [self._momenta[place] for place in used]
        sgd(
            [self._parameters[place] for place in used],
            [gradient for gradient in gradients if gradient is not None],
            momenta,
            foreach=self._foreach,
            lr=self._lr,
            momentum=self._spec.momentum,
            weight_decay=self._spec.weight_decay,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        for place, momentum in zip(used, momenta, strict=True):
            self._momenta[place] = momentum


class _Adam:
    def __init__(self, spec: Adam | AdamW, lr: float, parameters: Sequence[Tensor]) -> None:
        self._spec, self._lr, self._parameters = spec, lr, parameters
        self._function = adamw if isinstance(spec, AdamW) else adam
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        # The counts stay in main memory even if the parameters do not: torch reads them at every step.
        self._counts = [torch.zeros(()) for _ in parameters]
        self._foreach = _foreach(parameters)

    def step(self, gradients: Gradients) -> None:
        used = _used(gradients)
        self._function(
            [self._parameters[place] for place in used],
            [gradient for gradient in gradients if gradient is not None],
            [self._means[place] for place in used],
            [self._squares[place] for place in used],
            [],
            [self._counts[place] for place in used],
            foreach=self._foreach,
            amsgrad=False,
            beta1=self._spec.beta_1,
            beta2=self._spec.beta_2,
            lr=self._lr,
            weight_decay=self._spec.weight_decay,
            eps=self._spec.eps,
            maximize=False,
        )


def _used(gradients: Gradients) -> list[int]:
    return [place for place, gradient in enumerate(gradients) if gradient is not None]


def _foreach(parameters: Sequence[Tensor]) -> bool | None:
    """False in main memory, where torch takes parameters one by one, and would find that out again at every step."""
    return False if all(parameter.device.type == "cpu" for parameter in parameters) else None


def rate(schedule: ScheduleSpec, lr: float, number: int, rounds: int) -> float:
    """The learning rate of round `number`, from 1, of `rounds`, where the optimizer's is `lr`.

    In the first `warmup` rounds it is lr · number / warmup; the schedule's own change begins once that has reached lr
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
