"""Trainers that come and go: they hear a round, train its clients in their own time, and sometimes go wrong."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from services.trainer.train_task import TrainTask, train_tasks
from shared import names
from shared.amqp import topology
from shared.errors import Unavailable
from shared.events import EvaluateModel, ModelEvaluated, ModelUpdate, RoundStart, TrainerJoined
from shared.redis.roster import Member
from shared.s3.store import NotFound
from tests.simulation.fakes import Message
from tests.simulation.training import Training, figure, strangers

if TYPE_CHECKING:
    from tests.simulation.world import World

SLOTS = 2
TRIES = 5  #: as `services.trainer.slot.tasks` has it


@dataclass
class Task(Message):
    """An `Order` (a client's work in a round, or a batch of clients'), or an evaluation, on a group's queue."""

    work: Any = None


@dataclass
class Trainer:
    """A process with two slots."""

    name: str
    group: str
    busy: list[Task] = field(default_factory=list)
    gone: bool = False


class Trainers:
    """All of a job's trainers: two of its pool, or one of each silo."""

    def __init__(self, world: "World") -> None:
        self._world = world
        spec = world.spec
        groups = [spec.pool, spec.pool] if spec.pool else list(spec.silos or ())
        self.all = [Trainer(f"trainer-{number}", str(group)) for number, group in enumerate(groups)]
        self.training = Training(spec, world.blobs)

    def begin(self) -> None:
        for trainer in self.all:
            self._world.broker.declare(topology.rounds(trainer.group))
            self._world.broker.queues.setdefault(self._home(trainer), [])

    def _home(self, trainer: Trainer) -> str:
        """Where tasks wait: a silo has no queue of them, and its events wait until they are done."""
        return (names.tasks_queue if self._world.spec.pool else names.rounds_queue)(trainer.group)

    def alive(self) -> list[Member]:
        return [
            Member(
                trainer.name,
                self._world.spec.pool,
                None if self._world.spec.pool else trainer.group,
                host="here",
                pid=1,
                device="cpu",
                slots=SLOTS,
                busy=len(trainer.busy),
                alive_for=10.0,
                skew=0.0,
            )
            for trainer in self.all
            if not trainer.gone
        ]

    def ready(self) -> Iterator[Callable[[], None]]:
        queues = self._world.broker.queues
        for trainer in self.all:
            if trainer.gone:
                continue
            if self._world.spec.pool and queues.get(names.rounds_queue(trainer.group)):
                yield lambda trainer=trainer: self._hear(trainer)
            if queues.get(self._home(trainer)) and len(trainer.busy) < SLOTS:
                yield lambda trainer=trainer: self._take(trainer)

    def leave(self, trainer: Trainer) -> None:
        """It dies: what it had in hand is another's, or its own when it is back."""
        self._world.trace(f"{trainer.name} is gone")
        trainer.gone = True
        for task in trainer.busy:
            self._put_back(trainer, task)
        trainer.busy = []

    def come_back(self, trainer: Trainer) -> None:
        if trainer.gone:
            self._world.trace(f"{trainer.name} is back")
            trainer.gone = False
            self._world.broker.declare(topology.rounds(trainer.group))
            self._world.broker.queues.setdefault(self._home(trainer), [])
            self._world.broker.publish(TrainerJoined(trainer=trainer.name, group=trainer.group), required=False)

    def recover(self) -> None:
        """All are there."""
        for trainer in self.all:
            self.come_back(trainer)

    # --- work -----------------------------------------------------------------------------------

    def _hear(self, trainer: Trainer) -> None:
        broker = self._world.broker
        message = broker.queues[names.rounds_queue(trainer.group)].pop(0)
        event = message.decode()
        tasks = broker.queues.setdefault(names.tasks_queue(trainer.group), [])
        if isinstance(event, EvaluateModel):
            tasks.append(Task("task", b"", work=event))
            return
        assert isinstance(event, RoundStart)
        for order in train_tasks(event, self._world.now):
            tasks.append(Task("task", b"", work=order))
            if self._world.nemesis.happens("hear"):  # it dies half-way, and the message is another's
                broker.give_back(names.rounds_queue(trainer.group), [message])
                return

    def _take(self, trainer: Trainer) -> None:
        task = self._world.broker.queues[self._home(trainer)].pop(0)
        if not isinstance(task, Task):  # what a silo hears is its task
            event = task.decode()
            (work,) = train_tasks(event, self._world.now) if isinstance(event, RoundStart) else (event,)
            task = Task("task", b"", work=work)
        if self._is_over(task):
            return
        trainer.busy.append(task)
        self._world.after(self._world.nemesis.training(), lambda: self._finish(trainer, task))

    def _is_over(self, task: Task) -> bool:
        """The end of what it is for was heard; not by everybody."""
        work, exists = task.work, self._world.blobs.exists
        over = exists(names.result_blob(work.job))
        if isinstance(work, TrainTask):
            # Where rounds do not wait for each other, the model that ends a round's work is one of a later round.
            over = over or exists(names.manifest_blob(work.job, work.round + work.spec.max_staleness))
        return over and not self._world.nemesis.happens("unheard")

    def _finish(self, trainer: Trainer, task: Task) -> None:
        if not any(own is task for own in trainer.busy):
            return  # it died meanwhile
        trainer.busy = [own for own in trainer.busy if own is not task]
        fate = self._world.nemesis.training_fate()
        try:
            if isinstance(task.work, EvaluateModel):
                self._evaluate(trainer, task, fate)
            else:
                self._train(trainer, task, fate)
        except Unavailable:
            self._put_back(trainer, task)

    def _put_back(self, trainer: Trainer, task: Task) -> None:
        task.returned += 1
        self._world.broker.queues.setdefault(self._home(trainer), []).append(task)

    def _evaluate(self, trainer: Trainer, task: Task, fate: str) -> None:
        if fate == "die early":
            self._put_back(trainer, task)
            return
        event = task.work
        examples, metrics, members = self.training.evaluate(event)
        self._world.broker.publish(
            ModelEvaluated(
                job=event.job,
                round=event.round,
                model=event.model.digest,
                trainer=trainer.name,
                examples=examples,
                metrics=metrics,
                members=members,
                part=event.part,
            )
        )

    def _train(self, trainer: Trainer, task: Task, fate: str) -> None:
        order = task.work
        if order.base is None and fate in ("wrong base", "wrong shape"):
            fate = "good"  # an initial model has no base, and any shape
        if fate == "die early":
            self._put_back(trainer, task)
            return
        if fate == "vanish":
            return
        if fate in ("stranger", "twice"):
            members = tuple(strangers(order.members)) if fate == "stranger" else (order.client, *order.members)
            state = order.state if fate == "twice" else None
            other = order.model_copy(update={"members": members, "state": state})
            self._train(trainer, replace(task, work=other), "good")
            self._put_back(trainer, task)
            return
        if fate == "error" or task.returned >= TRIES:
            self._publish(self._failed(trainer, task, order.members))
            return
        update = self._learned(trainer, task, fate)
        if fate == "die late":
            self._put_back(trainer, task)
            return
        for _ in range(3 if fate == "repeat" else 1):
            self._publish(update)
        if fate in ("nan", "wrong base", "wrong shape", "repeat"):
            self._put_back(trainer, task)  # a good answer follows

    def _learned(self, trainer: Trainer, task: Task, fate: str) -> ModelUpdate:
        """The update of an order; of a batch, a part may fail, or be silent."""
        order = task.work
        failing = order.members[:1] if fate.startswith("part") and len(order.members) > 1 else ()
        told = self._told(trainer, task)
        if fate == "part fails":
            told = told.model_copy(update={"failures": dict.fromkeys(failing, "the data is gone")})
        # Nobody asked that training be reproducible.
        salt = str(self._world.random.random()) if fate == "another" else ""
        try:
            return self.training.update(order, told, fate, salt, failing)
        except NotFound as error:  # its state is
            self._world.observer.state_missed(order, str(error))
            return self._failed(trainer, task, order.members)

    def _failed(self, trainer: Trainer, task: Task, clients: tuple[str, ...]) -> ModelUpdate:
        reason = "the data is gone"
        failures = dict.fromkeys(clients, reason) if task.work.is_batch else {}
        return self._told(trainer, task).model_copy(update={"error": reason, "failures": failures})

    def _publish(self, update: ModelUpdate) -> None:
        self._world.broker.publish(update)

    def _told(self, trainer: Trainer, task: Task) -> ModelUpdate:
        """An answer, as yet of nothing."""
        order = task.work
        return ModelUpdate(
            job=order.job,
            round=order.round,
            attempt=order.attempt,
            client=order.client,
            trainer=trainer.name,
            base=order.base.digest if order.base else None,
            update=None,
            examples=0,
            timings={"total": 1 + figure("seconds", order.client)},
            tries=1 + task.returned,
        )
