"""The seam between training and data: whatever has these four members can be trained on."""

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
import structlog
import torch
from torch import Tensor

from services.trainer.data import arrays, digits, images, leaf, pictures, tables
from services.trainer.data.sharing import SharedOut
from services.trainer.data.source import Source
from shared import settings, user_code
from shared.catalog.choice import Custom
from shared.catalog.data import Csv, Digits, Downloaded, Femnist, Images, Natural, Npz, Shakespeare, Shared
from shared.errors import BadInput
from shared.jobs import JobSpec

Examples = tuple[Tensor, Tensor]

log = structlog.get_logger()

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
_sources: WeakValueDictionary[str, Source] = WeakValueDictionary()  # of those loaded, whatever split they are in


def load(spec: JobSpec) -> Dataset:
    """The data set of a job, kept loaded for its next rounds; `BadInput` where it is not there, or lacks a member."""
    key = f"{spec.seed} {spec.population} {spec.data.model_dump_json()}"
    dataset = _loaded.pop(key, None)
    if dataset is None:
        dataset = _shared_out(spec, spec.data) if isinstance(spec.data, Shared) else _own(spec)
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
        _, _, number = client.rpartition("-")
        if number.isdecimal() and int(number) < spec.population:
            return int(number)
    raise BadInput(f"{client} is none of the job's {spec.population} clients")


def of_client(dataset: Dataset, spec: JobSpec, client: str) -> Examples:
    """The examples that a client trains on, without those it holds out: x (n, *shape) float32, y (n,) int64.

    `BadInput` where the client has none, or the user's own data gave something else.
    """
    x, y = _of_client(dataset, spec, client)
    if not spec.data.local_test:
        return x, y
    kept, held = _parted(spec, client, len(y))
    return (x[kept], y[kept]) if len(held) else (x, y)


def held_by(dataset: Dataset, spec: JobSpec, client: str) -> Examples | None:
    """The examples that a client holds out for evaluation (`data.local_test` of its own), or None where it has none.

    At least one is held out and one is left, so that a client of one example holds out nothing.
    """
    if not spec.data.local_test:
        return None
    x, y = _of_client(dataset, spec, client)
    _, held = _parted(spec, client, len(y))
    return (x[held], y[held]) if len(held) else None


def of_test(dataset: Dataset) -> Examples | None:
    """The held-out examples, checked, or None where there are none."""
    found = dataset.test()
    if found is None:
        return None
    x, y = _checked(dataset, found, "test()")
    return (x, y) if len(y) else None


def _of_client(dataset: Dataset, spec: JobSpec, client: str) -> Examples:
    index = index_of(spec, client)
    x, y = _checked(dataset, dataset.client(client, index), f"client({client!r}, {index})")
    if not len(y):
        raise BadInput(f"the data has no examples for {client}")
    return x, y


def _parted(spec: JobSpec, client: str, size: int) -> tuple[Tensor, Tensor]:
    """Which of a client's examples it trains on and which it holds out: the same in every round and process."""
    fraction = spec.data.local_test
    count = min(max(1, round(fraction * size)), size - 1)
    digest = hashlib.sha256(f"{spec.seed}/{client}/local_test".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(size)
    return torch.from_numpy(np.sort(order[count:])), torch.from_numpy(np.sort(order[:count]))


def _shared_out(spec: JobSpec, data: Shared) -> SharedOut:
    found = SharedOut(data, spec.population, spec.seed, _source(data), whole=spec.has_own_files)
    if unused := found.owners[spec.population :]:
        log.warning("owners left out", owners=len(found.owners), unused=len(unused), first=unused[0])
    return found


def _source(data: Shared) -> Source:
    """What a data set of the catalog holds: the same arrays for all jobs that share it out, each in its way."""
    base = settings.load(settings.Data).data_dir.expanduser()
    key = data.partition.key if isinstance(data, Csv | Npz) and isinstance(data.partition, Natural) else None
    how = {"clients", "partition", "local_test", "test_fraction", "fraction", "download"}  # it is used, not what it is
    identity = f"{base.absolute()} {key!r} {data.model_dump_json(exclude=how)}"
    source = _sources.get(identity)
    if source is None:
        source = _sources[identity] = _read(data, base, key)
    return source


def _read(data: Shared, base: Path, key: str | None) -> Source:
    match data:
        case Digits():
            source = digits.read()
        case Downloaded(name=name):  # type: ignore[misc] # each of them has one
            source = pictures.read(name, base / (data.folder or name), data.download)
        case Femnist():
            source = leaf.femnist(base / (data.folder or data.name))
        case Shakespeare():
            source = leaf.shakespeare(base / (data.folder or data.name))
        case Csv():
            source = tables.read(base / data.path, data, key)
        case Npz():
            source = arrays.read(base / data.path, data, key)
        case Images():
            source = images.read(base / data.path, data)
        case _:
            raise NotImplementedError(type(data).__name__)
    return source


def _own(spec: JobSpec) -> Dataset:
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
