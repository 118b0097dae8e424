"""The seam between training and data: whatever has the four members of `Dataset` can be trained on.

The form of a client's examples is told once, with the initial model, and compared with ever after.
"""

import hashlib
from collections import OrderedDict, deque
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import numpy as np
import structlog
import torch
from torch import Tensor

from services.trainer.data import arrays, images, leaf, library, tables
from services.trainer.data.own import OwnData
from services.trainer.data.sharing import SharedOut
from services.trainer.data.source import Floats, Labels, StoredExamples, contents, inside, stamp
from shared.errors import BadInput
from shared.events import LISTED, Inputs
from shared.job import user_code
from shared.job.catalog.choice import Custom
from shared.job.catalog.data import Csv, Digits, Downloaded, Femnist, Images, Natural, Npz, Shakespeare, Shared
from shared.job.job_spec import JobSpec
from shared.process import settings

Examples = tuple[Tensor, Tensor]

log = structlog.get_logger()

KEPT = 4  #: data sets that stay loaded in a process
KNOWN = 64  #: latest jobs remembered for each loaded data set, so that each checks the files once
TRIES = 3  #: attempts to read files that change while they are read


class Dataset(Protocol):
    """Data that clients own. `x` is float32 (n, *shape), `y` is int64 (n,), and both are as they must be."""

    shape: tuple[int, ...]  # shape of one example, such as (channels, height, width)
    classes: int

    def client(self, name: str, index: int) -> tuple[Floats, Labels]:
        """The examples (x, y) of one client; `index` is its place among the job's clients."""

    def test(self) -> tuple[Floats, Labels] | None:
        """The held-out test set (x, y), or None if there is none."""


class _Kept(NamedTuple):
    dataset: Dataset
    jobs: deque[str]  # the jobs that use it already


_loaded: OrderedDict[str, _Kept] = OrderedDict()
# Shared by all splits of the same files that are loaded.
_sources: WeakValueDictionary[str, StoredExamples] = WeakValueDictionary()


def load(spec: JobSpec, job: str = "") -> Dataset:
    """The data set of a job, kept loaded for its next rounds; `BadInput` if it is not there, or lacks a member.

    For a new `job` its files are looked at, and read again if they changed. The user's own data cannot be looked into,
    and are made again.
    """
    key = f"{spec.seed} {spec.population} {spec.data.model_dump_json()}"
    kept = _loaded.pop(key, None)
    if kept is None or job not in kept.jobs:
        jobs: deque[str] = deque(maxlen=KNOWN) if kept is None else kept.jobs
        before = kept.dataset if kept is not None and isinstance(kept.dataset, SharedOut) else None
        kept = None  # drops the user's old data first: both would not fit into memory
        jobs.append(job)
        kept = _Kept(_made(spec, before), jobs)
    while len(_loaded) >= KEPT:
        _loaded.popitem(last=False)
    _loaded[key] = kept
    return kept.dataset


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

    `BadInput` if the client has none, or the user's own data gave what cannot be trained on.
    """
    x, y = _of_client(dataset, spec, client)
    if not spec.data.local_test:
        return x, y
    kept, held = _parted(spec, client, len(y))
    return (x[kept], y[kept]) if len(held) else (x, y)


def held_by(dataset: Dataset, spec: JobSpec, client: str) -> Examples | None:
    """The examples that a client holds out for evaluation (the share `data.local_test`), or None if it has none.

    At least one is held out and one is left, so that a client of one example holds out nothing.
    """
    if not spec.data.local_test:
        return None
    x, y = _of_client(dataset, spec, client)
    _, held = _parted(spec, client, len(y))
    return (x[held], y[held]) if len(held) else None


def of_test(dataset: Dataset) -> Examples | None:
    """The held-out examples, or None if there are none."""
    found = dataset.test()
    return None if found is None or not len(found[1]) else _tensors(found)


def _of_client(dataset: Dataset, spec: JobSpec, client: str) -> Examples:
    x, y = _tensors(dataset.client(client, index_of(spec, client)))
    if not len(y):
        raise BadInput(f"the data has no examples for {client}")
    return x, y


def _tensors(examples: tuple[Floats, Labels]) -> Examples:
    x, y = examples
    return torch.from_numpy(x), torch.from_numpy(y)


def _parted(spec: JobSpec, client: str, size: int) -> tuple[Tensor, Tensor]:
    """Which of a client's examples it trains on and which it holds out: the same in every round and process."""
    fraction = spec.data.local_test
    count = min(max(1, round(fraction * size)), size - 1)
    digest = hashlib.sha256(f"{spec.seed}/{client}/local_test".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(size)
    return torch.from_numpy(np.sort(order[count:])), torch.from_numpy(np.sort(order[:count]))


def _made(spec: JobSpec, before: SharedOut | None) -> Dataset:
    """The data set of a job: the one `before` if its files are as they were."""
    if not isinstance(spec.data, Shared):
        return _own(spec)
    source = read_source(spec.data)
    if len(source.names) < 2:
        raise BadInput(
            f"{place_of(spec.data)}: all examples are of one class, {source.names[0]}, and there is nothing to tell "
            "apart; is that the right column, array or folder?"
        )
    if before is not None and before.source is source:
        return before
    found = SharedOut(spec.data, spec.population, spec.seed, source, whole=spec.has_own_files)
    if unused := found.owners[spec.population :]:
        log.warning("owners left out", owners=len(found.owners), unused=len(unused), first=unused[0])
    return found


def read_source(data: Shared) -> StoredExamples:
    """The contents of a data set of the catalog: all jobs that share it out, each in its way, have the same arrays."""
    base, place = _base(), place_of(data)
    key = data.partition.key if isinstance(data, Csv | Npz) and isinstance(data.partition, Natural) else None
    # These say how the data are used, not what they are.
    how = {"clients", "partition", "local_test", "test_fraction", "fraction", "download"}
    identity = f"{place} {key!r} {data.model_dump_json(exclude=how)}"
    for _ in range(TRIES):
        before = stamp(place, base) if place is not None else ""
        source = _sources.get(f"{identity} {before}")
        if source is None:
            source = _read(data, place, key, base)
            if place is not None:
                folder = place if place.is_dir() else place.parent
                source = replace(source, digest=contents(source.files, folder))
        if place is None or stamp(place, base) == before:
            _sources[f"{identity} {before}"] = source
            return source
    raise BadInput(f"{place} changes while it is read; start the job again when it is complete")


def place_of(data: Shared) -> Path | None:
    """The file or folder of a data set, or None if it comes with a library."""
    if isinstance(data, Digits):
        return None
    if isinstance(data, Csv | Npz | Images):
        return inside(_base(), data.path, "data.path")
    return inside(_base(), data.folder or data.name, "data.folder")  # type: ignore[attr-defined] # all others have these


def _base() -> Path:
    return settings.load(settings.Data).data_dir.expanduser()


def _read(data: Shared, place: Path | None, key: str | None, base: Path) -> StoredExamples:
    if place is None:
        return library.read_digits()
    match data:
        case Downloaded(name=name):  # type: ignore[misc] # each of them has one
            source = library.read_torchvision(name, place, data.download)
        case Femnist():
            source = leaf.femnist(place)
        case Shakespeare():
            source = leaf.shakespeare(place)
        case Csv():
            source = tables.read(place, data, key)
        case Npz():
            source = arrays.read(place, data, key)
        case Images():
            source = images.read(place, data, base)
        case _:
            raise NotImplementedError(type(data).__name__)
    return source


def _own(spec: JobSpec) -> Dataset:
    assert isinstance(spec.data, Custom)  # noqa: S101 - for the type checker
    function = user_code.find(spec.data.name, "data")
    try:
        made = user_code.call(function, spec.data.args, {"seed": spec.seed, "clients": spec.data.clients})
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"data.name: {spec.data.name} failed: {type(error).__name__}: {error}") from error
    return OwnData(made, spec.data.name)


MOST = 16 * 1024  #: bytes of labels that are listed
LONGEST = 200  #: characters of one of them
SHOWN = 60  #: characters of a value in a sentence
NAMES = {"digest": "files of digest"}  #: the words for a field in a sentence


def inputs_of(data: Dataset) -> Inputs:
    """The form of the data. Only shape and classes are known of the user's own data."""
    about: dict[str, Any] = {"shape": tuple(data.shape), "classes": data.classes}
    if not isinstance(data, SharedOut):
        return Inputs(**about)
    prepared, labels = data.source.prepare, data.names
    is_short = sum(len(label.encode()) for label in labels) <= MOST and max(map(len, labels)) <= LONGEST
    return Inputs(
        **about,
        labels=_listed(labels) if is_short else None,
        offset=_listed(prepared.offset),
        scale=_listed(prepared.scale),
        digest=data.source.digest if data.is_common else None,
    )


def refuse_others(data: Dataset, first: Inputs, trainer: str) -> None:
    """`BadInput` that says in what a trainer's data differ from those that the job's initial model was made for."""
    own = inputs_of(data)
    found = [
        f"{NAMES.get(name, name)} {_shown(mine)} in place of {_shown(theirs)}"
        # The digest first: other files explain all other differences.
        for name in sorted(Inputs.model_fields, key=lambda name: name != "digest")
        if (mine := getattr(own, name)) != (theirs := getattr(first, name))
    ]
    if found:
        common = isinstance(data, SharedOut) and data.is_common
        remedy = "; give all trainers the same data, then start the job again" if common else ""
        raise BadInput(
            f"the data of trainer {trainer} are not like those that the job began with: {'; '.join(found)}{remedy}"
        )


def _listed(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    return None if values is None or len(values) > LISTED else values


def _shown(value: Any) -> str:
    text = "none" if value is None else str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
