"""The first moments of `fedq`."""

import subprocess
import sys

INTERRUPTED_WHILE_IMPORTING = """
import signal, sys

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Importing())
from services.cli.entry import main
main()
"""


def test_ctrl_c_while_it_is_loaded_is_no_traceback() -> None:
    """Exit code 130 and nothing to read, as later."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_IMPORTING], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
