"""Runs the stack in whichever way this machine supports: `python3 -m deploy up|down|demo|logs|status`.

The stack runs in containers if a Docker Engine with Compose answers, and as ordinary processes if none does or if
such processes already run; `STACK=compose` or `STACK=native` overrides this. This module needs only the standard
library; the processes run from `.venv`, which `up` and `demo` fill first.
"""

import os
import subprocess
import sys
from pathlib import Path

from shared.errors import BadInput, FedqError

COMMANDS = ("up", "down", "demo", "logs", "status")
STARTS = ("up", "demo")
SETTINGS = Path(".fedq/env")  #: the settings of the running stack
ENVIRONMENT = Path(".venv")
RUNS = ENVIRONMENT / ".runs"  #: its mtime is the time of the last installation into `.venv`
SOURCES = (Path("pyproject.toml"), Path("constraints.txt"))
PATIENCE = 10.0  #: seconds for Docker to answer; a daemon that hangs counts as absent


def main() -> None:
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command not in COMMANDS:
        sys.exit(f"error: say one of {', '.join(COMMANDS)}, such as python3 -m deploy up")
    try:
        chosen, python = stack(), sys.executable
        if chosen == "native":
            if command in STARTS:
                fill()
            elif not RUNS.exists():
                raise BadInput("no stack was ever started here: make up starts one")
            python = str(ENVIRONMENT / "bin/python")
        os.execv(python, [python, "-m", f"deploy.{chosen}", command])  # noqa: S606 - there is no shell to start without
    except FedqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def stack() -> str:
    """Returns `compose` or `native`; `BadInput` if `STACK` is neither."""
    asked = os.environ.get("STACK", "")
    if asked in ("compose", "native"):
        return asked
    if asked:
        raise BadInput(f"there is no stack {asked}: STACK is native or compose")
    return "native" if _native_runs() or not _docker_answers() else "compose"


def fill() -> None:
    """Installs the stack's requirements into `.venv`, unless this was done since they last changed."""
    if RUNS.exists() and all(source.stat().st_mtime <= RUNS.stat().st_mtime for source in SOURCES):
        return
    from deploy.native import bootstrap  # noqa: PLC0415 - not needed with containers

    bootstrap.main(ENVIRONMENT, "stack")
    RUNS.touch()


def _native_runs() -> bool:
    """Returns whether a native stack wrote the settings last, which its cache folder in `.fedq/stack` shows."""
    try:
        lines = SETTINGS.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("FEDQ_CACHE_DIR=") and "/.fedq/stack/" in line for line in lines)


def _docker_answers() -> bool:
    try:
        for words in (("compose", "version"), ("version",)):
            subprocess.run(["docker", *words], capture_output=True, check=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


if __name__ == "__main__":
    main()
