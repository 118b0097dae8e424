"""One client of a task: its data, the model it is given, local training, and what training changed."""

import functools
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from services.trainer.data import dataset
from services.trainer.slot.client_state import State
from services.trainer.slot.context import SlotContext
from services.trainer.slot.simulated_client import SimulatedClient
from services.trainer.slot.stopwatch import Stopwatch
from services.trainer.train_task import TrainTask
from services.trainer.training import custom_step, loop, strategy_steps
from services.trainer.training.custom_step import step
from services.trainer.training.strategy_steps import Drift
from shared.aggregation.weights import File, Flat
from shared.errors import BadInput, Stale, Unavailable
from shared.events import BlobRef
from shared.job import user_code
from shared.job.catalog.models import CustomModel
from shared.job.catalog.training import CustomTrain
from shared.process.failpoints import failpoint


@dataclass(frozen=True)
class Trained:
    """What training one client gave; its arrays are valid until the next one is trained."""

    examples: int
    file: File  # the update as it would travel uncompressed, and by itself
    delta: Flat  # in it: what training changed of the parameters, and the buffers; shape (P,)
    change: Flat | None = None  # of its control variate, shape (parameters,)
    metrics: dict[str, float] = field(default_factory=dict)
    state: State = field(default_factory=State)  # what it keeps; of the residual, what there was before


class Clients:
    """Trains the clients of one order, one after the other, each on the order's base."""

    def __init__(self, context: SlotContext, order: TrainTask, base: BlobRef, watch: Stopwatch) -> None:
        self._context, self._order, self._watch = context, order, watch
        self._data = dataset.load(order.spec, order.job)
        self._model = context.model(order.job, order.spec, self._data)
        self.layout = self._model.layout
        before = context.cache.received
        self._base = context.patiently(lambda: context.base(order, base), order)
        self.base = self.layout.flat(self._base)
        self._drift = Drift.of(order.spec, order.round, self._server(), self._model)
        self.downloaded = context.cache.received - before

    def train(self, client: str, simulated: SimulatedClient) -> Trained:
        """What a client's training gives."""
        order, spec, watch = self._order, self._order.spec, self._watch
        x, y = (part.to(self._context.device) for part in dataset.of_client(self._data, spec, client))
        if len(y) > spec.limits.max_examples:
            raise BadInput(
                f"{client} has {len(y)} examples, and limits.max_examples is {spec.limits.max_examples}: raise that, "
                "or give it fewer"
            )
        state = self._context.state(order.job, spec, client, order.state, self.layout, order)
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
        strategy_steps.shape(parameters, spec, order.round, metrics)
        kept = State(control, state.residual, self._model.personal())
        return Trained(len(y), file, delta, change, metrics, kept)

    def renew(self) -> None:
        """For when a client failed: its code may have broken the model."""
        self._context.forget_model()
        self._model = self._context.model(self._order.job, self._order.spec, self._data)

    def _learned(self, x: torch.Tensor, y: torch.Tensor, client: str, state: State) -> dict[str, float]:
        order, how, model = self._order, self._order.spec.train, self._model.model
        stopped = functools.partial(self._context.stopped, order)
        common: dict[str, Any] = {"seed": order.spec.seed, "client": client, "number": order.round, "stopped": stopped}
        try:
            if isinstance(how, CustomTrain):
                return step(model, x, y, how, **common)
            correction = self._drift.correction(state.control) if self._drift else None
            if isinstance(order.spec.model, CustomModel):  # its forward may draw from any of them
                custom_step.seed_all(loop.shuffle_seed(order.spec.seed, client, order.round, 0))
            rounds = order.spec.rounds.count
            return loop.train(model, x, y, how, rounds=rounds, correction=correction, **common)
        except (Stale, Unavailable) as error:
            if self._context.stopped(order):
                raise self._context.why_stopped(order) from None
            raise user_code.failure(error) from error

    def _server(self) -> File | None:
        """The server state, where the round has one for its clients."""
        server = self._order.server
        return None if server is None else self._context.patiently(lambda: self._context.cache.get(server), self._order)
