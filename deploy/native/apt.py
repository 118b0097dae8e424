"""Debian packages as files, without root: apt with lists, locks and caches of its own."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from shared.errors import Unavailable


class Apt:
    """apt below the folder `state`; `wanted` says, where it fails, what is missing and what to do about it.

    It fetches from where the system does, or from the one `source` (a line of sources.list) alone.
    """

    def __init__(self, state: Path, wanted: str, source: str | None = None) -> None:
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise Unavailable(f"apt is not here to fetch {wanted}.")
        self.archives = state / "archives"
        self._wanted = wanted
        self._complaints: list[str] = []  # `update` only warns when it cannot reach its servers
        for folder in (self.archives / "partial", state / "lists/partial"):
            folder.mkdir(parents=True)
        configuration = state / "apt.conf"
        self._environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"}
        # The system's settings (proxies, say) stay, but for its hooks: those clean the system's caches.
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
            "APT::Sandbox::User": "root",  # means: do not change the user
            "Debug::NoLocking": "true",
        }
        if source is not None:
            (state / "sources.list").write_text(f"{source}\n")
            private |= {"Dir::Etc::sourcelist": str(state / "sources.list"), "Dir::Etc::sourceparts": "/dev/null"}
        configuration.write_text("\n".join([*kept, *(f'{k} "{v}";' for k, v in private.items())]))
        self.run("apt-get", "-q", "update")

    def run(self, *words: str) -> str:
        """Output of an apt command, or `Unavailable` with the reason it gives."""
        done = subprocess.run(
            words, check=False, env=self._environment, cwd=self.archives, capture_output=True, text=True
        )
        self._complaints += [line for line in done.stderr.splitlines() if line.startswith(("W: Failed", "E:"))]
        if done.returncode:
            reason = self._complaints[0][2:].strip() if self._complaints else f"{words[0]} failed"
            raise Unavailable(f"apt cannot fetch {self._wanted} ({reason}).")
        return done.stdout


def mirrors() -> list[str]:
    """Mirrors that the system fetches packages from: addresses below which other releases may be, too."""
    alone = [
        "-o",
        "Debug::NoLocking=true",
        "-o",
        "Dir::State::lists=/nonexistent",
    ]  # says what it would fetch, as if anew
    try:
        done = subprocess.run(
            ["apt-get", *alone, "--print-uris", "update"], check=False, capture_output=True, text=True
        )
    except OSError:
        return []
    return list(dict.fromkeys(re.findall(r"^'(.+)/dists/[^/']+/InRelease'", done.stdout, re.MULTILINE)))
