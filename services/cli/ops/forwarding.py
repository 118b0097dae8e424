"""Local ports that lead to a Service of a cluster, through `kubectl port-forward`."""

import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from services.cli.ops.orchestrators import tools
from services.cli.ui import output
from shared.errors import FedqError, Unavailable

#: Ports below the range of outgoing connections: a client of a port that is briefly closed never connects to itself.
PORTS = range(20_000, 32_000)
TRIES = 3  #: another process may take a chosen port in the same moment
OPENING = 20.0  #: seconds within which a port must open
BACKOFF = (0.5, 30.0)  #: seconds before a closed port is opened again, at first and at most
LASTED = 60.0  #: seconds that a port must have been open for the next wait to be short again
ENDING = 5.0  #: seconds for kubectl to end

_random = random.SystemRandom()


class Forward:
    """Forwarded ports of one Service. When its pod ends, kubectl ends too, and the ports are opened to another pod."""

    def __init__(self, command: Callable[..., list[str]], to: str, ports: Sequence[int]) -> None:
        self._command = command
        self._to = to
        self._ports = _chosen(ports)
        self._open = threading.Event()
        self._ended: FedqError | None = None  # the error with which kubectl ended before any port was open
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._keep, name=f"forward-{to}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        process = self._process
        if process is not None:
            process.terminate()
        self._thread.join(ENDING)
        if process is not None and process.poll() is None:
            process.kill()

    def local(self, port: int) -> int:
        """The local port that leads to a port of the Service; `Unavailable` if it could not be opened in time."""
        if not self._open.wait(OPENING):
            raise Unavailable(f"there is no way to service {self._to}: kubectl opened none within {OPENING:g} s")
        if self._ended is not None:
            raise self._ended
        return self._ports[port]

    def _keep(self) -> None:
        delay, tries = BACKOFF[0], 1
        while not self._stopping.is_set():
            began = time.monotonic()
            error = self._forward()
            if self._stopping.is_set():
                return
            if not self._open.is_set():
                if "listen" in str(error) and tries < TRIES:
                    tries += 1
                    self._ports = _chosen(list(self._ports))
                    continue
                self._ended = error
                self._open.set()
                return
            delay = BACKOFF[0] if time.monotonic() - began > LASTED else min(2 * delay, BACKOFF[1])
            output.note(f"the way to service {self._to} was lost, and is opened again in {delay:g} s: {error}")
            self._stopping.wait(delay)

    def _forward(self) -> FedqError:
        """Runs kubectl until it ends, and returns the reason."""
        pairs = [f"{local}:{port}" for port, local in self._ports.items()]
        words = self._command("port-forward", "--address=127.0.0.1", f"service/{self._to}", *pairs)
        try:
            process = self._process = tools.begin(words, subprocess.STDOUT)
        except FedqError as error:
            return error
        if self._stopping.is_set():
            process.terminate()
        opened, said = 0, ""
        with process:
            for line in process.stdout or ():
                if line.startswith("Forwarding from"):
                    opened += 1
                    if opened == len(self._ports):
                        self._open.set()
                elif not line.startswith("Handling connection"):
                    said = line
        return tools.failure(words, said, process.returncode)


def _chosen(ports: Sequence[int]) -> dict[int, int]:
    """Chooses a free local port for each port of a Service."""
    free = (port for port in _random.sample(PORTS, len(PORTS)) if _is_free(port))
    return dict(zip(ports, free, strict=False))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
