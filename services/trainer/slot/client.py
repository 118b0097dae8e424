"""One client of a task: its data, the model it is given, local training, and the update that travels.

An update is held to the job's limits before it travels. What the client keeps is told with it.
"""

import dataclasses
import functools
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from services.trainer.data import dataset
from services.trainer.slot.client_state import ClientState
from services.trainer.slot.context import SlotContext
from services.trainer.slot.simulated_client import SimulatedClient
from services.trainer.train_task import TrainTask
from services.trainer.training import custom_step, loop, strategy_steps
from services.trainer.training.custom_step import step
from services.trainer.training.strategy_steps import Drift
from shared.aggregation import fold, weights
from shared.aggregation.compression.encoding import encode_with_feedback
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.fold import Buffers, Measures
from shared.aggregation.strategies.strategy import CONTROL, DELTA
from shared.aggregation.weights import File, Flat, Layout, Tiles
from shared.errors import BadInput, OverLimit, Refused, Stale, Unavailable
from shared.events import BlobRef
from shared.job import user_code
from shared.job.catalog.models import CustomModel
from shared.job.catalog.training import CustomTrain
from shared.job.job_spec import JobSpec
from shared.process.failpoints import failpoint


@dataclass
class Stopwatch:
    """Seconds by step; a step that is taken again, for the next client of a batch, adds up."""

    timings: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.perf_counter)
    _lap: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> float:
        """Ends the step of this name, and returns its seconds."""
        now = time.perf_counter()
        seconds = now - self._lap
        self.timings[name] = round(self.timings.get(name, 0.0) + seconds, 6)
        self._lap = now
        return seconds

    def total(self) -> dict[str, float]:
        return {**self.timings, "total": round(time.perf_counter() - self._began, 6)}


@dataclass(frozen=True)
class Trained:
    """The result of training one client; its arrays are valid until the next one is trained."""

    examples: int
    file: File  # the update as it would travel by itself and uncompressed
    delta: Flat  # a view of `file`: the change of the parameters, then the buffers; shape (P,)
    change: Flat | None = None  # the change of its control variate, shape (parameters,)
    metrics: dict[str, float] = field(default_factory=dict)
    # The state to keep; its residual is still the one before this round.
    state: ClientState = field(default_factory=ClientState)


class Clients:
    """Trains the clients of one task, one after the other, each on the task's base."""

    def __init__(self, context: SlotContext, task: TrainTask, base: BlobRef, watch: Stopwatch) -> None:
        self._context, self._task, self._watch = context, task, watch
        self._data = dataset.load(task.spec, task.job)
        self._model = context.model(task.job, task.spec, self._data)
        self.layout = self._model.layout
        before = context.cache.received
        self._base = context.patiently(lambda: context.base(task, base), task)
        self.base = self.layout.flat(self._base)
        self._drift = Drift.of(task.spec, task.round, self._server(), self._model)
        self.downloaded = context.cache.received - before

    def train(self, client: str, simulated: SimulatedClient) -> Trained:
        """Trains a client of the task, as fast and as honest as it is simulated to be."""
        task, spec, watch = self._task, self._task.spec, self._watch
        x, y = (part.to(self._context.device) for part in dataset.of_client(self._data, spec, client))
        if len(y) > spec.limits.max_examples:
            raise BadInput(
                f"{client} has {len(y)} examples, and limits.max_examples is {spec.limits.max_examples}: raise that, "
                "or give it fewer"
            )
        state = self._context.state(task.job, spec, client, task.state, self.layout, task)
        self._model.load(self._base, state.personal)
        simulated.download()
        watch.lap("fetch")
        failpoint("trainer.fetched")
        y = simulated.labels(y, self._data.classes)
        metrics = {}
        if not isinstance(spec.train, CustomTrain):
            found = loop.evaluate(self._model.model, x, y)
            metrics = {"client_loss": found["loss"], "client_accuracy": found["accuracy"]}
            watch.lap("evaluate")
        began = time.perf_counter()
        metrics |= self._learned(x, y, client, state)
        simulated.work(time.perf_counter() - began)
        watch.lap("train")
        file = self._model.update(self._base)
        delta = self.layout.of_updates().flat(file)
        edge = self.layout.parameters
        parameters, buffers = delta[:edge], delta[edge:]
        control, change = self._drift.renewed(parameters, state.control, metrics) if self._drift else (None, None)
        simulated.attack(parameters, buffers, self.base[edge:])
        strategy_steps.shape(parameters, spec, task.round, metrics)
        kept = ClientState(control, state.residual, self._model.personal())
        return Trained(len(y), file, delta, change, metrics, kept)

    def renew(self) -> None:
        """Builds the model again after a client failed: its code may have broken the model."""
        self._context.forget_model()
        self._model = self._context.model(self._task.job, self._task.spec, self._data)

    def _learned(self, x: torch.Tensor, y: torch.Tensor, client: str, state: ClientState) -> dict[str, float]:
        task, how, model = self._task, self._task.spec.train, self._model.model
        stopped = functools.partial(self._context.stopped, task)
        common: dict[str, Any] = {"seed": task.spec.seed, "client": client, "number": task.round, "stopped": stopped}
        try:
            if isinstance(how, CustomTrain):
                return step(model, x, y, how, **common)
            correction = self._drift.correction(state.control) if self._drift else None
            if isinstance(task.spec.model, CustomModel):  # the forward of the user's model may draw from any generator
                custom_step.seed_all(loop.shuffle_seed(task.spec.seed, client, task.round, 0))
            rounds = task.spec.rounds.count
            return loop.train(model, x, y, how, rounds=rounds, correction=correction, **common)
        except (Stale, Unavailable) as error:
            if self._context.stopped(task):
                raise self._context.why_stopped(task) from None
            raise user_code.failure(error) from error

    def _server(self) -> File | None:
        """The server state, if the round has one for its clients."""
        server = self._task.server
        return None if server is None else self._context.patiently(lambda: self._context.cache.get(server), self._task)


def pack_update(trained: Trained, base: Flat, model: Layout, spec: JobSpec) -> tuple[File, ClientState]:
    """The update's file, and the state that counts if the update does; `BadInput` if it cannot be sent.

    `base` is the model that was trained on, shape (P,).
    """
    if spec.compress.update is not None:
        return _compressed(trained, base, model, spec)
    file, layout, values = trained.file, model.of_updates(), trained.delta
    if trained.change is not None:
        layout = model.of_updates((CONTROL, DELTA))
        file = layout.empty_file()
        values = layout.flat(file)
        values[:] = np.concatenate((trained.change, trained.delta))
    measured(values, trained.examples, base, layout, spec)
    return file, trained.state


def measured(values: Flat | Tiles, examples: int, base: Flat, layout: Layout, spec: JobSpec) -> Measures:
    """Holds an update to the job's limits before it travels: the round then knows at once that none will come.

    `layout` is what such an update would have uncompressed.
    """
    grid = fold.grid_of(spec, 1)
    buffers = Buffers.of(base, layout, grid.max_abs)
    try:
        return fold.check(values, examples, grid, spec.limits.max_norm, buffers=buffers)
    except Refused as refused:
        raise _unsent(refused) from refused


def check_initial(file: File, layout: Layout, spec: JobSpec) -> None:
    """Holds the model that a job begins with to what the aggregator will; `BadInput` that says where it comes from."""
    try:
        weights.check_model_size(file.nbytes, spec.limits)
        weights.check_initial_model(file, layout)
    except Refused as refused:
        place = f"model.start, {spec.model.start}" if spec.model.start is not None else f"model, {spec.model.name}"
        raise BadInput(f"{place}: {refused}") from refused


def _compressed(trained: Trained, base: Flat, model: Layout, spec: JobSpec) -> tuple[File, ClientState]:
    layout = model.of_updates()
    encoding = encoding_of(spec.compress.update, layout)
    file, residual = encoding.layout.empty_file(), None
    if spec.compress.update is not None and spec.compress.update.error_feedback:
        residual = trained.state.residual
        residual = np.zeros(model.size, np.float32) if residual is None else residual
    try:
        encode_with_feedback(encoding, trained.delta, residual, file)
    except Refused as refused:
        raise _unsent(refused) from refused
    measured(encoding.tiles(file), trained.examples, base, layout, spec)
    return file, dataclasses.replace(trained.state, residual=residual)


def _unsent(refused: Refused) -> BadInput:
    """The reason why an update cannot be sent, with advice: a limit may be too low for it, or training diverged."""
    if isinstance(refused, OverLimit):
        advice = "raise that limit, or have clients learn less in a round (fewer epochs, a lower learning rate)"
        return BadInput(f"the update is not sent: {refused}; {advice}")
    return BadInput(f"training diverged: the update {refused}; a lower learning rate may help")
