"""fedq's services as processes of one test: started, asked, killed, frozen, and ended with it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from deploy.native import processes
from deploy.native.processes import Process
from deploy.native.stack import Role
from shared import names
from shared.amqp import topology
from shared.redis.ledger import ENDED, JobRecord
from tests.conftest import Servers

ROOT = Path(__file__).parents[1]
FEDQ = Path(sys.executable).with_name("fedq")
SECONDS = 90

Found = TypeVar("Found")


def until(found: Callable[[], Found], seconds: float, what: str, *, detail: Callable[[], str] = str) -> Found:
    """What `found` gives as soon as it is true; AssertionError with `what` was waited for otherwise."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{detail()}"
        time.sleep(0.05)  # between two looks at a state that nobody tells us of
    return result


@dataclass
class Services:
    """The services of one test, each a process."""

    servers: Servers
    logs: Path
    started: list[Process] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)  # `FEDQ_*` for all of them

    def start(self, service: str, *arguments: str, role: Role = "operator", **environment: str) -> Process:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
        process = processes.spawn(
            f"{service}-{len(self.started)}",
            [sys.executable, "-m", f"services.{service}", *arguments],
            environment={
                **inherited,
                **self.servers.environment(role),
                "PYTHONFAULTHANDLER": "1",
                **self.settings,
                **environment,
            },
            log=self.logs / f"{service}-{len(self.started)}.log",
            directory=ROOT,
            dies_with_parent=True,
        )
        self.started.append(process)
        return process

    def ready(self, process: Process) -> Process:
        """The same process, once it serves; before that, servers that are away end it, and nobody starts it again."""
        until(lambda: _says_ready(process.log), SECONDS, f"{process.name} is ready", detail=self.tails)
        return process

    def trainers(self, count: int = 2, **environment: str) -> list[Process]:
        """Trainers of the pool `cpu`, alive in the roster when this returns."""
        joined = threading.Semaphore(0)
        bus = self.servers.bus("joined")
        bus.serve(topology.Queue("test.joined", ("trainer-joined.cpu",)), lambda _event: joined.release())
        found = [self.start("trainer", "--pool", "cpu", role="trainer", **environment) for _ in range(count)]
        for _ in found:
            assert joined.acquire(timeout=SECONDS), self.tails()
        bus.close()
        self.servers.bus("tidy").delete("test.joined")
        return found

    def all(self, trainers: int = 2) -> None:
        self.start("registry")
        self.start("aggregator")
        self.trainers(trainers)

    def fedq(self, *arguments: str, code: int = 0) -> str:
        """Runs the command line; its standard output."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
        done = subprocess.run(
            [FEDQ, *arguments],
            env={**inherited, **self.servers.environment()},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}\n{self.tails()}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.fedq(*arguments, "--json"))

    def ended(self, job: str, seconds: float = SECONDS) -> JobRecord:
        """A job's record once it has ended; of a server that is away, it waits for the answer."""
        return until(lambda: self._ended(job), seconds, f"the end of {job}", detail=self.tails)

    def _ended(self, job: str) -> JobRecord | None:
        record = self.record(job)
        return record if record and record.status in ENDED else None

    def record(self, job: str) -> JobRecord | None:
        """A job's record; None where Redis does not know it, or does not answer."""
        from shared.errors import Unavailable  # noqa: PLC0415

        try:
            return self.servers.ledger().job(job)
        except Unavailable:
            return None

    def digests(self, job: str) -> list[str]:
        """Every committed round's model."""
        blobs = self.servers.blobs()
        keys = [key for key in blobs.list(names.rounds_prefix(job)) if key.endswith("/manifest.json")]
        return [blobs.get_json(key)["model"]["digest"] for key in keys]

    def kill(self, process: Process) -> None:
        """SIGKILL to the process alone, as the kernel would; what it leaves behind is part of the test."""
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not process.alive(), 10, f"the death of {process.name}")

    def tails(self) -> str:
        return "\n".join(f"--- {process.name}\n{process.tail(30)}" for process in self.started)

    def stacks(self) -> str:
        """Ends what hangs, and shows where each of its threads was."""
        for process in self.started:
            if process.alive():
                os.kill(process.pid, signal.SIGABRT)
                until(lambda process=process: not process.alive(), SECONDS, f"{process.name} is ended")
        return "\n".join(f"--- {process.name}\n{process.tail(200)}" for process in self.started)

    def stop(self, *which: Process, grace: float = 20) -> None:
        processes.stop(which or self.started, grace=grace)


def _says_ready(log: Path) -> bool:
    return '"event": "ready"' in log.read_text()
