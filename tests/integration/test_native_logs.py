"""`make logs` without Docker: what all processes say, until somebody has seen enough."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.native import processes
from deploy.native.processes import Process
from deploy.native.state import StackState

ROOT = Path(__file__).parents[2]
SECONDS = 60.0


@contextmanager
def following(directory: Path) -> "Iterator[subprocess.Popen[bytes]]":
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.native", "logs", "--dir", str(directory)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as started:  # fmt: skip
        try:
            yield started
        finally:
            started.kill()


def read_until(stream: int, *wanted: bytes) -> None:
    seen = b""
    while not all(word in seen for word in wanted):
        assert select.select([stream], [], [], SECONDS)[0], f"nothing more after {seen!r}"
        read = os.read(stream, 65536)
        assert read, f"ended after {seen!r}"
        seen += read


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_logs_are_followed_until_they_are_no_longer_wanted(tmp_path: Path, sign: signal.Signals) -> None:
    state = StackState(tmp_path / "stack")
    logs = {name: tmp_path / f"{name}.log" for name in ("registry", "trainer-1")}
    for name, log in logs.items():
        log.write_text(f"{name} is ready\n")
        state.add(Process(name, os.getpid(), processes._stat(os.getpid())[1], log))

    with following(state.directory) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        read_until(process.stdout.fileno(), b"registry is ready", b"trainer-1 is ready")
        with logs["trainer-1"].open("a") as log:
            log.write("a round begins\n")
        read_until(process.stdout.fileno(), b"a round begins")

        process.send_signal(sign)
        assert process.wait(SECONDS) == 0
        assert process.stderr.read() == b""


def test_a_stopped_stack_has_said_its_last(tmp_path: Path) -> None:
    """It is shown, and nobody waits for more."""
    state = StackState(tmp_path / "stack")
    log = tmp_path / "registry.log"
    log.write_text("registry stopped\n")
    state.add(Process("registry", os.getpid(), 0, log))  # another process has its number

    with following(state.directory) as process:
        out, said = process.communicate(timeout=SECONDS)

    assert process.returncode == 0
    assert b"registry stopped" in out
    assert said.decode() == f"Nothing runs in {state.directory}: these are the last lines.\n"


def test_without_a_stack_there_is_nothing_to_follow(tmp_path: Path) -> None:
    with following(tmp_path / "stack") as process:
        _, said = process.communicate(timeout=SECONDS)

    assert process.returncode == 2
    assert said.decode().startswith("No stack was ever started in ")
