"""Trainers that come and go: they hear a round, train its clients in their own time, and sometimes go wrong.

What a client sends is a function of the job's seed, the client, the round and the base model: whoever trains it, and
however often, it is the same update.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shared import names, topology, weights
from shared.errors import Unavailable
from shared.events import BlobRef, EvaluateModel, ModelEvaluated, ModelUpdate, RoundStart, TrainerJoined
from shared.receipts import receipt
from shared.roster import Member
from shared.weights import Flat
from tests.simulation.fakes import Message

if TYPE_CHECKING:
    from tests.simulation.world import World

SLOTS = 2
TRIES = 5  #: as `services.trainer.tasks` has it
LAYOUT = weights.layout_of({"weight": ("F32", (5,)), "bias": ("F32", (3,)), "seen": ("I64", (1,))})


@dataclass
class Task(Message):
    """A client's work in a round, or an evaluation, on a group's queue."""

    work: Any = None
    client: str = ""


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
        self.sound: dict[str, tuple[int, str, str]] = {}  # digest of a good update → its round, client and base

    def begin(self) -> None:
        for trainer in self.all:
            self._world.broker.declare(topology.rounds(trainer.group))
            self._world.broker.queues.setdefault(names.tasks_queue(trainer.group), [])

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
            if queues.get(names.rounds_queue(trainer.group)):
                yield lambda trainer=trainer: self._hear(trainer)
            if queues.get(names.tasks_queue(trainer.group)) and len(trainer.busy) < SLOTS:
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
            self._world.broker.queues.setdefault(names.tasks_queue(trainer.group), [])
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
        for client in event.cohort:
            tasks.append(Task("task", b"", work=event, client=client))
            if self._world.nemesis.happens("hear"):  # it dies half-way, and the message is another's
                broker.give_back(names.rounds_queue(trainer.group), [message])
                return

    def _take(self, trainer: Trainer) -> None:
        task = self._world.broker.queues[names.tasks_queue(trainer.group)].pop(0)
        assert isinstance(task, Task)
        if self._is_over(task):
            return
        trainer.busy.append(task)
        self._world.after(self._world.nemesis.training(), lambda: self._finish(trainer, task))

    def _is_over(self, task: Task) -> bool:
        """A round-end was heard; not by everybody."""
        done = self._world.blobs.exists(names.manifest_blob(task.work.job, task.work.round))
        return isinstance(task.work, RoundStart) and done and not self._world.nemesis.happens("unheard")

    def _finish(self, trainer: Trainer, task: Task) -> None:
        if not any(own is task for own in trainer.busy):
            return  # it died meanwhile
        trainer.busy = [own for own in trainer.busy if own is not task]
        fate = self._world.nemesis.training_fate()
        try:
            if isinstance(task.work, EvaluateModel):
                self._evaluate(trainer, task, fate)
            else:
                self._train(trainer, task, task.work, fate)
        except Unavailable:
            self._put_back(trainer, task)

    def _put_back(self, trainer: Trainer, task: Task) -> None:
        task.returned += 1
        self._world.broker.queues.setdefault(names.tasks_queue(trainer.group), []).append(task)

    def _evaluate(self, trainer: Trainer, task: Task, fate: str) -> None:
        if fate == "die early":
            self._put_back(trainer, task)
            return
        work = task.work
        figures = {"accuracy": int(work.model.digest[:4], 16) / 65536}
        self._world.broker.publish(
            ModelEvaluated(
                job=work.job,
                round=work.round,
                model=work.model.digest,
                trainer=trainer.name,
                examples=9,
                metrics=figures,
            )
        )

    def _train(self, trainer: Trainer, task: Task, work: RoundStart, fate: str) -> None:
        if work.base is None and fate in ("wrong base", "wrong shape"):
            fate = "good"  # an initial model has no base, and any shape
        if fate == "die early":
            self._put_back(trainer, task)
            return
        if fate == "vanish":
            return
        if fate == "stranger":
            self._train(trainer, replace(task, client="stranger"), work, "good")
            self._put_back(trainer, task)
            return
        if fate == "error" or task.returned >= TRIES:
            self._publish(self._update(trainer, task, None, 0).model_copy(update={"error": "the data is gone"}))
            return
        file, examples = self._learn(work, task.client, fate)
        digest = weights.digest_of(file)
        base = work.base.digest if work.base else ""
        claimed = "0" * 64 if fate == "wrong base" else base
        if fate not in ("nan", "wrong base", "wrong shape"):
            self.sound[digest] = work.round, task.client, base
        key = names.update_blob(work.job, work.round, task.client, digest)
        update = self._update(trainer, task, BlobRef(key=key, size=file.nbytes, digest=digest), examples)
        update = update.model_copy(update={"base": claimed or None})
        self._world.blobs.put(key, file, metadata=receipt(update))
        if fate == "die late":
            self._put_back(trainer, task)
            return
        for _ in range(3 if fate == "repeat" else 1):
            self._publish(update)
        if fate in ("nan", "wrong base", "wrong shape", "repeat"):
            self._put_back(trainer, task)  # a good answer follows

    def _publish(self, update: ModelUpdate) -> None:
        self._world.broker.publish(update)

    def _update(self, trainer: Trainer, task: Task, blob: BlobRef | None, examples: int) -> ModelUpdate:
        work = task.work
        return ModelUpdate(
            job=work.job,
            round=work.round,
            attempt=work.attempt,
            client=task.client,
            trainer=trainer.name,
            base=work.base.digest if work.base else None,
            update=blob,
            examples=examples,
            metrics={"client_loss": 1.0 / (1 + work.round)},
            tries=1 + task.returned,
        )

    def _learn(self, work: RoundStart, client: str, fate: str) -> tuple[Any, int]:
        """The file that training gives, and on how many examples."""
        layout = LAYOUT if work.base is None else weights.read_layout(self._world.blobs.get(work.base)).of_updates()
        who = "everybody" if work.base is None else client
        seed = f"{work.spec.seed}/{work.round}/{who}/{work.base.digest if work.base else ''}"
        if fate == "another":  # nobody asked that training be reproducible
            seed += f"/{self._world.random.random()}"
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
        draw = np.random.default_rng(number)
        if fate == "wrong shape":
            layout = weights.layout_of({"weight": ("F32", (7,))})
        file = layout.empty_file()
        file[len(layout.header) :] = 0
        flat: Flat = layout.flat(file)
        flat[:] = draw.normal(0, 0.1, layout.size).astype(np.float32)
        if fate == "nan":
            flat[0] = np.nan
        return file, 1 + number % 20
