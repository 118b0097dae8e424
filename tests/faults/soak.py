"""A long run of small jobs under chaos: `python -m tests.faults.soak --minutes 30`.

It prints what grows and what does not: memory and descriptors of the processes that lived through all of it, queues,
Redis keys and blobs beyond those that an ended job keeps. The first aggregator and trainer are never killed.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import structlog

from deploy.native.rabbitmq import VHOST
from deploy.native.stack import Stack
from shared import names
from shared.errors import FedqError
from tests.conftest import Servers
from tests.faults.federation import Federation
from tests.faults.nemesis import Nemesis
from tests.harness import until

AT_ONCE = 2
ROUNDS = 4
SMALL: dict[str, Any] = {
    "train": {"name": "tests.faults.step:train", "args": {"seconds": 0.1}},
    "rounds": {"count": ROUNDS, "deadline": "60s"},
    "keep_updates": False,
}
KEYS_A_JOB = 2  #: its hash and, where something went wrong, its log
BLOBS_A_JOB = 3 + 2 * (ROUNDS + 1)  #: job, result, model; of each round a model and its manifest


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # ours, not the services'
    directory = Path(tempfile.mkdtemp(prefix="fedq-soak-"))
    try:
        with Stack(directory / "stack") as stack:
            federation = Federation(Servers(stack, vhost=VHOST, database=0, buses=[]), directory)
            federation.begin()
            try:
                run(federation, options.minutes * 60, options.seed, as_json=options.json)
            finally:
                federation.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(federation: Federation, seconds: float, seed: int, *, as_json: bool) -> None:
    """Keeps `AT_ONCE` jobs running and strikes all the while; measures in calm moments."""
    nemesis = Nemesis(federation, seed)
    ended: list[str] = []
    running: list[str] = []
    began = time.monotonic()
    samples = 10
    for sample in range(samples + 1):
        while time.monotonic() - began < seconds * sample / samples:
            running = tended(federation, nemesis, running, ended)
            nemesis.strike()
        ended += [finished(federation, job) for job in running]
        running = []
        line = measured(federation, nemesis, len(ended))
        line["minutes"] = round((time.monotonic() - began) / 60, 1)
        show(line, as_json=as_json, first=sample == 0)
    print(json.dumps({"strikes": dict(nemesis.done), "jobs": len(ended)}), file=sys.stderr)


def tended(federation: Federation, nemesis: Nemesis, running: list[str], ended: list[str]) -> list[str]:
    """Counts the jobs that have ended, and starts others in their place."""
    left = []
    for job in running:
        record = federation.record(job)
        if record is None or record.status in ("queued", "waiting", "running"):
            left.append(job)
        else:
            ended.append(finished(federation, job))
    while len(left) < AT_ONCE:
        try:
            left.append(federation.submit(**SMALL))
        except AssertionError as error:
            print(f"not started: {str(error)[:200]}", file=sys.stderr)
            break
        nemesis.started = time.monotonic()
    return left


def finished(federation: Federation, job: str) -> str:
    """The job, which must have ended well."""
    record = federation.ended(job, 240)
    assert record.status == "finished", f"{job} {record.status}: {record.detail}"
    return job


def measured(federation: Federation, nemesis: Nemesis, jobs: int) -> dict[str, Any]:
    """What there is now, once the last job's leftovers are gone."""
    servers = federation.servers
    until(lambda: len(servers.roster().alive()) == 2, 60, "two trainers alive", detail=federation.tails)
    line: dict[str, Any] = {"jobs": jobs}
    for name, process in (
        ("aggregator", nemesis.aggregators[0]),
        ("trainer", nemesis.trainers[0]),
    ):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        line[f"{name} MB"] = round(sum(one.memory_info().rss for one in family) / 1e6)
        line[f"{name} fds"] = sum(one.num_fds() for one in family)
    line["processes"] = sum(
        len(psutil.Process(p.pid).children(recursive=True)) + 1 for p in federation.started if p.alive()
    )
    queues = [name for name in federation.queues() if not name.startswith("watcher.")]
    line["queues"] = len(queues)
    keys = servers.redis().keys("*")
    line["Redis keys beyond the jobs'"] = sum(not is_a_jobs(key) for key in keys)
    keys = servers.blobs().list("jobs/")
    line["updates left"] = sum("/updates/" in key for key in keys)
    line["blobs a job"] = round(len(keys) / jobs, 2) if jobs else BLOBS_A_JOB
    return line


def is_a_jobs(key: str) -> bool:
    """Whether an ended job may keep this key."""
    return key.startswith("fedq:job:") and (key.count(":") == 2 or key == names.log_key(key.split(":")[2]))


def show(line: dict[str, Any], *, as_json: bool, first: bool) -> None:
    if as_json:
        print(json.dumps(line), flush=True)
        return
    if first:
        print("| " + " | ".join(line) + " |\n|" + "---|" * len(line))
    print("| " + " | ".join(str(value) for value in line.values()) + " |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except FedqError as error:
        sys.exit(f"error: {error}")
