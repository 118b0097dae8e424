"""Processes in separate sessions: starts them, recognizes them later by pid, and ends them in order."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.native import die_with_parent

#: The kernel kills a child started with `dies_with_parent` when the *thread* that forked it ends. One thread that
#: lives as long as this process therefore forks all children.
_forker = ThreadPoolExecutor(1, thread_name_prefix="forker")
#: Children of this process, which must be waited for or they stay behind as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}
_DIE_WITH_PARENT = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
RUN_GRACE_SECONDS = 5.0  # time for an interrupted command to restore the terminal


@dataclass(frozen=True)
class Process:
    """Process that was started here; `started`, in clock ticks, distinguishes it from a later one of the same pid."""

    name: str
    pid: int
    started: int
    log: Path

    def alive(self) -> bool:
        """Tells whether the process runs: it exists, is no zombie, and is the one that was started."""
        state, started = _stat(self.pid)
        if state in "ZX":
            child = _children.get(self.pid)
            if child is not None and child.poll() is not None:
                del _children[self.pid]
            return False
        return started == self.started

    def tail(self, lines: int = 15) -> str:
        """The last lines of the process's log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def spawn(
    name: str,
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    log: Path,
    directory: Path | None = None,
    dies_with_parent: bool,
) -> Process:
    """Starts a command without a terminal; with `dies_with_parent` it ends with this process, even by SIGKILL."""
    words = [*(_DIE_WITH_PARENT if dies_with_parent else []), *map(str, command)]
    log.parent.mkdir(parents=True, exist_ok=True)

    def fork() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                words,
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which then stops the child in order
            )

    child = _forker.submit(fork).result()
    _children[child.pid] = child
    return Process(name, child.pid, _stat(child.pid)[1], log)


def run(command: Sequence[str | Path], *, environment: Mapping[str, str], directory: Path | None = None) -> int:
    """Runs a command in the foreground with this process's output streams, and returns its exit code."""
    words = [*_DIE_WITH_PARENT, *map(str, command)]
    child = subprocess.Popen(
        words, env=dict(environment), cwd=directory, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return child.wait()
    finally:
        if child.returncode is None:  # an interrupt ended the wait above
            stop([Process("", child.pid, _stat(child.pid)[1], Path(os.devnull))], grace=RUN_GRACE_SECONDS)
            child.wait()


def stop(processes: Iterable[Process], *, grace: float) -> None:
    """Asks all processes to end, waits up to `grace` seconds, then kills the rest of their process groups."""
    _end(processes, signal.SIGTERM, grace)


def kill(*processes: Process) -> None:
    """Kills the processes immediately, as a crash would."""
    _end(processes, signal.SIGKILL, 0)


def _end(processes: Iterable[Process], sign: signal.Signals, grace: float) -> None:
    running: dict[int, Process] = {}
    waiting = select.poll()
    try:
        for process in processes:
            if (descriptor := _open(process)) is not None:
                running[descriptor] = process
                waiting.register(descriptor, select.POLLIN)
                signal.pidfd_send_signal(descriptor, sign)
        deadline = time.monotonic() + grace
        pending = set(running)
        while pending:
            left = deadline - time.monotonic()
            for descriptor, _ in waiting.poll(max(left, 0) * 1000):
                waiting.unregister(descriptor)
                pending.discard(descriptor)
                _kill_group(running[descriptor])  # the process has ended, but its children may still run
            if left <= 0:
                for descriptor in pending:
                    _kill_group(running[descriptor])
                deadline = time.monotonic() + 1  # SIGKILL takes effect as soon as the kernel lets it
    finally:
        for descriptor, process in running.items():
            os.close(descriptor)
            process.alive()  # this call reaps the process if it is a zombie


def _open(process: Process) -> int | None:
    """Opens a pidfd of exactly this process, which a later process of the same pid cannot take over."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if process.alive():
        return descriptor
    os.close(descriptor)
    return None


def _kill_group(process: Process) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _stat(pid: int) -> tuple[str, int]:
    """The state letter and the start time, in clock ticks, of a process; ("X", 0) if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    fields = text.rpartition(")")[2].split()  # the command's name, in brackets, may hold spaces and brackets
    return fields[0], int(fields[19])
