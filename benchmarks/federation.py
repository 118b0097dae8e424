"""Whole jobs on the real services, and what their record says of them."""

import queue
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.native import services
from deploy.native.stack import Stack
from shared import names
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.amqp.connection import Delivery
from shared.events import StartTraining, TrainingEnd
from shared.job import job_spec
from shared.job.job_spec import JobSpec
from shared.process import settings
from shared.record import parts
from shared.s3.store import Blobs, NotFound

PATIENCE = 300.0  #: seconds without any event before a job is given up


@dataclass(frozen=True)
class Outcome:
    """What a job came to."""

    end: TrainingEnd
    manifests: tuple[dict[str, Any], ...]  # of round 1 on
    figures: dict[int, dict[str, float]]  # round → the model's evaluation

    @property
    def accuracy(self) -> float:
        """Of the last model that was evaluated."""
        return self.figures[max(self.figures)]["accuracy"]

    def rounds_to(self, target: float) -> int | None:
        """The first round whose model is that accurate."""
        return next((number for number, found in sorted(self.figures.items()) if found["accuracy"] >= target), None)

    def seconds_to(self, target: float) -> float | None:
        """From the opening of round 1 to the commit of the first model that is that accurate."""
        number = self.rounds_to(target)
        if not number:
            return None
        return float(self.manifests[number - 1]["committed"] - self.manifests[0]["opened"])

    @property
    def bytes_up(self) -> int:
        """Of all updates that are in a model."""
        blobs = {
            update["blob"]["key"]: update["blob"]["size"] for found in self.manifests for update in found["updates"]
        }
        return sum(blobs.values())

    @property
    def seconds(self) -> list[float]:
        """How long each round was open."""
        return [found["seconds"] for found in self.manifests]


@contextmanager
def federation(trainers: int = 2) -> Iterator[Stack]:
    """The stack with services of its own, gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="fedq-bench-"))
    try:
        with Stack(directory) as stack:
            services.start(stack, trainers=trainers)
            yield stack
            services.stop(stack, grace=5)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(stack: Stack, spec: JobSpec, *, may_fail: bool = False) -> Outcome:
    """Runs a job to its end; `SystemExit` with the reason where it does not finish and is to."""
    values = {key.removeprefix("FEDQ_").lower(): value for key, value in stack.environment().items()}
    bus, blobs = Bus(settings.Broker.model_validate(values), "bench"), Blobs(settings.Store.model_validate(values))
    inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    job = job_spec.new_job_id(spec.name)
    try:
        bus.declare(topology.updates(job))
        bus.consume(topology.watcher("bench", job), inbox.put)
        bus.publish(StartTraining(job=job, spec=spec))
        while True:
            delivery = inbox.get(timeout=PATIENCE)
            event = delivery.decode()
            delivery.ack()
            if isinstance(event, TrainingEnd):
                break
    finally:
        bus.close()
    if event.outcome != "finished" and not may_fail:
        raise SystemExit(f"error: {job} {event.outcome}: {event.reason}")
    numbers = range(event.rounds + 1)
    manifests = tuple(parts.whole(blobs, names.manifest_blob(job, number)) for number in numbers[1:])
    return Outcome(event, manifests, dict(_figures(blobs, job, numbers)))


def _figures(blobs: Blobs, job: str, numbers: range) -> Iterator[tuple[int, dict[str, float]]]:
    for number in numbers:
        try:
            yield number, blobs.get_json(names.evaluation_blob(job, number))["metrics"]
        except NotFound:
            continue
