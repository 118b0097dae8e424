"""Ports of this machine that lead to a Service of a cluster, by `kubectl port-forward`."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from services.cli import output
from services.cli.orchestrators import tools
from shared.errors import Unavailable

OPENING = 20.0  #: seconds until a port must be open
BACKOFF = (0.5, 30.0)  #: seconds until a closed port is opened again, at first and at most
LASTED = 60.0  #: seconds that one must have been open for the next wait to be short again
ENDING = 5.0  #: seconds for kubectl to end in


class Forward:
    """One Service's ports. kubectl ends when the pod behind them does; then they are opened again, to another pod."""

    def __init__(self, command: Callable[..., list[str]], to: str, ports: Sequence[int]) -> None:
        self._command = command
        self._to = to
        self._ports = dict.fromkeys(ports, 0)  # of the Service → of this machine; 0: any that is free
        self._open = threading.Event()
        self._ended = ""  # why it ended before it was open
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
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
        self._thread.join(ENDING)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def local(self, port: int) -> int:
        """The port here that leads to a port of the Service; `Unavailable` where none could be opened in time."""
        if not self._open.wait(OPENING) or self._ended:
            reason = self._ended or f"kubectl opened none within {OPENING:g} s"
            raise Unavailable(f"there is no way to service {self._to}: {reason}")
        return self._ports[port]

    def _keep(self) -> None:
        delay = BACKOFF[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            reason = self._forward()
            if self._stopping.is_set():
                return
            if not self._open.is_set():
                self._ended = reason
                self._open.set()
                return
            delay = BACKOFF[0] if time.monotonic() - began > LASTED else min(2 * delay, BACKOFF[1])
            output.note(f"the way to service {self._to} was lost ({reason}); trying again in {delay:g} s")
            self._stopping.wait(delay)

    def _forward(self) -> str:
        """Runs kubectl until it ends; its last word."""
        pairs = [f"{local or ''}:{port}" for port, local in self._ports.items()]
        words = self._command("port-forward", "--address=127.0.0.1", f"service/{self._to}", *pairs)
        process = tools.begin(words, subprocess.STDOUT)
        self._process = process
        if self._stopping.is_set():
            process.terminate()
        opened: list[int] = []
        last = ""
        with process:
            for line in process.stdout or ():
                # In the order that they were asked for; what stands behind the arrow is the pod's port.
                if found := re.match(r"Forwarding from 127\.0\.0\.1:(\d+) ->", line):
                    opened.append(int(found[1]))
                    if len(opened) == len(self._ports):
                        self._ports = dict(zip(self._ports, opened, strict=True))
                        self._open.set()
                elif not line.startswith("Handling connection"):
                    last = line.strip() or last
        return last.removeprefix("error: ") or f"kubectl ended with {process.returncode}"
