"""The user's own local step, in place of the built-in training, and its surroundings.

They are the same for every client, and are put back after the step.
"""

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from services.trainer.training.loop import shuffle_seed
from shared.errors import BadInput, Stale
from shared.job import user_code
from shared.job.catalog.training import CustomTrain

METRICS = 64  #: most metrics that a client may report: they travel in an event
NAME = 64  #: most characters of a metric's name: it heads columns of tables, files and charts


def step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    spec: CustomTrain,
    *,
    seed: int,
    client: str,
    number: int,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The user's own local step, `step(model, x, y, *, client, round, seed, **args) -> dict[str, float]`.

    It trains `model` in place and returns its metrics. If its signature names `stopped`, it gets a function that
    says whether the round is over, to be asked now and then. What it draws from torch's, numpy's and Python's global
    generators is the same wherever the client is trained in that round.
    """
    function = user_code.find(spec.name, "train")
    given: dict[str, Any] = {"client": client, "round": number, "seed": seed}
    if user_code.takes(function, "stopped"):
        given["stopped"] = stopped
    model.train()
    with kept_environment(model, shuffle_seed(seed, client, number, 0)):
        metrics = function(model, x, y, **given, **spec.args)
    if stopped():
        raise Stale(f"round {number} is over")
    if not isinstance(metrics, Mapping):
        raise BadInput(f"train.name: {spec.name} gave a {type(metrics).__name__}; it gives its metrics as a dict")
    try:
        found = {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise BadInput(f"train.name: {spec.name} gave a metric that is no number: {error}") from error
    if len(found) > METRICS:
        raise BadInput(f"train.name: {spec.name} gave {len(found)} metrics; at most {METRICS} are reported")
    for name in found:
        if not (0 < len(name) <= NAME and name.isprintable() and name == name.strip()):
            raise BadInput(
                f"train.name: {spec.name} gave a metric named {name[: NAME + 1]!a}; "
                f"a name has 1 to {NAME} characters that can be printed, and no blank at an end"
            )
    return found


Switch = tuple[Callable[[], Any], Callable[[Any], Any]]  # functions that read and set one setting of the process


def _autocast(device: str) -> Switch:
    return (lambda: torch.is_autocast_enabled(device), lambda on: torch.set_autocast_enabled(device, on))


def _go_back(directory: str | None) -> None:
    if directory is not None:
        os.chdir(directory)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _set_environment(values: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()
    for one in reversed(filters):
        warnings.filters.insert(0, one)  # type: ignore[attr-defined]  # typeshed knows it as a sequence


_SWITCHES: tuple[Switch, ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _autocast("cpu"),
    _autocast("cuda"),
    (np.geterr, lambda errors: np.seterr(**errors)),
    (_directory, _go_back),
    (lambda: dict(os.environ), _set_environment),
    (lambda: list(sys.path), lambda path: sys.path.__setitem__(slice(None), path)),
    (lambda: list(warnings.filters), _set_filters),
)


def seed_all(seed: int) -> None:
    """Seeds the global generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def kept_environment(model: nn.Module, seed: int) -> Iterator[None]:
    """Seeds torch, numpy and Python; puts back the settings of the process and of the model that the block changes.

    What the user's modules set when they are imported stays: it holds for their whole job, and ends with its process.
    """
    seed_all(seed)
    process = os.getpid()
    before = [read() for read, _ in _SWITCHES]
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        if os.getpid() != process:  # a fork of the user's step returned here, and would answer a second time
            os._exit(os.EX_SOFTWARE)
        for (read, write), value in zip(_SWITCHES, before, strict=True):
            if read() != value:
                write(value)
        for name, parameter in model.named_parameters():
            if name in trained and parameter.requires_grad != trained[name]:
                parameter.requires_grad_(trained[name])
