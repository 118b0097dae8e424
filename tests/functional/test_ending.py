"""Commands of the stacks leave in order when they are asked to end, and wait for each other aloud."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.native.state import locked
from tests.harness import ROOT, until

CODE = """
import os, signal
from deploy.native.command import end_in_order
end_in_order()
try:
    os.kill(os.getpid(), signal.{sign})
    print("goes on")
finally:
    print("in order")
"""


@pytest.mark.parametrize(
    ("before", "sign", "said", "code"),
    [
        ("", "SIGTERM", "in order\n", 143),
        ("", "SIGHUP", "in order\n", 129),
        ("trap '' HUP;", "SIGHUP", "goes on\nin order\n", 0),
        ("trap '' HUP;", "SIGTERM", "in order\n", 143),
        ("trap '' INT;", "SIGINT", "in order\n", 130),
    ],
    ids=["asked", "the terminal closes", "the terminal closes under nohup", "asked under nohup", "in the background"],
)
def test_a_command_ends_in_order_and_under_nohup_outlives_its_terminal(
    before: str, sign: str, said: str, code: int
) -> None:
    command = ["sh", "-c", f'{before} exec "$0" -S -c "$1"', sys.executable, CODE.format(sign=sign)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == (said, code), done.stderr


def test_who_waits_for_a_lock_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "compose.lock"
    told = []

    def enter() -> None:
        with locked(file):
            pass

    def heard() -> bool:
        told.append(capsys.readouterr().err)
        return "".join(told) == f"Waiting for another command that holds {file} ...\n"

    waits = threading.Thread(target=enter)

    with locked(file):
        assert capsys.readouterr().err == ""
        waits.start()
        until(heard, 60, "a word of who waits")
        assert waits.is_alive()
    waits.join(60)

    assert not waits.is_alive()


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", r"\xfc\u2026"), ("latin-1", "ü\\u2026"), ("utf-8", "ü…")])
def test_a_terminal_that_lacks_a_letter_ends_no_command(tmp_path: Path, encoding: str, shown: str) -> None:
    """The folder's name is on every line of a stack's status."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.native", "status", "--dir", tmp_path / "ü…"],
        cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding) == f"No stack was ever started in {tmp_path}/{shown}.\n"
