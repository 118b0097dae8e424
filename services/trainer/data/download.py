"""Downloads of torchvision, each in a process of its own: it can be ended, and its limits are nobody else's.

`python -m services.trainer.data.download KIND FOLDER` is that process, KIND a class of `torchvision.datasets`.
"""

import fcntl
import importlib
import re
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

LONGEST = 600.0  #: seconds that a download may take, with the wait for one that another slot has begun
SILENCE = 15.0  #: seconds without a byte from a server, or without its answer to a call
COMMAND = (sys.executable, "-m", "services.trainer.data.download")


def fetch(kind: str, folder: Path, command: tuple[str, ...] = COMMAND, longest: float = LONGEST) -> str:
    """Downloads a data set to `folder`; what prevented it in a few words, or nothing where all went well."""
    try:
        found = subprocess.run(
            [*command, kind, str(folder)], capture_output=True, text=True, timeout=longest, check=False
        )
    except subprocess.TimeoutExpired:  # the process is killed by now
        return f"not done after {longest:g} s"
    if found.returncode == 0:
        return ""
    lines = found.stderr.strip().splitlines()
    return lines[-1] if lines else f"its process ended with {found.returncode}"


def main(kind: str, folder: Path) -> None:
    """Downloads what is not there, one process of a machine at a time; ends with one line that says why not."""
    socket.setdefaulttimeout(SILENCE)  # urllib has none
    make = getattr(importlib.import_module("torchvision.datasets"), kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # a bar for people
                make(folder, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise SystemExit(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The words of the last line that is not empty: torchvision tells of each mirror, and urllib wraps its reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"^(<urlopen error )?(\[Errno -?\d+\] )?(.*?)>?$", r"\3", lines[-1])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
