"""A command whose output is closed, or whose disk is full."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_whose_output_is_closed_does_its_work(closed: str) -> None:
    """A script may start it without any place to write to."""
    command = f"exec {sys.executable} -m services.cli catalog {closed}"
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, timeout=60)
    assert (done.returncode, b"unexpected" in done.stderr) == (0, False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_named() -> None:
    """It is nothing that a debug log would explain."""
    command = f"exec {sys.executable} -m services.cli catalog > /dev/full"
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, timeout=60, text=True)
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written: No space left on device\n")
