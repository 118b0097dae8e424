"""What a round costs beyond its training: `python -m benchmarks.rounds --model-mb 1 --clients 4 --rounds 10 --json`.

The real services run over the native stack; the local step only adds noise (`benchmarks.noise`). A round lasts from one
round-start to the next, as a listener on the bus hears them; its overhead is that, less the longest local step in it.
Every round's model is checked against a float64 reference computed apart.
"""

import argparse
import json
import os
import queue
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import noise
from deploy.native import services
from deploy.native.stack import Stack
from shared import names
from shared.aggregation import weights
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.amqp.connection import Delivery
from shared.events import BlobRef, ModelUpdate, RoundEnd, RoundStart, StartTraining, TrainingEnd
from shared.job.job_spec import JobSpec, new_job_id, parse
from shared.process import settings
from shared.s3.store import Blobs

TRAINERS = 2
SEED = 11
PATIENCE = 600.0  #: seconds without any event before the benchmark gives up
TABLE = [(1, 4), (1, 16), (50, 4), (250, 4), (250, 16)]  #: MB and clients of `make bench`


@dataclass
class Round:
    """What the listener heard of one round; times are this process's monotonic seconds."""

    opened: float = 0.0
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    updates: list[ModelUpdate] = field(default_factory=list)


def spec(mb: float, clients: int, rounds: int) -> JobSpec:
    return parse(
        {
            "name": "bench",
            "seed": SEED,
            "model": {"name": "benchmarks.noise:model", "args": {"mb": mb}},
            "data": {"name": "benchmarks.noise:data", "clients": clients},
            "train": {"name": "benchmarks.noise:step"},
            "rounds": {"count": rounds, "deadline": "10m"},
            "evaluate": {"every": 0},
            "pool": services.POOL,
        }
    )


def measure(mb: float, clients: int, rounds: int) -> dict[str, Any]:
    """Runs one job in a stack of its own and returns the figures; AssertionError where a model is wrong."""
    directory = Path(tempfile.mkdtemp(prefix="fedq-bench-"))
    try:
        with Stack(directory) as stack:
            os.environ.setdefault("FEDQ_ALLOW", f"{noise.__name__}.")
            services.start(stack, trainers=TRAINERS)
            heard, final = listen(stack, spec(mb, clients, rounds))
            figures = summary(heard, mb, clients, rounds) | peaks(stack)
            verify(stack, final, clients)
            services.stop(stack, grace=5)
            return figures
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def listen(stack: Stack, job_spec: JobSpec) -> tuple[dict[int, Round], TrainingEnd]:
    """Starts the job and hears it to its end."""
    values = {key.removeprefix("FEDQ_").lower(): value for key, value in stack.environment().items()}
    bus = Bus(settings.Broker.model_validate(values), "bench")
    inbox: queue.SimpleQueue[tuple[float, Delivery]] = queue.SimpleQueue()
    job = new_job_id(job_spec.name)
    rounds: dict[int, Round] = defaultdict(Round)
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
                    rounds[event.round].opened = now
                    rounds[event.round - 1].ended = now
                case ModelUpdate():
                    rounds[event.round].arrivals.append(now)
                    rounds[event.round].updates.append(event)
                    if event.error:
                        raise SystemExit(f"error: {event.client} failed: {event.error}")
                case RoundEnd() if event.outcome == "committed":
                    rounds[event.round].ended = now
                case TrainingEnd():
                    if event.outcome != "finished":
                        raise SystemExit(f"error: the job {event.outcome}: {event.reason}")
                    return rounds, event
    finally:
        bus.close()


def summary(heard: dict[int, Round], mb: float, clients: int, rounds: int) -> dict[str, Any]:
    """The figures over rounds 1 to `rounds`; round 0 only makes the initial model."""
    measured = [heard[number] for number in range(1, rounds + 1)]
    overhead = [one.ended - one.opened - max(update.timings["train"] for update in one.updates) for one in measured]
    tail = [1000 * (one.ended - max(one.arrivals)) for one in measured]
    dispatch = []
    for one in measured:
        # When a task began is when its update was heard less what it took; only the first ones found a free slot.
        began = sorted(at - up.timings["total"] for at, up in zip(one.arrivals, one.updates, strict=True))
        dispatch += [1000 * (at - one.opened) for at in began[:TRAINERS]]
    updates = [update for one in measured for update in one.updates]
    return {
        "model_mb": mb,
        "clients": clients,
        "rounds": rounds,
        "overhead_s": quantiles(overhead, 4),
        "tail_ms": quantiles(tail, 1),
        "dispatch_ms": quantiles(dispatch, 1),
        "bytes_up": sum(update.update.size for update in updates if update.update),
        "bytes_down": sum(update.downloaded for update in updates),
    }


def quantiles(values: list[float], digits: int) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), digits) for q in (50, 95)}


def peaks(stack: Stack) -> dict[str, float]:
    """Peak resident memory of the aggregator, and of the trainer (with its children) that took most."""
    by_role: dict[str, list[float]] = defaultdict(list)
    for process in services.own(stack):
        by_role[process.name.partition("-")[0]].append(sum(peak_mb(pid) for pid in tree(process.pid)))
    return {f"{role}_peak_mb": round(max(by_role[role]), 1) for role in ("aggregator", "trainer")}


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for tasks in Path(f"/proc/{pid}/task").iterdir():
        for child in (tasks / "children").read_text().split():
            found += tree(int(child))
    return found


def peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    return 0.0


def verify(stack: Stack, final: TrainingEnd, clients: int) -> None:
    """Holds every round's model against the float64 mean of the clients' noise on the model before it."""
    values = {key.removeprefix("FEDQ_").lower(): value for key, value in stack.environment().items()}
    blobs = Blobs(settings.Store.model_validate(values))
    everybody = spec(1, clients, 1).clients
    total = sum(noise.examples(client) for client in everybody)
    before: weights.Flat | None = None
    for number in range(final.rounds + 1):
        record = blobs.get_json(names.manifest_blob(final.job, number))
        file = blobs.get(BlobRef.model_validate(record["model"]))
        layout = weights.read_layout(file)
        after = layout.flat(file)
        if before is not None:
            mean = np.zeros(noise.BLOCK)
            for client in everybody:
                mean += noise.block(client, number, SEED).astype(np.float64) * noise.examples(client) / total
            size = layout.size // noise.TENSORS
            for start in range(0, layout.size, size):
                for piece in noise.pieces(size):
                    at = slice(start + piece.start, start + piece.stop)
                    expected = before[at] + mean[: piece.stop - piece.start]
                    worst = float(np.max(np.abs(after[at] - expected)))
                    # A client's own float32 subtraction rounds each delta by half a unit in the last place of ~1.
                    assert worst < 5e-7, f"round {number}: the model is off by {worst}"
        before = after


def show(rows: list[dict[str, Any]]) -> None:
    print("| model MB | clients | overhead s p50 / p95 | tail ms p50 / p95 | dispatch ms p50 / p95 |", end="")
    print(" aggregator MB | trainer MB |\n|---|---|---|---|---|---|---|")
    for row in rows:
        figures = [f"{row[name]['p50']} / {row[name]['p95']}" for name in ("overhead_s", "tail_ms", "dispatch_ms")]
        print(f"| {row['model_mb']:g} | {row['clients']} | {' | '.join(figures)} |", end="")
        print(f" {row['aggregator_peak_mb']} | {row['trainer_peak_mb']} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__)
    parser.add_argument("--model-mb", type=float, help="size of the model in MB; all of the table's where left out")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    wanted = TABLE if options.model_mb is None else [(options.model_mb, options.clients)]
    if min(options.rounds, options.clients, *(mb for mb, _ in wanted)) <= 0 or max(mb for mb, _ in wanted) > 4000:
        parser.error("--model-mb, --clients and --rounds are positive, and a model has at most 4000 MB")
    rows = [measure(mb, clients, options.rounds) for mb, clients in wanted]
    if options.json:
        print(json.dumps(rows[0] if len(rows) == 1 else rows))
    else:
        show(rows)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
