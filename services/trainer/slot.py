"""One slot of a trainer: a warm process that trains one client at a time and tells the aggregator."""

import functools
import multiprocessing
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog
import torch

from services.trainer import learning
from services.trainer.board import Board
from services.trainer.cache import Cache, File
from services.trainer.data import dataset
from services.trainer.data.dataset import Dataset
from services.trainer.models import catalog
from services.trainer.models.flat import FlatModel
from services.trainer.orders import HandedBack, Order, task_id
from shared import fold, logs, names, receipts, settings, weights
from shared.blobs import Blobs, NotFound
from shared.bus import Bus
from shared.catalog.training import CustomTrain, TrainSpec
from shared.errors import BadInput, Refused, Stale, Unavailable
from shared.events import AnyEvent, BlobRef, EvaluateModel, ModelEvaluated, ModelUpdate
from shared.failpoints import failpoint
from shared.jobs import JobSpec

log = structlog.get_logger()

Result = TypeVar("Result")

PATIENCE = 30.0  #: seconds a server may be away before the task goes back to its queue
GLANCE = 10.0  #: of them in one call of the store: between two, a slot looks whether somebody still waits for it
ANSWERS = 16  #: updates remembered: after a lost connection the broker hands out what was not acknowledged


@dataclass
class Stopwatch:
    """How long each step of a task took, in seconds."""

    timings: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.perf_counter)
    _lap: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        """The step that ends now."""
        now = time.perf_counter()
        self.timings[name] = round(now - self._lap, 6)
        self._lap = now

    def total(self) -> dict[str, float]:
        return {**self.timings, "total": round(time.perf_counter() - self._began, 6)}


class Slot:
    """Does what a task says; keeps the data, the model and its buffers for the next one."""

    def __init__(self, trainer: str, board: Board, bus: Bus, blobs: Blobs, cache: Cache, device: torch.device) -> None:
        self._trainer, self._board, self._bus, self._blobs, self._cache = trainer, board, bus, blobs, cache
        self._device = device
        self._warm: tuple[str, FlatModel] | None = None
        self._answers: OrderedDict[str, tuple[JobSpec, ModelUpdate]] = OrderedDict()  # the latest, by task

    def do(self, work: Order | EvaluateModel, tries: int) -> None:
        """Does what a task asks for in this many deliveries, and publishes the answer; `Unavailable` to try later."""
        if isinstance(work, Order):
            self.train(work, tries)
        else:
            self.evaluate(work)

    def give_up(self, work: Order | EvaluateModel, tries: int, reason: str) -> None:
        """Answers that there will be none; `Unavailable` where not even that can be said."""
        log.error("given up", job=work.job, round=work.round, client=getattr(work, "client", None), reason=reason)
        if isinstance(work, Order):
            self._say(_update(work, self._trainer, error=reason).model_copy(update={"tries": tries}))
        else:
            self._say(_evaluated(work, self._trainer, error=reason))

    def train(self, order: Order, tries: int) -> None:
        """Trains a client and publishes its update, or the error that prevented it; `Unavailable` to try later."""
        about = log.bind(job=order.job, round=order.round, client=order.client)
        watch = Stopwatch()
        failpoint("trainer.taken")
        try:
            self._refuse_if_over(order)
            update = self._answered(order, tries, watch)
        except Stale as stale:
            about.info("abandoned", reason=str(stale), **watch.total())
            return
        except Unavailable:
            raise
        except (Exception, SystemExit) as error:  # user code may do anything
            about.exception("failed")
            self._warm = None  # who knows what it left behind
            update = _update(order, self._trainer, error=_sentence(error))
        self._say(update.model_copy(update={"attempt": order.attempt, "tries": tries}))
        failpoint("trainer.told")
        about.info("trained" if update.error is None else "reported", **watch.total())

    def evaluate(self, event: EvaluateModel) -> None:
        """Evaluates a model on the held-out test set and publishes the result; `Unavailable` to try later."""
        about = log.bind(job=event.job, round=event.round)
        watch = Stopwatch()
        examples, metrics, failure = 0, {}, None
        try:
            if self._patiently(lambda: self._blobs.exists(names.result_blob(event.job))):
                about.info("not evaluated", reason="the job is over")
                return
            data = dataset.load(event.spec)
            test = dataset.of_test(data)
            if test is not None:
                model = self._model(event.spec, data)
                model.load(self._patiently(lambda: self._cache.get(event.model)))
                x, y = (part.to(self._device) for part in test)
                examples, metrics = len(y), learning.evaluate(model.model, x, y)
        except Unavailable:
            raise
        except (Exception, SystemExit) as error:
            about.exception("failed")
            self._warm = None
            failure = _sentence(error)
        self._say(_evaluated(event, self._trainer, examples=examples, metrics=metrics, error=failure))
        about.info("evaluated", **watch.total(), **metrics)

    def _answered(self, order: Order, tries: int, watch: Stopwatch) -> ModelUpdate:
        """The update that is asked for: the one made before, where it is asked for again."""
        identity = task_id(order.job, order.round, order.attempt, order.client)
        spec, known = self._answers.get(identity, (None, None))
        if known is not None and known.base == _digest(order.base) and spec == order.spec:
            return known
        # A look costs milliseconds, so only where there may be something to find.
        if (tries > 1 or order.again) and (found := self._stored(order)) is not None:
            return found
        watch.timings["wait"] = max(0.0, round(time.time() - order.asked, 6))
        update = self._initial(order, watch) if order.base is None else self._trained(order, order.base, watch)
        self._answers[identity] = (order.spec, update)
        while len(self._answers) > ANSWERS:
            self._answers.popitem(last=False)
        return update

    def _stored(self, order: Order) -> ModelUpdate | None:
        """The client's update to the same base, where a slot that could not tell of it had it uploaded."""
        prefix = f"{names.updates_prefix(order.job, order.round)}{order.client}-"
        for key in self._patiently(lambda: self._blobs.list(prefix), order):
            try:
                found = receipts.told_again(key, *self._patiently(functools.partial(self._blobs.stat, key), order))
            except (NotFound, Refused) as error:
                log.info("not told again", key=key, reason=str(error))
                continue
            if (found.client, found.base) == (order.client, _digest(order.base)):  # `a-b` begins like `a`
                return found
        return None

    def _initial(self, order: Order, watch: Stopwatch) -> ModelUpdate:
        """The seeded model that a job begins with, whole."""
        spec, data = order.spec, dataset.load(order.spec)
        model = FlatModel(catalog.build(spec.model, tuple(data.shape), data.classes, spec.seed))
        watch.lap("train")
        return self._uploaded(_update(order, self._trainer, examples=1), model.save(), order, watch)

    def _trained(self, order: Order, base: BlobRef, watch: Stopwatch) -> ModelUpdate:
        """A client's update to the base model, its metrics and timings."""
        spec = order.spec
        data = dataset.load(spec)
        x, y = dataset.of_client(data, order.client, dataset.index_of(spec, order.client))
        x, y = x.to(self._device), y.to(self._device)
        model = self._model(spec, data)
        received = self._cache.received
        file = self._patiently(lambda: self._cache.get(base), order)
        model.load(file)
        watch.lap("fetch")
        failpoint("trainer.fetched")
        metrics = {}
        if isinstance(spec.train, TrainSpec):
            found = learning.evaluate(model.model, x, y)
            metrics = {"client_loss": found["loss"], "client_accuracy": found["accuracy"]}
            watch.lap("evaluate")
        metrics |= self._learned(model, x, y, order)
        watch.lap("train")
        update = model.update(file)
        _refuse_diverged(model.layout.of_updates().flat(update), len(y), spec)
        downloaded = self._cache.received - received
        event = _update(order, self._trainer, examples=len(y), metrics=metrics, downloaded=downloaded)
        return self._uploaded(event, update, order, watch)

    def _learned(self, model: FlatModel, x: torch.Tensor, y: torch.Tensor, order: Order) -> dict[str, float]:
        def stopped() -> bool:
            return self._board.is_over(*order.work) or self._board.grace <= 0

        how, seed, client, number = order.spec.train, order.spec.seed, order.client, order.round
        try:
            if isinstance(how, CustomTrain):
                return learning.step(model.model, x, y, how, seed=seed, client=client, number=number, stopped=stopped)
            return learning.train(model.model, x, y, how, seed=seed, client=client, number=number, stopped=stopped)
        except Stale:
            if self._board.is_over(*order.work):
                raise
            raise HandedBack("this trainer stops before the client is trained") from None

    def _model(self, spec: JobSpec, data: Dataset) -> FlatModel:
        """The warm model of a job; its tensors hold whatever the last client left in them."""
        key = f"{spec.model.model_dump_json()} {list(data.shape)} {data.classes}"
        if self._warm is None or self._warm[0] != key:
            self._warm = None  # the old one's memory first
            model = catalog.build(spec.model, tuple(data.shape), data.classes, spec.seed)
            self._warm = (key, FlatModel(model.to(self._device)))
        return self._warm[1]

    def _uploaded(self, update: ModelUpdate, file: File, order: Order, watch: Stopwatch) -> ModelUpdate:
        """The update, its file in the store with a receipt: whoever finds it there can tell of it."""
        failpoint("trainer.trained")
        digest, about = weights.digest_of(file), receipts.receipt(update)
        key = names.update_blob(order.job, order.round, order.client, digest)

        def put() -> BlobRef:
            return self._blobs.put(
                key, file, digest=digest, metadata=about, on_piece=lambda: failpoint("trainer.uploading")
            )

        blob = self._patiently(put, order)
        watch.lap("upload")
        failpoint("trainer.uploaded")
        return update.model_copy(update={"update": blob, "timings": watch.total()})

    def _refuse_if_over(self, order: Order) -> None:
        """Raises `Stale` where the round was over before this task began: within 20 ms, whatever was missed."""
        if self._board.is_over(*order.work):
            raise Stale(f"round {order.round} is over")
        manifest, result = names.manifest_blob(order.job, order.round), names.result_blob(order.job)
        if self._patiently(lambda: self._blobs.exists(manifest) or self._blobs.exists(result), order):
            raise Stale(f"round {order.round} is over, says the object store")

    def _patiently(self, call: Callable[[], Result], order: Order | None = None) -> Result:
        """`call`, again while a server is away: for `PATIENCE` seconds, and while somebody waits for the result."""
        deadline, delay = time.monotonic() + PATIENCE, 0.2
        while True:
            try:
                return call()
            except Unavailable as error:
                if order is not None and self._board.is_over(*order.work):
                    raise Stale("nobody waits for it any more") from error
                if self._board.is_stopping:
                    raise HandedBack(str(error)) from error
                if time.monotonic() >= deadline:
                    raise
                log.warning("trying again", reason=str(error))
                time.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
                delay = min(2 * delay, 2.0)

    def _say(self, event: AnyEvent) -> None:
        # Where nobody listens, the job is over.
        self._bus.publish(event, required=False)


def start(trainer: str, directory: str, index: int, threads: int) -> Slot:
    """Makes this process a slot: imports, threads and connections first, so that no task pays for them."""
    configuration = settings.load(settings.Trainer)
    logs.configure(configuration, "trainer")
    structlog.contextvars.bind_contextvars(trainer=trainer)
    # Python lets no daemon have children, and Celery's processes are daemons; the workers of a DataLoader are children.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    device = _device(configuration.device, index)
    torch.set_num_threads(configuration.threads or threads)
    board = Board(Path(directory))
    blobs = Blobs(configuration, patience=GLANCE)
    cache = Cache(configuration.cache_dir, configuration.cache_mb << 20, blobs)
    bus = Bus(configuration, trainer, patience=PATIENCE)
    _rehearse(device)
    try:
        bus.declare()  # connects
    except Unavailable as error:
        log.warning("not connected yet", reason=str(error))
    board.tell(f"warm {device if device.type == 'cpu' else torch.cuda.get_device_name(device)}")
    return Slot(trainer, board, bus, blobs, cache, device)


def _device(name: str, index: int) -> torch.device:
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", index % torch.cuda.device_count())  # each slot its own, where there are enough
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise BadInput(f"FEDQ_DEVICE: {name} cannot be used here: {error}") from error
    return device


def _rehearse(device: torch.device) -> None:
    """Trains for one step on nothing: torch loads half of itself when it is first used."""
    model = catalog.lenet((1, 8, 8), 2).to(device)
    x, y = torch.zeros(4, 1, 8, 8, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    learning.train(model, x, y, TrainSpec(), seed=0, client="nobody", number=0)
    learning.evaluate(model, x, y)


def _update(
    order: Order,
    trainer: str,
    *,
    examples: int = 0,
    metrics: dict[str, float] | None = None,
    downloaded: int = 0,
    error: str | None = None,
) -> ModelUpdate:
    return ModelUpdate(
        job=order.job,
        round=order.round,
        attempt=order.attempt,
        client=order.client,
        trainer=trainer,
        base=_digest(order.base),
        update=None,
        examples=examples,
        metrics=metrics or {},
        downloaded=downloaded,
        error=error,
    )


def _evaluated(
    event: EvaluateModel,
    trainer: str,
    *,
    examples: int = 0,
    metrics: dict[str, float] | None = None,
    error: str | None = None,
) -> ModelEvaluated:
    return ModelEvaluated(
        job=event.job,
        round=event.round,
        model=event.model.digest,
        trainer=trainer,
        examples=examples,
        metrics=metrics or {},
        error=error,
    )


def _digest(base: BlobRef | None) -> str | None:
    return base.digest if base is not None else None


def _refuse_diverged(deltas: weights.Flat, examples: int, spec: JobSpec) -> None:
    """Holds an update to the job's limits before it travels: the round then knows at once that none will come."""
    grid = fold.Grid(max_abs=spec.limits.max_abs, max_weight=spec.limits.max_examples, updates=1)
    try:
        fold.check(deltas, examples, grid, spec.limits.max_norm)
    except Refused as refused:
        raise BadInput(f"training diverged: the update {refused}; a lower learning rate may help") from refused


def _sentence(error: BaseException) -> str:
    """`<Type>: <what it says>`, on one line that fits into an event."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:1000] if text else type(error).__name__
