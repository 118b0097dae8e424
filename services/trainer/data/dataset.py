"""The seam between training and data: whatever has these four members can be trained on."""

from collections import OrderedDict
from typing import Any, Protocol

import torch
from torch import Tensor

from services.trainer.data.digits import Digits
from shared import user_code
from shared.catalog.choice import Custom
from shared.catalog.data import Digits as DigitsSpec
from shared.errors import BadInput
from shared.jobs import JobSpec

Examples = tuple[Tensor, Tensor]

KEPT = 4  #: data sets that a process keeps loaded


class Dataset(Protocol):
    """Data that clients own. `x` is float32 (n, *shape), `y` is int64 (n,); arrays or tensors."""

    shape: tuple[int, ...]  # of one example, such as (channels, height, width)
    classes: int

    def client(self, name: str, index: int) -> tuple[Any, Any]:
        """The examples (x, y) of one client; `index` is its place among the job's clients."""

    def test(self) -> tuple[Any, Any] | None:
        """The held-out test set (x, y), or None where there is none."""


_loaded: OrderedDict[str, Dataset] = OrderedDict()


def load(spec: JobSpec) -> Dataset:
    """The data set of a job, kept loaded for its next rounds; `BadInput` where the user's own lacks a member."""
    key = f"{spec.seed} {spec.data.model_dump_json()}"
    dataset = _loaded.pop(key, None)
    if dataset is None:
        dataset = _make(spec)
        while len(_loaded) >= KEPT:
            _loaded.popitem(last=False)
    _loaded[key] = dataset
    return dataset


def index_of(spec: JobSpec, client: str) -> int:
    """A client's place among the job's clients, or `BadInput`."""
    if spec.silos is not None:
        if client in spec.silos:
            return spec.silos.index(client)
    else:
        _, _, digits = client.rpartition("-")
        if digits.isdecimal() and int(digits) < spec.population:
            return int(digits)
    raise BadInput(f"{client} is none of the job's {spec.population} clients")


def of_client(dataset: Dataset, name: str, index: int) -> Examples:
    """One client's examples, checked: x (n, *shape) float32, y (n,) int64."""
    x, y = _checked(dataset, dataset.client(name, index), f"client({name!r}, {index})")
    if not len(y):
        raise BadInput(f"the data has no examples for {name}")
    return x, y


def of_test(dataset: Dataset) -> Examples | None:
    """The held-out examples, checked, or None where there are none."""
    found = dataset.test()
    if found is None:
        return None
    x, y = _checked(dataset, found, "test()")
    return (x, y) if len(y) else None


def _make(spec: JobSpec) -> Dataset:
    if isinstance(spec.data, DigitsSpec):
        return Digits(spec.data, spec.seed)
    assert isinstance(spec.data, Custom)  # noqa: S101 - for the type checker
    function = user_code.find(spec.data.name, "data")
    dataset = user_code.call(function, spec.data.args, {"seed": spec.seed, "clients": spec.data.clients})
    missing = [name for name in ("client", "test") if not callable(getattr(dataset, name, None))]
    missing += [name for name in ("shape", "classes") if not hasattr(dataset, name)]
    if missing:
        raise BadInput(
            f"data.name: {spec.data.name} gave a {type(dataset).__name__} without {', '.join(missing)}; "
            "a data set has client(name, index), test(), shape and classes"
        )
    return dataset  # type: ignore[no-any-return]


def _checked(dataset: Dataset, found: Any, source: str) -> Examples:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise BadInput(f"data: {source} gave a {type(found).__name__}; it gives a pair (x, y)")
    try:
        x = torch.as_tensor(found[0]).to(torch.float32)
        y = torch.as_tensor(found[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"data: {source} gave what is no array of numbers: {error}") from error
    shape = tuple(dataset.shape)
    if x.ndim == 0 or tuple(x.shape[1:]) != shape:
        raise BadInput(f"data: {source} gave x of shape {list(x.shape)}; its shape says (n, {str(list(shape))[1:-1]})")
    if y.is_floating_point() or y.ndim != 1 or len(y) != len(x):
        raise BadInput(
            f"data: {source} gave y of shape {list(y.shape)} and {y.dtype}; it is one integer for each of {len(x)}"
        )
    y = y.to(torch.int64)
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < dataset.classes:
        raise BadInput(
            f"data: {source} has labels from {int(y.min())} to {int(y.max())}; there are {dataset.classes} classes"
        )
    return x, y
