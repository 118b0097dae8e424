"""State of a stack between commands: its secrets, ports and processes, readable by its owner only."""

import fcntl
import json
import os
import random
import secrets
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from deploy.native.processes import Process

#: Ports below the range of outgoing connections: the port of a server that is down stays free for it, and a
#: client that calls a missing server never connects to itself.
PORTS = range(20_000, 32_000)
_random = random.SystemRandom()  # a seed set by the caller must not give two stacks the same ports


class StackState:
    """The file `stack.json` of one stack."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.file = self.directory / "stack.json"
        self.secrets: dict[str, str] = {}
        self.ports: dict[str, int] = {}
        self.processes: dict[str, Process] = {}
        if self.file.exists():
            saved = json.loads(self.file.read_text())
            self.secrets, self.ports = saved["secrets"], saved["ports"]
            for process in saved["processes"]:
                self.processes[process["name"]] = Process(**{**process, "log": Path(process["log"])})

    def add(self, process: Process) -> None:
        """Records a process on disk immediately, so that `down` finds it whatever happens next."""
        self.processes[process.name] = process
        self.save()

    def save(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        processes = [{**asdict(process), "log": str(process.log)} for process in self.processes.values()]
        saved = {"secrets": self.secrets, "ports": self.ports, "processes": processes}
        write_private(self.file, json.dumps(saved, indent=2))

    def secret(self, name: str) -> str:
        """A random password, the same at every call with this name."""
        return self.secrets.setdefault(name, secrets.token_urlsafe(24))

    def choose_ports(self, names: Iterable[str], *, anew: bool = False) -> None:
        """Keeps the previous ports that are free and chooses the others; `anew` replaces all of them."""
        for name in names:
            if anew or not is_free(self.ports.get(name, 0)):
                taken = set(self.ports.values())
                self.ports[name] = next(
                    port for port in _random.sample(PORTS, len(PORTS)) if port not in taken and is_free(port)
                )

    def running(self) -> list[Process]:
        return [process for process in self.processes.values() if process.alive()]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds a lock that ends with this process at the latest; prints a note if it has to wait for another holder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another command that holds {file} ...", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_private(path: Path, text: str) -> None:
    """Writes a file atomically, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.rename(path)


def is_free(port: int) -> bool:
    """Tells whether no process uses this port on 127.0.0.1 or on all addresses."""
    if port == 0:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
