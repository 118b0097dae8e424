"""Debian packages as files, without root: apt with private lists, locks and caches."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from shared.errors import Unavailable


class Apt:
    """Private apt in the folder `state`; error messages quote `wanted`, the missing program and its remedy.

    It fetches from the system's sources, or only from `source` (a line of sources.list) if one is given.
    """

    def __init__(self, state: Path, wanted: str, source: str | None = None) -> None:
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise Unavailable(f"apt is not here to fetch {wanted}.")
        self.archives = state / "archives"
        self._wanted = wanted
        self._complaints: list[str] = []  # `update` only warns if it cannot reach its servers
        for folder in (self.archives / "partial", state / "lists/partial"):
            folder.mkdir(parents=True)
        configuration = state / "apt.conf"
        self._environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"}
        # The system's settings, such as proxies, stay. Its hooks do not, because they clean the system's caches.
        system = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
        kept = [line for line in system.stdout.splitlines() if "Invoke" not in line]
        private = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::State": str(state),
            "Dir::State::lists": str(state / "lists"),
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": str(state),
            "Dir::Cache::archives": str(self.archives),
            "Dir::Log": str(state),
            "APT::Sandbox::User": "root",  # this value makes apt keep the current user
            "Debug::NoLocking": "true",
        }
        if source is not None:
            (state / "sources.list").write_text(f"{source}\n")
            private |= {"Dir::Etc::sourcelist": str(state / "sources.list"), "Dir::Etc::sourceparts": "/dev/null"}
        configuration.write_text("\n".join([*kept, *(f'{k} "{v}";' for k, v in private.items())]))
        self.run("apt-get", "-q", "update")

    def run(self, *words: str) -> str:
        """Output of an apt command; `Unavailable` with apt's reason if it fails."""
        done = subprocess.run(
            words, check=False, env=self._environment, cwd=self.archives, capture_output=True, text=True
        )
        self._complaints += [line for line in done.stderr.splitlines() if line.startswith(("W: Failed", "E:"))]
        if done.returncode:
            reason = self._complaints[0][2:].strip() if self._complaints else f"{words[0]} failed"
            raise Unavailable(f"apt cannot fetch {self._wanted} ({reason}).")
        return done.stdout


def mirrors() -> list[str]:
    """Mirrors from which the system fetches packages; their base addresses may serve other releases too."""
    # With an empty folder of lists, apt prints every index that it would fetch.
    alone = [
        "-o",
        "Debug::NoLocking=true",
        "-o",
        "Dir::State::lists=/nonexistent",
    ]
    try:
        done = subprocess.run(
            ["apt-get", *alone, "--print-uris", "update"], check=False, capture_output=True, text=True
        )
    except OSError:
        return []
    return list(dict.fromkeys(re.findall(r"^'(.+)/dists/[^/']+/InRelease'", done.stdout, re.MULTILINE)))
