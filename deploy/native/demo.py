"""Demo: one whole training to watch, in a separate stack that leaves nothing behind."""

import os
import shutil
import sys
from pathlib import Path

from deploy.native import overview, processes, services
from deploy.native.stack import Stack
from shared.errors import BadInput

TRAINERS = 2
STOP_SECONDS = 5.0  # short, because the services' remaining work is discarded anyway


def run(job: Path, directory: Path) -> int:
    """Starts everything, trains, stops everything; the exit code and the last line are those of `fedq start`."""
    fedq = Path(sys.executable).with_name("fedq")
    if not fedq.exists():
        raise BadInput("fedq is not installed beside this Python: run `make venv`.")
    if not job.exists():
        raise BadInput(f"There is no job file {job}.")
    stack = Stack(directory)
    try:
        print("Starting RabbitMQ, Redis, S3 and fedq's services ...", flush=True)
        stack.start()
        services.start(stack, trainers=TRAINERS)
        print(overview.places(stack), flush=True)
        return processes.run([fedq, "start", job, "--watch"], environment={**os.environ, **stack.environment()})
    finally:
        services.stop(stack, grace=STOP_SECONDS)
        stack.kill()
        shutil.rmtree(stack.directory, ignore_errors=True)
