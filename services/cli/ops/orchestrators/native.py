"""Native stack without Docker: the processes that `make up` started in this folder, and their log files."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli.ops.orchestrators.tools import Source
from shared.errors import BadInput
from shared.process import settings

STACK = Path(".fedq/stack")  #: the folder that `make up` uses; its `stack.json` lists the processes
SERVERS = {"rabbitmq", "redis", "seaweedfs"}  #: processes without lines about jobs


@dataclass(frozen=True)
class Native:
    """Native stack in one folder."""

    directory: Path
    processes: tuple[Any, ...]

    name = "native"

    @property
    def place(self) -> str:
        return f"the stack in {os.path.relpath(self.directory)}"

    @property
    def runs(self) -> bool:
        return any(_started(one["pid"]) == one["started"] for one in self.processes)

    def count(self, pool: str) -> int:
        raise self._unscaled(pool)

    def scale(self, pool: str, wanted: int) -> str:  # noqa: ARG002 - part of the interface
        raise self._unscaled(pool)

    def _unscaled(self, pool: str) -> BadInput:
        return BadInput(
            f"{self.place} has no orchestrator: each `python -m services.trainer --pool {pool}` is one trainer more"
        )

    def sources(self, follow: bool) -> list[Source]:
        """The log file of each service from its first line on, even if the service has ended."""
        logs = [Path(one["log"]) for one in self.processes if one["name"] not in SERVERS]
        words = ("tail", "--quiet", "--bytes=+1", *(["--follow=name", "--retry"] if follow else []))
        return [Source(log.stem, (*words, str(log))) for log in logs if follow or log.exists()]


def find() -> Native | None:
    """The stack started in this folder or a parent, or None; a stopped stack still has its logs."""
    for folder in settings.searched():
        with suppress(FileNotFoundError):
            state = json.loads((folder / STACK / "stack.json").read_text())
            return Native(folder / STACK, tuple(state["processes"]))
    return None


def _started(pid: int) -> int:
    """Start time of a process in clock ticks, which differs for a later process of the same pid; -1 if none runs."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    fields = text.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])
