"""What a round of many clients costs: `python -m benchmarks.cohorts --clients 20000 --batch 250 --rounds 3 --json`.

Registry, aggregator, RabbitMQ, Redis and the object store are the real ones. The trainer is not: it is scripted, trains
nothing, and answers each batch with the sum of no change, as fast as it can upload that. So a round is what its clients
cost beside their training. Processor time is a round's mean, and what a busy machine disturbs least.
"""

import argparse
import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rounds import peak_mb, tree
from deploy.native import services
from deploy.native.stack import Stack
from shared import names
from shared.aggregation import weights
from shared.aggregation.weights import File, Layout
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.amqp.connection import Delivery
from shared.events import Heartbeat, Member, ModelUpdate, RoundEnd, RoundStart, StartTraining, TrainingEnd
from shared.job.job_spec import JobSpec, new_job_id, parse
from shared.process import settings
from shared.s3.store import Blobs

VALUES = 1000  #: of the model
AT_ONCE = 8  #: uploads of the scripted trainer
BEAT = 2.0  #: seconds between two heartbeats
PATIENCE = 1800.0  #: seconds without any event before the benchmark gives up
TABLE = (2_000, 20_000, 200_000)  #: clients of a round, where none are given

MODEL = weights.layout_of({"w": ("F32", (VALUES,))})
SUMS = weights.layout_of({"sums": ("I64", (VALUES,))})


def spec(clients: int, population: int, batch: int, rounds: int) -> JobSpec:
    return parse(
        {
            "name": "cohorts",
            "model": {"name": "benchmarks.noise:model"},
            "data": {"name": "benchmarks.noise:data", "clients": population},
            "train": {"name": "benchmarks.noise:step"},
            "select": {"name": "random", "clients": clients},
            "rounds": {"count": rounds, "deadline": "30m", "clients_per_task": batch},
            "evaluate": {"every": 0},
            "pool": services.POOL,
        }
    )


class Trainer:
    """All trainers of the pool, scripted: it uploads and tells what trainers would, without training."""

    def __init__(self, stack: Stack) -> None:
        values = _values(stack, "trainer")
        self._blobs = Blobs(settings.Store.model_validate(values))
        self._bus = Bus(settings.Broker.model_validate(values), "scripted")
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat)
        self._workers = ThreadPoolExecutor(AT_ONCE)

    def __enter__(self) -> "Trainer":
        self._beating.start()
        self._bus.consume(topology.rounds(services.POOL), self._on_round)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        self._workers.shutdown(cancel_futures=True)
        self._bus.close()

    def _beat(self) -> None:
        about = {"trainer": "scripted", "pool": services.POOL, "client": None, "host": "benchmark", "pid": os.getpid()}
        while not self._ended.is_set():
            beat = {**about, "device": "cpu", "slots": AT_ONCE, "busy": 1, "sent_at": time.time()}
            self._bus.publish(Heartbeat.model_validate(beat))
            self._ended.wait(BEAT)

    def _on_round(self, delivery: Delivery) -> None:
        event = delivery.decode()
        delivery.ack()
        if isinstance(event, RoundStart):
            for batch in _batches(event):
                self._workers.submit(self._answer, event, batch)

    def _answer(self, event: RoundStart, batch: tuple[str, ...]) -> None:
        partial = event.base is not None and event.spec.rounds.clients_per_task > 1
        file = _zeros(SUMS if partial else MODEL)
        digest = weights.digest_of(file)
        update = ModelUpdate(
            job=event.job,
            round=event.round,
            attempt=event.attempt,
            client=batch[0],
            trainer="scripted",
            base=event.base.digest if event.base else None,
            update=self._blobs.put(names.update_blob(event.job, event.round, batch[0], digest), file, digest=digest),
            examples=len(batch),
            members=tuple(Member(client=client, examples=1, metrics={"train_loss": 1.0}) for client in batch)
            if partial
            else (),
            timings={"train": 0.0, "total": 0.0},
        )
        self._bus.publish(update, required=False)


def _zeros(layout: Layout) -> File:
    file = layout.empty_file()
    for vector in layout.views(file).values():
        vector[...] = 0
    return file


def _batches(event: RoundStart) -> Iterator[tuple[str, ...]]:
    most = event.spec.rounds.clients_per_task
    for start in range(0, len(event.cohort), most):
        yield event.cohort[start : start + most]


def measure(clients: int, population: int, batch: int, rounds: int) -> dict[str, Any]:
    """Runs one job in a stack of its own and returns the figures."""
    directory = Path(tempfile.mkdtemp(prefix="fedq-bench-"))
    try:
        with Stack(directory) as stack:
            services.start(stack, trainers=0)
            with Trainer(stack):
                figures = listen(stack, spec(clients, population, batch, rounds))
            aggregator = _process(stack, "aggregator")
            figures["aggregator_peak_mb"] = round(sum(peak_mb(pid) for pid in tree(aggregator)), 1)
            services.stop(stack, grace=5)
            return {"clients": clients, "population": population, "batch": batch, "rounds": rounds, **figures}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def listen(stack: Stack, job_spec: JobSpec) -> dict[str, Any]:
    """Starts the job, hears it to its end, and gives seconds of a round: by the clock, and of two processors' time."""
    bus = Bus(settings.Broker.model_validate(_values(stack, "operator")), "bench")
    inbox: queue.SimpleQueue[tuple[float, Delivery]] = queue.SimpleQueue()
    job = new_job_id(job_spec.name)
    watched = {name: _process(stack, name) for name in ("aggregator", "redis")}
    opened: dict[int, float] = {}
    took: list[float] = []
    before: dict[str, float] = {}
    try:
        bus.declare(topology.updates(job))
        bus.consume(topology.watcher("bench", job), lambda delivery: inbox.put((time.monotonic(), delivery)))
        bus.publish(StartTraining(job=job, spec=job_spec))
        while True:
            now, delivery = inbox.get(timeout=PATIENCE)
            event = delivery.decode()
            delivery.ack()
            match event:
                case RoundStart():
                    if event.round == 1 and not before:
                        before = {name: processor(pid) for name, pid in watched.items()}
                    opened.setdefault(event.round, now)
                case RoundEnd() if event.round:
                    if event.accepted < job_spec.cohort_size:
                        raise SystemExit(f"error: round {event.round} has {event.accepted} updates: {event.reason}")
                    took.append(now - opened[event.round])
                case TrainingEnd():
                    if event.outcome != "finished":
                        raise SystemExit(f"error: the job {event.outcome}: {event.reason}")
                    spent = {name: (processor(pid) - before[name]) / len(took) for name, pid in watched.items()}
                    return {
                        "round_s": round(float(np.median(took)), 3),
                        **{f"{name}_cpu_s": round(seconds, 3) for name, seconds in spent.items()},
                    }
    finally:
        bus.close()


def processor(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _process(stack: Stack, name: str) -> int:
    return next(process.pid for known, process in stack.state.processes.items() if known == name)


def _values(stack: Stack, role: Any) -> dict[str, str]:
    return {key.removeprefix("FEDQ_").lower(): value for key, value in stack.environment(role).items()}


def show(row: dict[str, Any]) -> None:
    cells = ("clients", "population", "batch", "round_s", "aggregator_cpu_s", "redis_cpu_s", "aggregator_peak_mb")
    print("| " + " | ".join(f"{row[cell]:,}" for cell in cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cohorts", description=__doc__)
    parser.add_argument("--clients", type=int, help="clients of a round; all of the table's where left out")
    parser.add_argument("--population", type=int, help="clients of the job; as many as a round asks where left out")
    parser.add_argument("--batch", type=int, default=250, help="rounds.clients_per_task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object for each row on standard output")
    options = parser.parse_args()
    if not options.json:
        columns = ("clients", "of", "batch", "round s", "aggregator CPU s", "Redis CPU s", "aggregator MB")
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for clients in TABLE if options.clients is None else (options.clients,):
        row = measure(clients, options.population or clients, options.batch, options.rounds)
        print(json.dumps(row), flush=True) if options.json else show(row)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
