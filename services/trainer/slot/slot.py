"""One slot of a trainer: a warm process that does one task at a time and tells the aggregator.

It makes its imports, threads and connections first, so that no task pays for them. A task trains clients, or evaluates
a model: on the test set, or on the examples that clients hold out for it.
"""

import functools
import multiprocessing
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import structlog
import torch

from services.trainer.data import dataset
from services.trainer.data.dataset import Examples, inputs_of
from services.trainer.models import catalog
from services.trainer.signals import Signals
from services.trainer.slot import batch, replies
from services.trainer.slot.client import Clients, Stopwatch, check_initial, pack_update
from services.trainer.slot.client_state import InStore, Keeper, OnDisk
from services.trainer.slot.context import PATIENCE, SlotContext
from services.trainer.slot.model_cache import Cache
from services.trainer.slot.replies import sentence
from services.trainer.slot.simulated_client import SimulatedClient
from services.trainer.train_task import TrainTask, check_sizes
from services.trainer.training import loop
from shared import names
from shared.aggregation import weights
from shared.aggregation.weights import File
from shared.amqp.bus import Bus
from shared.errors import BadInput, FedqError, QueueFull, Refused, Stale, Unavailable
from shared.events import BlobRef, EvaluateModel, Member, ModelEvaluated, ModelUpdate
from shared.job import user_code, user_modules
from shared.job.catalog.training import TrainSpec
from shared.process import logs, settings
from shared.process.failpoints import failpoint
from shared.record import receipts
from shared.s3.store import Blobs, NotFound

log = structlog.get_logger()

ANSWERS = 16  #: updates remembered: after a lost connection the broker hands out unacknowledged tasks again


class Slot:
    """A slot: it does what a task says, and keeps the data, the model and its buffers for the next one."""

    def __init__(self, context: SlotContext, bus: Bus) -> None:
        self._context, self._bus = context, bus
        # The latest updates, by the id of the task.
        self._answers: OrderedDict[str, tuple[TrainTask, ModelUpdate]] = OrderedDict()

    def do(self, work: TrainTask | EvaluateModel, tries: int) -> None:
        """Does what a task asks for in this many deliveries, and publishes the answer; `Unavailable` to try later."""
        if isinstance(work, TrainTask):
            self.train(work, tries)
        else:
            self.evaluate(work)

    def give_up(self, work: TrainTask | EvaluateModel, tries: int, reason: str) -> None:
        """Answers that there will be no result; `Unavailable` if not even that can be said."""
        log.error("given up", job=work.job, round=work.round, client=getattr(work, "client", None), reason=reason)
        if isinstance(work, TrainTask):
            answer = replies.failed(work, self._context.trainer, reason)
            self._say(answer.model_copy(update={"tries": tries}))
        else:
            self._say(replies.evaluated(work, self._context.trainer, error=reason))

    def train(self, task: TrainTask, tries: int) -> None:
        """Trains a client, or a batch, and publishes the update, or the error that prevented it."""
        about = log.bind(job=task.job, round=task.round, client=task.client)
        watch = Stopwatch()
        failpoint("trainer.taken")
        try:
            self._refuse_if_over(task)
            check_sizes(task)
            update = self._answered(task, tries, watch)
        except Stale as stale:
            about.info("abandoned", reason=str(stale), **watch.total())
            return
        except Unavailable:
            raise
        except Refused as refused:
            about.warning("failed", reason=str(refused))
            update = replies.failed(task, self._context.trainer, sentence(refused))
        except BaseException as error:  # the user's code may raise anything
            replies.log_failure(about, error)
            self._context.forget_model()
            update = replies.failed(task, self._context.trainer, sentence(error))
        if not self._say(update.model_copy(update={"attempt": task.attempt, "tries": tries})):
            self._take_back(update, task)
        failpoint("trainer.told")
        about.info("trained" if update.error is None else "reported", **watch.total())

    def evaluate(self, event: EvaluateModel) -> None:
        """Evaluates a model on held-out examples and publishes the result; `Unavailable` to try later."""
        about = log.bind(job=event.job, round=event.round)
        context, watch = self._context, Stopwatch()
        before = context.cache.received
        try:
            if context.patiently(lambda: context.blobs.exists(names.result_blob(event.job))):
                about.info("not evaluated", reason="the job is over")
                return
            check_sizes(event)
            if event.clients:
                members = on_clients(context, event)
                examples = sum(member.examples for member in members)
                answer = replies.evaluated(event, context.trainer, examples=examples, members=members)
            else:
                examples, metrics = on_test_set(context, event)
                answer = replies.evaluated(event, context.trainer, examples=examples, metrics=metrics)
        except Unavailable:
            raise
        except BaseException as error:
            replies.log_failure(about, error)
            context.forget_model()
            answer = replies.evaluated(event, context.trainer, error=sentence(error))
        self._say(answer.model_copy(update={"downloaded": context.cache.received - before}))
        about.info("evaluated", **watch.total(), **answer.metrics)

    # --- an update ------------------------------------------------------------------------------

    def _answered(self, task: TrainTask, tries: int, watch: Stopwatch) -> ModelUpdate:
        """The update that is asked for; the one made before, if it is asked for again."""
        asked, known = self._answers.get(task.identity, (None, None))
        if asked is not None and known is not None and _same(asked, task):
            return known
        # A look costs milliseconds, so it is taken only if there may be an update; a batch leaves no receipt.
        if (tries > 1 or task.again) and not task.is_batch and (found := self._stored(task)) is not None:
            return found
        watch.timings["wait"] = max(0.0, round(time.time() - task.asked, 6))
        update = self._made(task, watch).model_copy(update={"code": self._code(task)})
        self._answers[task.identity] = (task, update)
        while len(self._answers) > ANSWERS:
            self._answers.popitem(last=False)
        return update

    def _stored(self, task: TrainTask) -> ModelUpdate | None:
        """The client's update to the same base, if another slot uploaded it and could not tell of it."""
        context = self._context
        prefix = f"{names.updates_prefix(task.job, task.round)}{task.client}-"
        for key in context.patiently(lambda: context.blobs.list(prefix), task):
            try:
                found = receipts.told_again(key, *context.patiently(functools.partial(context.blobs.stat, key), task))
            except (NotFound, Refused) as error:
                log.info("not told again", key=key, reason=str(error))
                continue
            # The keys of client `a-b` begin like those of `a`.
            if (found.client, found.base) == (task.client, replies.base_of(task)):
                return found
        return None

    def _made(self, task: TrainTask, watch: Stopwatch) -> ModelUpdate:
        if task.base is None:
            return self._initial(task, watch)
        if task.is_batch:
            return self._batch(task, task.base, watch)
        return self._client(task, task.base, watch)

    def _code(self, task: TrainTask) -> str | None:
        """The digest of the user's files that this process ran: all trainers of a pool should have the same."""
        if task.spec.pool is None or not task.spec.has_code:
            return None
        modules = tuple(name.partition(":")[0] for name in task.spec.code)
        # A slot that made the initial model has imported no local step, and its digest would be of fewer files.
        return user_modules.digest(modules) if sys.modules.keys() >= set(modules) else None

    def _initial(self, task: TrainTask, watch: Stopwatch) -> ModelUpdate:
        """The model that a job begins with, whole."""
        data = dataset.load(task.spec, task.job)
        if task.spec.pool is not None and task.spec.needs_test_set:
            dataset.of_test(data)  # each trainer has the test set: a bad one is found before any client trains
        model = self._context.fresh_model(task.job, task.spec, data)
        file = model.save()
        check_initial(file, model.layout, task.spec)
        watch.lap("train")
        update = replies.update(task, self._context.trainer, examples=1).model_copy(update={"inputs": inputs_of(data)})
        return self._uploaded(update, file, task, watch)

    def _client(self, task: TrainTask, base: BlobRef, watch: Stopwatch) -> ModelUpdate:
        """A client's update to the base model, its metrics and timings."""
        context, client = self._context, task.client
        simulated = SimulatedClient(context, task, client)
        simulated.appear()
        clients = Clients(context, task, base, watch)
        trained = clients.train(client, simulated)
        file, state = pack_update(trained, clients.base, clients.layout, task.spec)
        simulated.upload(file.nbytes)
        update = replies.update(
            task,
            context.trainer,
            examples=trained.examples,
            metrics=trained.metrics,
            downloaded=clients.downloaded,
        )
        return self._uploaded(update, file, task, watch, state.pack())

    def _batch(self, task: TrainTask, base: BlobRef, watch: Stopwatch) -> ModelUpdate:
        """The folded updates of a batch."""
        folded = batch.train(self._context, task, base, watch)
        if folded.file is None:
            reason = next(iter(folded.failures.values()))
            return replies.failed(task, self._context.trainer, reason, folded.failures)
        update = replies.update(
            task,
            self._context.trainer,
            examples=folded.examples,
            metrics=folded.metrics,
            members=folded.members,
            failures=folded.failures,
            downloaded=folded.downloaded,
        )
        return self._uploaded(update, folded.file, task, watch)

    def _uploaded(
        self, update: ModelUpdate, file: File, task: TrainTask, watch: Stopwatch, kept: File | None = None
    ) -> ModelUpdate:
        """The update, once its file is in the store with a receipt, from which another slot can tell of it again.

        The state that the client keeps if it counts is stored before it: an update refers to blobs that exist.
        """
        failpoint("trainer.trained")
        if kept is not None:
            ref = self._context.patiently(lambda: self._context.keeper.save(task.job, task.client, kept), task)
            update = update.model_copy(update={"state": ref})
        digest, about = weights.digest_of(file), receipts.receipt(update)
        key = names.update_blob(task.job, task.round, task.client, digest)

        def put() -> BlobRef:
            return self._context.blobs.put(
                key, file, digest=digest, metadata=about, on_piece=lambda: failpoint("trainer.uploading")
            )

        blob = self._context.patiently(put, task)
        watch.lap("upload")
        failpoint("trainer.uploaded")
        return update.model_copy(update={"update": blob, "timings": watch.total()})

    def _refuse_if_over(self, task: TrainTask) -> None:
        """Raises `Stale` if the round was over before this task began. Takes 20 ms, even if signals were missed."""
        context = self._context
        if context.signals.is_over(*task.work):
            raise Stale(f"round {task.round} is over")
        # In asynchronous rounds, the manifest that ends a round's work is that of a later round.
        manifest = names.manifest_blob(task.job, task.round + task.spec.max_staleness)
        result = names.result_blob(task.job)
        if context.patiently(lambda: context.blobs.exists(manifest) or context.blobs.exists(result), task):
            raise Stale(f"round {task.round} is over, says the object store")

    # --- telling --------------------------------------------------------------------------------

    def _say(self, event: ModelUpdate | ModelEvaluated) -> bool:
        """Publishes an event; False if there is no queue for the job's answers, which means that the job is over."""
        try:
            self._bus.publish(event)
        except QueueFull:
            raise
        except Unavailable:
            if self._bus.depth(names.updates_queue(event.job)) is not None:
                raise
            return False
        return True

    def _take_back(self, update: ModelUpdate, task: TrainTask) -> None:
        """Removes an update that came after the end of its job, if the job keeps no updates."""
        blobs = self._context.blobs
        log.info("nobody listens", job=task.job, round=task.round, client=task.client)
        if update.update is None or task.spec.keep_updates:
            return
        with suppress(FedqError):  # a blob that stays does no harm
            if blobs.exists(names.result_blob(task.job)):
                blobs.remove([update.update.key])
                if update.state is not None:
                    self._context.keeper.drop(task.job, task.client, update.state)


def _same(asked: TrainTask, task: TrainTask) -> bool:
    """True if two tasks ask for the same update, of the same model with the same settings and state."""
    return all(getattr(asked, name) == getattr(task, name) for name in ("members", "spec", "state", "server")) and (
        replies.base_of(asked) == replies.base_of(task)
    )


def on_test_set(context: SlotContext, event: EvaluateModel) -> tuple[int, dict[str, float]]:
    """The number of examples in the test set, and the metrics on them; (0, {}) if there is no test set."""
    data = dataset.load(event.spec, event.job)
    test = dataset.of_test(data)
    if test is None:
        return 0, {}
    model = context.model(event.job, event.spec, data)
    model.load(context.patiently(lambda: context.cache.get(event.model)))
    x, y = _on(context, test)
    return len(y), loop.evaluate(model.model, x, y)


def on_clients(context: SlotContext, event: EvaluateModel) -> tuple[Member, ...]:
    """The figures of each client, on its own held-out examples and with what it keeps of the model.

    Clients that hold out no examples and clients that fail are left out; if none is left, the last error is raised.
    """
    data = dataset.load(event.spec, event.job)
    file = context.patiently(lambda: context.cache.get(event.model))
    found: list[Member] = []
    failure: Exception | None = None
    for client, ref in zip(event.clients, event.states or (None,) * len(event.clients), strict=True):
        try:
            held = dataset.held_by(data, event.spec, client)
            if held is None:
                continue
            model = context.model(event.job, event.spec, data)
            model.load(file, context.state(event.job, event.spec, client, ref, model.layout).personal)
            x, y = _on(context, held)
            found.append(Member(client=client, examples=len(y), metrics=loop.evaluate(model.model, x, y)))
        except Unavailable:
            raise
        except Exception as error:
            replies.log_failure(log.bind(job=event.job, round=event.round, client=client), error)
            context.forget_model()
            failure = error
    if failure is not None and not found:
        raise failure
    return tuple(found)


def _on(context: SlotContext, examples: Examples) -> Examples:
    x, y = examples
    return x.to(context.device), y.to(context.device)


GLANCE = 10.0  #: seconds that one call of the store may take; between two, the slot looks if the task is wanted


def start_slot(trainer: str, directory: str, index: int, *, silo: bool) -> Slot:
    """Makes this process a slot."""
    configuration = settings.load(settings.Trainer)
    logs.configure(configuration, "trainer")
    structlog.contextvars.bind_contextvars(trainer=trainer)
    user_code.permit(configuration.allow, f"the trainer {trainer}")
    # Celery's processes are daemons, which Python lets have no children, such as the workers of a DataLoader.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    device = _device(configuration.device, index)
    torch.set_num_threads(configuration.threads)
    signals = Signals(Path(directory))
    blobs = Blobs(configuration, patience=GLANCE)
    cache = Cache(configuration.cache_dir, configuration.cache_mb << 20, blobs)
    keeper: Keeper = OnDisk(configuration.state_dir.expanduser()) if silo else InStore(blobs)
    bus = Bus(configuration, trainer, patience=PATIENCE)
    _rehearse(device)
    try:
        bus.declare()  # connects now, so that the first task need not
    except Unavailable as error:
        log.warning("not connected yet", reason=str(error))
    signals.tell(f"warm {device if device.type == 'cpu' else torch.cuda.get_device_name(device)}")
    return Slot(SlotContext(trainer, signals, blobs, cache, keeper, device), bus)


def _device(name: str, index: int) -> torch.device:
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", index % torch.cuda.device_count())  # each slot has its own GPU, if there are enough
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise BadInput(f"FEDQ_DEVICE: {name} cannot be used here: {error}") from error
    return device


def _rehearse(device: torch.device) -> None:
    """Trains for one step on zeros: torch loads half of itself when it is first used."""
    model = catalog.lenet((1, 8, 8), 2).to(device)
    x, y = torch.zeros(4, 1, 8, 8, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    loop.train(model, x, y, TrainSpec(), seed=0, client="nobody", number=0)
    loop.evaluate(model, x, y)
