"""Installation with pip: shows its progress, and pip's full output only if it fails.

This module uses only the standard library, because it runs before anything is installed.
"""

import os
import re
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

TICK_SECONDS = 1.0  #: between two counts of unpacked packages, which pip does not report
LARGE_MB = 20.0  #: size from which a download gets a line if the output is no terminal


def install(directory: Path, what: str, *arguments: str) -> None:
    """Installs the requirements in pip's `arguments` into the environment `directory`; `SystemExit` if pip fails."""
    progress = _Progress(what, directory)
    options = ("--progress-bar=off", "--no-color", "--no-input", "--disable-pip-version-check")
    command: list[str | Path] = [directory / "bin/python", "-m", "pip", "install", *options, *arguments]
    # A user's settings may make pip quiet, but the progress depends on its output lines.
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_QUIET", "PIP_VERBOSE")}
    said: list[str] = []
    with (
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as pip,
        progress,
    ):
        for line in pip.stdout or ():
            said.append(line)
            progress.hear(line)
    if pip.returncode:
        sys.stderr.write("".join(said))
        sys.exit(f"error: pip cannot install {what}: its words are above")
    progress.end()


class _Progress:
    """Progress of pip: one changing line in a terminal, occasional lines elsewhere."""

    def __init__(self, what: str, directory: Path) -> None:
        self._what = what
        self._site = Path(sysconfig.get_path("purelib", vars={"base": str(directory), "platbase": str(directory)}))
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._found = self._told = self._wanted = 0
        self._before = self._unpacked()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> None:
        print(f"Installing {self._what}; a first time fetches what pip has not kept ...", file=sys.stderr, flush=True)
        self._ticker.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticker.join()
        if self._terminal:
            sys.stderr.write("\r\x1b[K")

    def hear(self, line: str) -> None:
        """Processes one line of pip's output."""
        if line.startswith("Collecting "):
            self._found += 1
            self._say(f"package {self._found}, {re.split('[^A-Za-z0-9._-]', line.split()[1])[0]}", stays=False)
        elif fetched := re.match(
            r"\s*(?:Downloading|Using cached) (\S+\.(?:whl|tar\.gz|zip)) \(([\d.]+) (\S+)\)", line
        ):
            name, size, unit = fetched.groups()
            large = unit == "GB" or (unit == "MB" and float(size) >= LARGE_MB)
            self._say(f"package {self._found}, {'-'.join(name.split('-')[:2])} ({size} {unit})", stays=large)
        elif line.startswith("Installing collected packages: "):
            self._wanted = line.count(",") + 1
            self._say(f"unpacking {self._wanted} packages", stays=True)

    def end(self) -> None:
        """Prints the number of packages and the duration."""
        seconds = time.monotonic() - self._began
        print(f"Installed {self._what}: {self._wanted} packages in {seconds:.0f} s.", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            if self._wanted:
                done = min(self._unpacked() - self._before, self._wanted)
                quarter = 4 * done // self._wanted
                self._say(f"{done} of {self._wanted} packages unpacked", stays=quarter > self._told)
                self._told = max(self._told, quarter)

    def _unpacked(self) -> int:
        return len(list(self._site.glob("*.dist-info")))

    def _say(self, text: str, *, stays: bool) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K  {text}")
            sys.stderr.flush()
        elif stays:
            print(f"  {text}", file=sys.stderr, flush=True)
