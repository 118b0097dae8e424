"""Surroundings of a user's local step: the same for every client, and put back after it."""

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

Switch = tuple[Callable[[], Any], Callable[[Any], Any]]  # how a setting of the process is read, and how it is set


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
def kept(model: nn.Module, seed: int) -> Iterator[None]:
    """Seeds torch, numpy and Python, and puts back what the block changes of the process and of what is trained.

    What the user's modules set when they are imported stays: it holds for their whole job, and ends with its process.
    """
    seed_all(seed)
    process = os.getpid()
    before = [read() for read, _ in _SWITCHES]
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        if os.getpid() != process:  # a fork that was let return, or raise: it would answer a second time
            os._exit(os.EX_SOFTWARE)
        for (read, write), value in zip(_SWITCHES, before, strict=True):
            if read() != value:
                write(value)
        for name, parameter in model.named_parameters():
            if name in trained and parameter.requires_grad != trained[name]:
                parameter.requires_grad_(trained[name])
