"""Docker Compose as orchestrator: the project that runs here, found by the labels of its containers."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from services.cli.ops.orchestrators import tools
from services.cli.ops.orchestrators.tools import Source
from shared.errors import BadInput

MARKS = {"aggregator", "registry"}  #: services that identify a project as fedq's
SERVERS = {"rabbitmq", "redis", "minio", "prometheus", "grafana", "setup", "fedq"}  #: services without lines about jobs
CHOICE = "COMPOSE_PROJECT_NAME"  #: Docker's variable that chooses the project

_LABEL = "com.docker.compose."
_LABELS = ("project", "service", "project.config_files", "project.working_dir", "project.environment_file")


@dataclass(frozen=True)
class ComposeContainer:
    """Container of a Compose project, described by its labels."""

    project: str
    service: str
    files: str
    directory: str
    settings: str
    state: str


@dataclass(frozen=True)
class Compose:
    """Running Compose project of fedq."""

    project: str
    containers: tuple[ComposeContainer, ...]

    name = "compose"

    @property
    def place(self) -> str:
        return f"compose project {self.project}"

    @cached_property
    def services(self) -> set[str]:
        """All services in the project's files, including those of profiles."""
        return set(tools.run([*self._compose, "--profile=*", "config", "--services"]).split())

    def count(self, pool: str) -> int:
        """Number of a pool's trainers that run."""
        service = self._service(pool)
        return sum(one.service == service and one.state == "running" for one in self.containers)

    def scale(self, pool: str, wanted: int) -> str:
        """Starts or stops containers of the pool's service; describes the change in a sentence."""
        service = self._service(pool)
        words = ["up", "--detach", "--no-recreate", "--no-deps", f"--scale={service}={wanted}", service]
        tools.run([*self._compose, *words], seconds=tools.CHANGE)
        return f"service {service} of {self.place}"

    def sources(self, follow: bool) -> list[Source]:
        """The logs of the project's services, including those that have ended."""
        services = sorted({one.service for one in self.containers} - SERVERS)
        words = ["docker", "compose", f"--project-name={self.project}", "logs", "--no-color", "--tail=all"]
        return [Source(None, (*words, *(["--follow"] if follow else []), *services))]

    def _service(self, pool: str) -> str:
        service = "trainer" if pool == "cpu" else f"trainer-{pool}"
        if service not in self.services:
            raise BadInput(
                f"{self.place} has no service {service}, whose containers would be the trainers of pool {pool}; it has "
                f"{', '.join(sorted(self.services - SERVERS))}"
            )
        return service

    @property
    def _compose(self) -> list[str]:
        """Start of a `docker compose` command with the files of fedq's services: others may come from a later file."""
        one = min(self.containers, key=lambda one: (one.service not in MARKS, one.state != "running"))
        files = one.files.split(",")
        if gone := [file for file in files if not Path(file).exists()]:
            raise BadInput(f"{self.place} was started from {', '.join(gone)}, which is not there any more")
        settings = [file for file in one.settings.split(",") if file]
        return [
            *("docker", "compose", f"--project-name={self.project}", f"--project-directory={one.directory}"),
            *(f"--file={file}" for file in files),
            *(f"--env-file={file}" for file in settings),
        ]


def find() -> Compose | None:
    """The fedq project that runs here, or None; `BadInput` if there are several and none is chosen."""
    found = _projects(_containers())
    running = {name: every for name, every in found.items() if any(one.state == "running" for one in every)}
    chosen = os.environ.get(CHOICE)
    if chosen:
        running = {name: every for name, every in running.items() if name == chosen}
    if len(running) > 1:
        raise BadInput(f"fedq runs in several compose projects, {', '.join(sorted(running))}: choose by {CHOICE}=NAME")
    return next((Compose(name, tuple(every)) for name, every in running.items()), None)


def _projects(containers: Iterable[ComposeContainer]) -> dict[str, list[ComposeContainer]]:
    found: dict[str, list[ComposeContainer]] = {}
    for one in containers:
        found.setdefault(one.project, []).append(one)
    return {name: every for name, every in found.items() if {one.service for one in every} >= MARKS}


def _containers() -> list[ComposeContainer]:
    fields = " ".join(f'{{{{json (.Label "{_LABEL}{label}")}}}}' for label in _LABELS)
    lines = tools.run(
        ["docker", "ps", "--all", f"--filter=label={_LABEL}project", f"--format={fields} {{{{json .State}}}}"]
    ).splitlines()
    return [ComposeContainer(*_words(line)) for line in lines]


def _words(line: str) -> list[str]:
    """Parses a line of JSON strings, separated by single characters."""
    decoder, words, place = json.JSONDecoder(), [], 0
    while place < len(line):
        word, place = decoder.raw_decode(line, place)
        words.append(str(word))
        place += 1  # skips the space between two strings
    return words
