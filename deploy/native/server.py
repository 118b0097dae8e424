"""Base class of the servers: configures, starts, awaits and stops one server."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from deploy.native import debs, processes
from deploy.native.debs import ServerPrograms
from deploy.native.processes import Process
from deploy.native.state import StackState
from shared.errors import Unavailable

START_SECONDS = 60.0  # RabbitMQ takes 7 to 10 on two idle cores
POLL_SECONDS = 0.05  # between two readiness checks, as the servers send no signal when ready


class PortTaken(Unavailable):
    """Error raised if another process binds one of the chosen ports first."""


class Server(ABC):
    """Server of a stack; its data and configuration are in `<stack>/<name>`, its log in `<stack>/logs`."""

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]]
    grace: ClassVar[float] = 20.0  #: seconds to end in order before the server is killed

    def __init__(self, state: StackState, *, dies_with_parent: bool) -> None:
        self.state = state
        self.dies_with_parent = dies_with_parent
        self.directory = state.directory / self.name

    @property
    def process_names(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def process(self) -> Process:
        return self.state.processes[self.name]

    @property
    def programs(self) -> ServerPrograms:
        return debs.find()  # found here, not at construction, because stopping a server needs no programs

    @property
    def log(self) -> Path:
        return self.state.directory / "logs" / f"{self.name}.log"

    @property
    def ports(self) -> dict[str, int]:
        return {name: self.state.ports[name] for name in self.port_names}

    def start(self) -> None:
        """Starts the server on its previous ports and data, and waits until it serves."""
        self.launch()
        self.wait()

    def stop(self) -> None:
        processes.stop(self.running(), grace=self.grace)

    def kill(self) -> None:
        """Kills the server as a crash would, without a chance to write anything."""
        processes.kill(*self.running())

    def restart(self) -> None:
        self.stop()
        self.start()

    def launch(self) -> None:
        """Starts the server without waiting, so that servers can start in parallel."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.configure()
        self.spawn(self.name, self.command(), environment=self.environment())

    def wait(self) -> None:
        """Waits until the server serves, and prepares it for use."""
        self.until(self.serves)

    def until(self, ready: Callable[[], bool]) -> None:
        """Waits until `ready` returns true; `Unavailable` if the server ends or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            for process in self.own():
                if not process.alive():
                    raise self._failure(process)
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{self.name} is not ready after {START_SECONDS:.0f} s; the end of its log {self.log}:\n"
                    f"{self.process.tail()}"
                )
            time.sleep(POLL_SECONDS)

    def own(self) -> list[Process]:
        """The processes that the server needs to serve, as far as they were started."""
        found = (self.state.processes.get(name) for name in self.process_names)
        return [process for process in found if process is not None]

    def running(self) -> list[Process]:
        """The server's processes that are alive."""
        return [process for process in self.own() if process.alive()]

    def spawn(self, name: str, command: Sequence[str | Path], *, environment: dict[str, str]) -> None:
        process = processes.spawn(
            name,
            command,
            environment={**self.programs.environment, "HOME": str(self.directory), **environment},
            log=self.log,
            directory=self.directory,
            dies_with_parent=self.dies_with_parent,
        )
        self.state.add(process)

    def _failure(self, process: Process) -> Unavailable:
        last = process.tail(200)  # Erlang prints many lines after the reason
        # epmd exits without a message if another process has its port.
        if process.name != self.name or "in use" in last or "eaddrinuse" in last:
            return PortTaken(f"A port of {self.name} is taken by another process; try again.")
        return Unavailable(f"{self.name} ended while it started; the end of its log {self.log}:\n{process.tail()}")

    @abstractmethod
    def configure(self) -> None:
        """Writes the server's configuration."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]: ...

    def environment(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def serves(self) -> bool:
        """Returns whether the server performs its function, which an open port or a listing does not prove."""
