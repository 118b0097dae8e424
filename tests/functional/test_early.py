"""The first moments of a service."""

import subprocess
import sys
from signal import SIGINT, SIGTERM, Signals

import pytest

INTERRUPTED_WHILE_IMPORTING = """
import runpy, signal, sys

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "structlog":
            signal.raise_signal({number})

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Importing())
runpy.run_module("services.{service}", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
@pytest.mark.parametrize("service", ["trainer", "aggregator", "registry"])
def test_a_service_stopped_while_it_is_loaded_ends_in_silence(service: str, number: Signals) -> None:
    """Exit code 0 and nothing to read, as later."""
    code = INTERRUPTED_WHILE_IMPORTING.format(service=service, number=int(number))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
