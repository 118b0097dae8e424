"""Demo: one whole training to watch, in separate containers that leave nothing behind."""

import os
import random
import sys
import tempfile
from pathlib import Path

from deploy.compose import overview
from deploy.compose.docker import Project
from deploy.compose.stack import PORTS, TOOL, ComposeStack
from deploy.native.state import PORTS as CHOICE
from deploy.native.state import is_free
from shared.errors import BadInput


def run(job: Path) -> int:
    """Starts everything, trains, removes everything; the exit code and the last line are those of `fedq start`."""
    if not job.exists():
        raise BadInput(f"There is no job file {job}.")
    with tempfile.TemporaryDirectory(prefix="fedq-demo-") as folder:
        project = Project(f"fedq-demo-{os.getpid()}", Path(folder) / ".env")
        stack = ComposeStack(project, _free_ports())
        try:
            print("Starting RabbitMQ, Redis, MinIO and fedq's services in containers ...", flush=True)
            stack.start()
            print(overview.places(stack), flush=True)
            return _train(project, job)
        finally:
            remove(project)


def remove(project: Project) -> None:
    """Kills the containers without grace, as their data is not needed, and removes them with their volumes."""
    project.run("--profile", "*", "kill", quiet=True)
    project.run("--profile", "*", "down", "--volumes", "--remove-orphans", quiet=True)


def _train(project: Project, job: Path) -> int:
    """Runs `fedq start --watch` in a container that sees the job file, as the calling user, at their terminal."""
    words = ["run", "--rm", "--no-deps", "--interactive=false", "--user", f"{os.getuid()}:{os.getgid()}"]
    if not sys.stdout.isatty():
        words.append("--no-TTY")
    return project.run(
        *words, "--volume", f"{job.resolve().parent}:/jobs:ro", TOOL, "start", f"/jobs/{job.name}", "--watch"
    )


def _free_ports() -> dict[str, str]:
    """Chooses a free port of this machine for each port of the stack, so that it can run next to another stack."""
    free = (str(port) for port in random.SystemRandom().sample(CHOICE, len(CHOICE)) if is_free(port))
    return dict(zip(PORTS.values(), free, strict=False))
