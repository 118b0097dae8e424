"""The aggregator's side of a job, by hand: for tests of real trainers."""

import os
import queue
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kombu import Connection, Producer

from services.trainer.data import dataset
from services.trainer.models import catalog
from services.trainer.models.flat import FlatModel
from services.trainer.train_task import CONTENT_ENCODING, CONTENT_TYPE, Task
from shared import names
from shared.aggregation.weights import File
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.events import AnyEvent, BlobRef, EvaluateModel, Heartbeat, ModelEvaluated, ModelUpdate, RoundEnd, RoundStart
from shared.job import job_spec
from shared.job.job_spec import JobSpec
from shared.s3.store import Blobs

ROOT = Path(__file__).parents[1]
WAIT = 60.0  #: seconds; for what takes a fraction of one on a machine with nothing else to do

OWN = """
    import os, time
    from pathlib import Path
    import numpy as np

    class Ward:
        shape, classes = (2,), 2
        def client(self, name, index):
            x = np.arange(8.0).reshape(4, 2) + index
            return x, np.array([0, 1, 0, 1])
        def test(self):
            return None

    def broken(model, x, y, *, client, round, seed):
        raise ZeroDivisionError("no such luck")

    def patient(model, x, y, *, client, round, seed, stopped, signs, seconds):
        Path(signs, f"{client}-{round}-began").touch()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stopped():
            time.sleep(0.01)
        return {}

    def brief(model, x, y, *, client, round, seed, signs):
        time.sleep(0.2)
        Path(signs, f"{client}-{round}-ended").touch()
        return {}

    def deadly(model, x, y, *, client, round, seed, signs):
        from torch.utils.data import DataLoader
        batches = iter(DataLoader(range(1000), num_workers=1))
        next(batches)
        Path(signs, f"helper-{batches._workers[0].pid}").touch()
        os.kill(os.getpid(), 9)
"""


class Servers(Protocol):
    """The part of the fixture in `conftest` that is used here."""

    stack: Any
    vhost: str

    def environment(self, role: Any = ...) -> dict[str, str]: ...
    def settings(self, kind: Any, role: Any = ...) -> Any: ...
    def bus(self, app: str = ...) -> Bus: ...
    def blobs(self) -> Blobs: ...


class Federation:
    """The aggregator's side of a job, by hand, and the trainers of the test."""

    def __init__(self, servers: Servers, directory: Path) -> None:
        self.servers, self.directory = servers, directory
        self.bus, self.blobs = servers.bus(), servers.blobs()
        self.job = job_spec.new_job_id("digits")
        self.updates: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self.heartbeats: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self.processes: list[subprocess.Popen[str]] = []
        self.bus.serve(topology.updates(self.job), self.updates.put)
        self.bus.serve(topology.heartbeats(), self.heartbeats.put)
        (directory / "own_job.py").write_text(textwrap.dedent(OWN))

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """A trainer, running when this returns."""
        process = self.launch(*arguments, **environment)
        self.heartbeat(lambda heartbeat: heartbeat.pid == process.pid)
        return process

    def launch(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
        with (self.directory / "log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.trainer", *arguments],
                cwd=self.directory,
                env={
                    **inherited,
                    **self.servers.environment("trainer"),
                    "PYTHONPATH": str(ROOT),
                    "FEDQ_HEARTBEAT_S": "0.1",
                    "FEDQ_CACHE_DIR": str(self.directory / "cache"),
                    "FEDQ_STATE_DIR": str(self.directory / "state"),
                    **environment,
                },
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def ask(
        self,
        number: int,
        *cohort: str,
        base: BlobRef | None = None,
        spec: JobSpec,
        group: str = "cpu",
        attempt: int = 1,
        **more: Any,
    ) -> None:
        """Opens a round for these clients."""
        self.bus.publish(
            RoundStart(
                job=self.job,
                group=group,
                round=number,
                attempt=attempt,
                base=base,
                cohort=cohort,
                spec=spec,
                deadline=0,
                **more,
            )
        )

    def trained(self, number: int, *cohort: str, base: BlobRef, spec: JobSpec, **more: Any) -> list[ModelUpdate]:
        """What these clients answer to a round, in the order of the cohort; none with an error."""
        self.ask(number, *cohort, base=base, spec=spec, **more)
        tasks = -(-len(cohort) // spec.rounds.clients_per_task)
        found = {update.client: update for update in (self.update() for _ in range(tasks))}
        assert {update.error for update in found.values()} == {None}
        return [found[client] for client in cohort if client in found]

    def evaluated(self, model: BlobRef, spec: JobSpec, *clients: str, number: int = 1, **more: Any) -> ModelEvaluated:
        """How good a model is on what these clients hold out, or on the test set."""
        asked = {"job": self.job, "group": "cpu", "round": number, "model": model, "spec": spec, "clients": clients}
        self.bus.publish(EvaluateModel.model_validate({**asked, **more}))
        found = self.updates.get(timeout=WAIT)
        assert isinstance(found, ModelEvaluated)
        return found

    def file(self, update: ModelUpdate) -> File:
        """What an update sent."""
        assert update.update is not None
        return self.blobs.get(update.update)

    def update(self) -> ModelUpdate:
        found = self.updates.get(timeout=WAIT)
        assert isinstance(found, ModelUpdate)
        return found

    def publish_task(self, task: Task, queue: str = names.tasks_queue("cpu"), **changes: Any) -> None:
        """A task as a trainer publishes it, or changed: `headers` are added, all else takes its place."""
        parts = {
            "body": task.body,
            "content_type": CONTENT_TYPE,
            "content_encoding": CONTENT_ENCODING,
            "correlation_id": task.identity,
            "exchange": names.TASKS,
            "routing_key": queue,
        }
        headers = {**task.headers, **changes.pop("headers", {})}
        url = self.servers.environment("trainer")["FEDQ_AMQP_URL"]
        with Connection(url) as connection:
            Producer(connection).publish(**{**parts, **changes}, headers=headers)

    def initial(self, spec: JobSpec, group: str = "cpu") -> BlobRef:
        """Round 0: the model that the rounds of a test begin with."""
        self.ask(0, group if spec.silos else spec.clients[0], spec=spec, group=group)
        found = self.update()
        assert found.update is not None, found.error
        return found.update

    def given(self, spec: JobSpec) -> BlobRef:
        """The same model, by no trainer."""
        data = dataset.load(spec)
        model = FlatModel(catalog.build(spec.model, tuple(data.shape), data.classes, spec.seed), spec.train)
        return self.blobs.put(f"jobs/{self.job}/given", model.save())

    def end(self, number: int, outcome: Any = "committed", **changes: Any) -> None:
        """Says that a round is over."""
        event = RoundEnd(job=self.job, round=number, outcome=outcome, accepted=0, rejected=0, **changes)
        self.bus.publish(event)

    def waiting(self, name: str = "") -> int:
        """Messages that are ready in the queue of tasks, or another."""
        return (self.bus.depth(name or names.tasks_queue("cpu")) or (0, 0))[0]

    def left_behind(self) -> set[str]:
        """What is where the trainers of this node keep what they share and what is theirs, but the locks."""
        cache = self.directory / "cache"
        found = {path.name for path in (*cache.glob("*.part"), *(cache / "trainers").iterdir())}
        return found - {"lock"}

    def heartbeat(self, wanted: Callable[[Heartbeat], bool]) -> Heartbeat:
        """The next heartbeat that is `wanted`."""
        deadline = time.monotonic() + WAIT
        while True:
            found = self.heartbeats.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(found, Heartbeat) and wanted(found):
                return found

    def log(self) -> str:
        return (self.directory / "log").read_text()


def digits(**changes: Any) -> JobSpec:
    document: dict[str, Any] = {
        "name": "digits",
        "seed": 7,
        "model": {"name": "softmax"},
        "data": {"name": "digits", "clients": 10},
        "train": {"epochs": 2, "batch_size": 16},
        "rounds": {"count": 3},
        "pool": "cpu",
    }
    return job_spec.parse({**document, **changes})


Found = TypeVar("Found")


def until(condition: Callable[[], Found], what: str) -> Found:
    """What `condition` returns as soon as it is true, by the deadline."""
    deadline = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {WAIT:g} s: {what}"
        time.sleep(0.01)
    return found
