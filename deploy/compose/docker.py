"""Docker and its Compose plugin, called by their command lines; each of their failures becomes one sentence."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.compose import variables
from shared.errors import Unavailable

FILE = Path(__file__).with_name("compose.yaml")
OLDEST_COMPOSE = (2, 24, 4)  #: the first version that knows `!override`, which the guide uses
NATIVE = "or run the stack without Docker: make up STACK=native"
ANSWER_SECONDS = 20.0  # limit for an answer of Docker's daemon
GRACE_SECONDS = 5.0  # time for an interrupted command to restore the terminal


def check() -> None:
    """Raises `Unavailable` unless a Docker Engine answers on this machine and Compose is new enough."""
    if shutil.which("docker") is None:
        raise Unavailable(f"Docker is not installed: see https://docs.docker.com/engine/install, {NATIVE}.")
    try:
        version = _said("docker", "compose", "version", "--short")
    except Unavailable:
        raise Unavailable(f"This Docker has no Compose v2: install docker-compose-plugin, {NATIVE}.") from None
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if found < OLDEST_COMPOSE:
        oldest = ".".join(map(str, OLDEST_COMPOSE))
        raise Unavailable(f"Docker Compose {version} is too old: install {oldest} or newer, {NATIVE}.")
    try:
        _said("docker", "version", "--format", "{{.Server.Version}}")
    except Unavailable as error:
        raise Unavailable(f"Docker's daemon does not answer ({error}): start it, {NATIVE}.") from None


def has_image(name: str) -> bool:
    """Tells whether an image is on this machine."""
    return subprocess.run(["docker", "image", "inspect", name], check=False, capture_output=True).returncode == 0


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    quiet: bool = False,
    grace: float = GRACE_SECONDS,
) -> int:
    """Runs a command in the foreground and returns its exit code; `quiet` discards its output.

    The command gets a separate session, so that Ctrl-C reaches only this process; after an interrupt, the command has
    `grace` seconds to end.
    """
    output = subprocess.DEVNULL if quiet else None
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        return child.wait()
    finally:
        if child.returncode is None:
            if grace:
                child.terminate()
            try:
                child.wait(grace)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@dataclass(frozen=True)
class Container:
    """Container of a Compose project."""

    name: str
    service: str
    state: str  #: running, exited, restarting, created, paused, dead
    health: str  #: healthy, unhealthy, starting; empty without a health check
    exit_code: int

    @property
    def condition(self) -> str:
        """State and health of the container in a few words."""
        if self.state == "running":
            return self.health or "up"
        return f"{self.state} ({self.exit_code})" if self.state in ("exited", "restarting") else self.state

    @property
    def done(self) -> bool:
        """Tells whether the container has done its work and ended, as `setup` does."""
        return self.state == "exited" and self.exit_code == 0 and self.service == "setup"

    def tail(self, lines: int = 8) -> str:
        """The last lines that the container logged."""
        done = subprocess.run(
            ["docker", "logs", "--tail", str(lines), self.name],
            check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout.strip()

    def is_ready(self) -> bool:
        """Tells whether this fedq service serves; checks directly, because the next probe may be seconds away."""
        done = subprocess.run(
            ["docker", "exec", self.name, "test", "-e", "/tmp/fedq/ready"],  # noqa: S108 - in the container
            check=False, capture_output=True,
        )  # fmt: skip
        return done.returncode == 0


class Project:
    """The stack of `compose.yaml` under one project name, with the variables of one file."""

    def __init__(self, name: str, variables: Path) -> None:
        self.name = name
        self.variables = variables

    def run(self, *words: str, quiet: bool = False, grace: float = GRACE_SECONDS) -> int:
        """Runs `docker compose` for this project in the foreground and returns its exit code."""
        return run(self._command(*words), environment=self._environment(), quiet=quiet, grace=grace)

    def config(self) -> dict[str, Any]:
        """The Compose file with every variable filled in; `Unavailable` names a variable that is missing."""
        words = self._command("--profile", "*", "config", "--format", "json")
        found: dict[str, Any] = json.loads(_said(*words, environment=self._environment()))
        return found

    def images(self) -> list[str]:
        """Images of the services that `up` starts, by the profiles chosen in the file or in this environment."""
        return _said(*self._command("config", "--images"), environment=self._environment()).split()

    def containers(self) -> list[Container]:
        """All containers of any profile, sorted by name, except those of `run`, which may end at any time."""
        label = "label=com.docker.compose"
        filters = ["--filter", f"{label}.project={self.name}", "--filter", f"{label}.oneoff=False"]
        names = _said("docker", "ps", "--all", "--quiet", *filters).split()
        if not names:
            return []
        found = []
        for one in json.loads(_said("docker", "inspect", *names)):
            state = one["State"]
            health = state.get("Health", {}).get("Status", "")
            name, service = one["Name"].lstrip("/"), one["Config"]["Labels"]["com.docker.compose.service"]
            found.append(Container(name, service, state["Status"], health, state["ExitCode"]))
        return sorted(found, key=lambda container: container.name)

    def _command(self, *words: str) -> list[str]:
        file = self.variables if self.variables.exists() else variables.EXAMPLE
        return ["docker", "compose", "-p", self.name, "-f", str(FILE), "--env-file", str(file), *words]

    def _environment(self) -> dict[str, str]:
        """This process's environment; placeholders let `down` still work if the file of variables is gone."""
        if self.variables.exists():
            return dict(os.environ)
        return {name: "gone" for name, value in variables.read(variables.EXAMPLE).items() if not value} | os.environ


def _said(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """Output of a command; `Unavailable` with the last line of its standard error if it fails."""
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=ANSWER_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"no answer within {ANSWER_SECONDS:.0f} s") from None
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(complaints[-1].strip() if complaints else f"{words[0]} ended with {done.returncode}")
    return done.stdout.strip()
