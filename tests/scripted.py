"""Jobs whose every step a test says, and the command line as a process of its own."""

import json
import os
import queue
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared import names
from shared.aggregation import fold, weights
from shared.aggregation.fold import Fold, Grid
from shared.aggregation.strategies.averaging import Averaged
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.events import (
    AnyEvent,
    BlobRef,
    JobStatus,
    Missing,
    ModelEvaluated,
    ModelUpdate,
    PauseTraining,
    RoundEnd,
    RoundStart,
    StartTraining,
    StopTraining,
    TrainingEnd,
)
from shared.job.catalog.strategies import FedAvg
from shared.job.job_spec import JobSpec
from shared.record import parts
from shared.redis.ledger import Wanted
from tests.conftest import Servers

fedavg = Averaged(FedAvg()).step

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "examples/digits.yaml")
SECONDS = 60
LAYOUT = weights.layout_of({"w": ("F32", (3, 2)), "b": ("F32", (2,)), "seen": ("I64", ())})
COHORT = ("client-00", "client-01")


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass
class Fedq:
    """Runs `fedq` as a process of its own."""

    environment: dict[str, str]
    folder: Path
    running: list["subprocess.Popen[str]"] = field(default_factory=list)

    def begin(self, *arguments: str, **changes: str) -> "subprocess.Popen[str]":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", *arguments],
            cwd=self.folder,
            env={**inherited, **self.environment, **changes, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def finish(self, process: "subprocess.Popen[str]") -> Done:
        out, err = process.communicate(timeout=SECONDS)
        assert "Traceback" not in err
        return Done(process.returncode, out, err)

    def __call__(self, *arguments: str, **changes: str) -> Done:
        return self.finish(self.begin(*arguments, **changes))


@dataclass
class Scripted:
    """An aggregator and its trainers, doing what a test says."""

    servers: Servers
    bus: Bus
    job: str
    spec: JobSpec
    fence: int
    file: Any = None
    blob: BlobRef | None = None
    opened: float = 0.0
    deadline: float = 0.0

    def say(self, status: str, detail: str) -> None:
        self.servers.ledger().describe(self.job, self.fence, status, detail)
        self.publish(JobStatus.model_validate({"job": self.job, "status": status, "detail": detail}))

    def publish(self, event: Any) -> None:
        self.bus.publish(event, required=False)

    def ask(self, number: int, cohort: tuple[str, ...] = COHORT) -> None:
        deadline = self.servers.ledger().open_round(self.job, self.fence, number, 1, cohort, 60)
        self.opened, self.deadline = deadline - 60, deadline
        told = {"group": "cpu", "round": number, "attempt": 1, "base": self.blob, "spec": self.spec}
        self.publish(RoundStart(job=self.job, cohort=cohort, deadline=deadline, **told))

    def commit(self, number: int, *, accuracy: float | None = None, keep: bool = True) -> None:
        """Both clients answer, and the round becomes a model."""
        ledger, blobs = self.servers.ledger(), self.servers.blobs()
        base, grid = self.blob, Grid(max_abs=4.0, max_weight=64, updates=2)
        folded, updates = Fold(LAYOUT.size, grid), []
        for index, client in enumerate(COHORT if number else COHORT[:1]):
            ref, file = self.upload(number, index)
            entry = {"trainer": "t", "blob": ref.model_dump(), "examples": 10 + index}
            if number:
                deltas = LAYOUT.of_updates().flat(file)
                entry |= vars(fold.check(deltas, 10 + index, grid))
                folded.add(deltas, 10 + index)
            else:
                self.file = file
            updates.append({"client": client, **entry})
            ledger.accept(self.job, self.fence, number, client, entry)
            told = {"round": number, "attempt": 1, "client": client, "trainer": "t", "base": None, "update": ref}
            self.publish(ModelUpdate(job=self.job, examples=10 + index, **told))
        if number:
            folded.apply(LAYOUT.flat(self.file), fedavg)
        digest = weights.digest_of(self.file)
        self.blob = blobs.put(names.model_blob(self.job, number, digest), self.file, digest=digest)
        metrics = {"client_loss": 1.5, "client_accuracy": 0.25} if number else {}
        rejected = {"client-09": "holds NaN or Inf"} if number else {}
        record = {
            "job": self.job, "round": number, "attempt": 1, "fence": self.fence,
            "base": base.model_dump() if base else None,
            "model": self.blob.model_dump(), "strategy": {"name": "fedavg"},
            "grid": {**vars(grid), "shift": grid.shift} if number else None, "weight": folded.weight or 10,
            "cohort": list(COHORT if number else COHORT[:1]), "updates": updates, "rejected": rejected,
            "unanswered": [], "faults": [line for line in ledger.log(self.job) if line["round"] == number],
            "metrics": metrics, "opened": self.opened, "deadline": self.deadline, "committed": ledger.now(),
            "seconds": 1.0,
        }  # fmt: skip
        key = names.manifest_blob(self.job, number)
        blobs.put_json(key, parts.split(blobs, key, record, ("cohort", "updates", "rejected", "unanswered")))
        ledger.close_round(self.job, self.fence, number)
        ledger.commit_round(self.job, self.fence, number)
        if not keep:
            blobs.delete(names.updates_prefix(self.job, number))
        told = {"accepted": len(updates), "rejected": len(rejected), "metrics": metrics, "seconds": 1.0}
        self.publish(RoundEnd(job=self.job, round=number, outcome="committed", model=self.blob, **told))
        if accuracy is not None:
            found = {"round": number, "model": digest, "examples": 9, "metrics": {"loss": 0.5, "accuracy": accuracy}}
            blobs.put_json(names.evaluation_blob(self.job, number), {"job": self.job, **found})
            self.publish(ModelEvaluated(job=self.job, trainer="t", **found))

    def upload(self, number: int, index: int) -> tuple[BlobRef, Any]:
        """The blob of a client's update, and its file; nobody is told."""
        file, base = self._answer(number, index), self.blob.digest if self.blob else ""
        digest = weights.digest_of(file)
        key = names.update_blob(self.job, number, COHORT[index], digest)
        return self.servers.blobs().put(key, file, digest=digest, metadata={"base": base}), file

    def _answer(self, number: int, index: int) -> Any:
        layout = LAYOUT.of_updates() if number else LAYOUT
        file = layout.empty_file()
        file[len(layout.header) :] = 0
        layout.flat(file)[:] = np.random.default_rng([number, index]).normal(0, 0.1, layout.size)
        return file

    def end(
        self,
        outcome: str = "finished",
        reason: str = "",
        *,
        rounds: int = 0,
        announced: bool = True,
        missing: Missing = Missing(),  # noqa: B008 - it is frozen
        **metrics: float,
    ) -> None:
        blobs, model = self.servers.blobs(), None
        if self.blob is not None:
            model = blobs.put(names.final_model_blob(self.job), self.file, digest=self.blob.digest)
        event = TrainingEnd.model_validate({
            "job": self.job, "outcome": outcome, "reason": reason, "rounds": rounds, "metrics": metrics,
            "model": model, "missing": missing, "seconds": 12.34, "fence": self.fence,
        })  # fmt: skip
        blobs.put_json(names.result_blob(self.job), {**event.model_dump(), "started": 1.0, "ended": 2.0})
        self.servers.ledger().end(self.job, self.fence, outcome, reason)
        if announced:
            self.publish(event)
        self.bus.delete(names.updates_queue(self.job))

    def lay_down(self, reason: str) -> None:
        """What a pause comes to, once the open round is committed."""
        self.servers.ledger().want(self.job, Wanted("paused", reason))
        self.servers.ledger().release(self.job, self.fence, "paused", reason)
        self.publish(JobStatus(job=self.job, status="paused", detail=reason))

    def bell(self) -> AnyEvent:
        """The next request of an operator that the mailbox brings."""
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        subscription = self.bus.consume(topology.updates(self.job), inbox.put)
        while True:
            delivery = inbox.get(timeout=SECONDS)
            delivery.ack()
            event: AnyEvent = delivery.decode()
            if isinstance(event, StopTraining | PauseTraining):
                self.bus.cancel(subscription)
                return event


@dataclass
class Aggregator:
    """Takes the jobs that are started, for a test to go on with."""

    servers: Servers
    bus: Bus
    taken: "queue.SimpleQueue[StartTraining]" = field(default_factory=queue.SimpleQueue)

    def listen(self) -> None:
        self.bus.serve(topology.commands(), self.taken.put)  # type: ignore[arg-type]

    def take(self) -> Scripted:
        event = self.taken.get(timeout=SECONDS)
        ledger = self.servers.ledger()
        fence = ledger.claim(event.job, "scripted", 60)
        committed = ledger.required(event.job).round
        if committed >= 0:
            ledger.note("takeover", f"fence {fence}", event.job, committed + 1)
        return Scripted(self.servers, self.bus, event.job, event.spec, fence)
