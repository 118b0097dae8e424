"""Context of a slot: the servers, the node's cache, the device, and the model of the job that it last worked for."""

import functools
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from weakref import ref

import structlog
import torch

from services.trainer.data.dataset import Dataset, refuse_others
from services.trainer.models import catalog, start
from services.trainer.models.flat import FlatModel
from services.trainer.signals import Signals
from services.trainer.slot.client_state import ClientState, Keeper
from services.trainer.slot.model_cache import Cache, Shortcut
from services.trainer.train_task import HandedBack, TrainTask
from shared import names
from shared.aggregation import weights
from shared.aggregation.compression.encoding import rebuild
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.weights import File, Layout, check_model_size
from shared.errors import Refused, Stale, Unavailable
from shared.events import BlobRef, Inputs, StateRef
from shared.job import user_code
from shared.job.catalog.compression import EncodingSpec
from shared.job.job_spec import JobSpec
from shared.process.retry import Retry
from shared.s3.json_records import reading
from shared.s3.store import Blobs, NotFound

log = structlog.get_logger()

Result = TypeVar("Result")

PATIENCE = 30.0  #: seconds a server may be away before the task goes back to its queue


class SlotContext:
    """The things that a slot keeps from one task to the next, its warm model among them."""

    def __init__(
        self, trainer: str, signals: Signals, blobs: Blobs, cache: Cache, keeper: Keeper, device: torch.device
    ) -> None:
        self.trainer, self.signals, self.blobs, self.cache, self.keeper = trainer, signals, blobs, cache, keeper
        self.device = device
        self._warm: tuple[str, FlatModel] | None = None
        self._manifest: tuple[str, dict[str, Any]] = ("", {})  # a job, and the manifest of its round 0
        # A job, and data that were found to be like its first.
        self._compared: tuple[str, Callable[[], Dataset | None]] = ("", lambda: None)

    def model(self, job: str, spec: JobSpec, data: Dataset) -> FlatModel:
        """The warm model of a job; its tensors hold whatever the last client left in them.

        `BadInput` if the data are not like those that the job began with.
        """
        self._compare(job, data)
        key = " ".join(
            (
                spec.model.model_dump_json(),
                spec.train.model_dump_json(include={"buffers", "personal"}),
                f"{list(data.shape)} {data.classes} {spec.seed}",
                job if spec.model.start else "",
            )
        )
        if self._warm is None or self._warm[0] != key:
            self._warm = None  # frees the old model's memory first
            self._warm = (key, self.fresh_model(job, spec, data))
        return self._warm[1]

    def fresh_model(self, job: str, spec: JobSpec, data: Dataset) -> FlatModel:
        """The model that a job begins with: seeded, or with the tensors that the job was given."""
        shape = tuple(data.shape)
        check_model_size(catalog.size(spec.model, shape, data.classes), spec.limits)
        model = catalog.build(spec.model, shape, data.classes, spec.seed)
        if spec.model.start is not None:
            with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
                file.write(self.patiently(lambda: self._given(job)).data)
                file.flush()
                start.begin_with(model, Path(file.name))
        with user_code.running():
            return FlatModel(model, spec.train, self.device)

    def forget_model(self) -> None:
        """Drops the warm model after the user's code failed, as it may have left anything behind in it."""
        self._warm = None

    def base(self, task: TrainTask, ref: BlobRef) -> File:
        """The model that a task begins with, from the node's cache; made of the one before if that is shorter."""
        how = task.spec.compress.model
        if task.delta is None or task.previous is None or how is None:
            return self.cache.get(ref)
        return self.cache.get(ref, Shortcut(task.previous, task.delta, functools.partial(_rebuilt, how)))

    def state(
        self, job: str, spec: JobSpec, client: str, ref: StateRef | None, model: Layout, task: TrainTask | None = None
    ) -> ClientState:
        """The state that a client keeps of the rounds before."""
        if ref is None or not spec.is_stateful:
            return ClientState()
        file = self.patiently(lambda: self.keeper.load(job, client, ref), task)
        return ClientState() if file is None else ClientState.unpack(file, model)

    def began(self, task: TrainTask) -> float:
        """The time of the job's first round, in seconds since the epoch. The clocks are taken for equal."""
        with reading(names.manifest_blob(task.job, 0)):
            return float(self._first(task.job, task)["opened"])

    def _first(self, job: str, task: TrainTask | None = None) -> dict[str, Any]:
        """The manifest of a job's round 0, kept for the next task; `NotFound` if the store has none."""
        if self._manifest[0] != job:
            self._manifest = (job, self.patiently(lambda: self.blobs.get_json(names.manifest_blob(job, 0)), task))
        return self._manifest[1]

    def _compare(self, job: str, data: Dataset) -> None:
        """Raises `BadInput` if the data are not like those that the job began with, as far as its record says."""
        if self._compared[0] == job and self._compared[1]() is data:
            return
        with suppress(NotFound), reading(names.manifest_blob(job, 0)):
            if (inputs := self._first(job).get("inputs")) is not None:
                refuse_others(data, Inputs.model_validate(inputs), self.trainer)
            self._compared = (job, ref(data))

    def patiently(self, call: Callable[[], Result], task: TrainTask | None = None) -> Result:
        """Calls `call` again while a server is away, for `PATIENCE` seconds and while the task is wanted."""
        retry = Retry(0.2, 2.0, patience=PATIENCE)
        while True:
            try:
                return call()
            except Unavailable as error:
                if task is not None and self.signals.is_over(*task.work):
                    raise Stale("nobody waits for it any more") from error
                if self.signals.is_stopping:
                    raise HandedBack(str(error)) from error
                if retry.is_over:
                    raise
                log.warning("trying again", reason=str(error))
                time.sleep(retry.pause())

    def _given(self, job: str) -> File:
        key = names.start_blob(job)
        size, about = self.blobs.stat(key)
        if "digest" not in about:
            raise Refused(f"{key} does not say its digest: start the job again, by fedq")
        return self.cache.get(BlobRef(key=key, size=size, digest=about["digest"]))

    def stopped(self, task: TrainTask) -> bool:
        """True if training must stop between two batches. Takes 4 µs."""
        return self.signals.is_over(*task.work) or self.signals.grace <= 0

    def why_stopped(self, task: TrainTask) -> Stale | HandedBack:
        """The error to raise once `stopped` is true."""
        if self.signals.is_over(*task.work):
            return Stale(f"round {task.round} is over")
        return HandedBack("this trainer stops before the client is trained")


def _rebuilt(how: EncodingSpec, previous: File, delta: File) -> File:
    """A model of the one before it and the difference, each as its file; `Refused` if these do not go together."""
    layout = weights.read_layout(previous)
    encoding = encoding_of(how, layout.of_updates())
    weights.check_header(delta, encoding.layout)
    file = previous.copy()
    rebuild(layout.flat(file), delta, encoding)
    return file
