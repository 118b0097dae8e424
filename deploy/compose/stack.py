"""Stack of one Compose project: its preconditions, its readiness, and its addresses on this machine."""

import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy.compose import docker, variables
from deploy.compose.docker import Container, Project
from deploy.native.state import is_free
from shared.errors import BadInput, Unavailable

ROOT = Path(__file__).parents[2]
SERVERS = ("rabbitmq", "redis", "minio")
SERVICES = ("registry", "aggregator", "trainer", "trainer-gpu")
TOOL = "fedq"  #: the service that runs the command line, with an operator's settings

READY_SECONDS = 120.0  # counted from the last container's start; an idle machine takes 5
STORE_SECONDS = 60.0
POLL_SECONDS = 0.3  # between two readiness checks, for services that send no signal when ready

#: The variable that sets each published port, by service and by the port inside its container.
PORTS = {
    ("rabbitmq", 5672): "AMQP_PORT",
    ("rabbitmq", 15672): "RABBITMQ_PORT",
    ("redis", 6379): "REDIS_PORT",
    ("minio", 9000): "S3_PORT",
    ("minio", 9001): "MINIO_PORT",
    ("registry", 8080): "REGISTRY_PORT",
    ("prometheus", 9090): "PROMETHEUS_PORT",
    ("grafana", 3000): "GRAFANA_PORT",
}

# A proxy from the environment cannot reach 127.0.0.1.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ComposeStack:
    """Compose project, started with the variables of its file; a new file is written with the values of `given`."""

    def __init__(self, project: Project, given: Mapping[str, str] | None = None) -> None:
        self.project = project
        self._given = given

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of compose.yaml as Compose parses it."""
        try:
            return self.project.config()
        except Unavailable as error:
            raise BadInput(f"Compose cannot use {docker.FILE.name} with {self.project.variables}: {error}") from None

    def start(self) -> None:
        """Starts every service that is down, and waits until all of them serve."""
        if not self.project.variables.exists():
            variables.make(self.project.variables, self._given)
        self._check_ports()
        self._build()
        if variables.is_new(self.project.variables):
            self._settle_keys()
        self._compose("up", "--detach", "--remove-orphans")
        self._wait()

    def port(self, service: str, inner: int) -> int:
        """The port of this machine that leads to `inner` of a service."""
        return next(
            int(port["published"]) for port in self.config["services"][service]["ports"] if port["target"] == inner
        )

    def environment(self) -> dict[str, str]:
        """An operator's settings for a process on this machine, outside the containers."""
        found = {}
        for name, value in self.config["services"][TOOL]["environment"].items():
            found[name] = value
            for service, inner in PORTS:
                if f"{service}:{inner}" in value:
                    found[name] = value.replace(f"{service}:{inner}", f"127.0.0.1:{self.port(service, inner)}")
        return found

    def _check_ports(self) -> None:
        """Raises `BadInput` if another process uses a port; ports of running containers belong to this stack."""
        running = {one.service for one in self.project.containers() if one.state in ("running", "restarting")}
        for (service, inner), variable in PORTS.items():
            if service in running or "profiles" in self.config["services"][service]:
                continue
            if not is_free(port := self.port(service, inner)):
                raise BadInput(
                    f"Port {port} of 127.0.0.1 is taken by another process, and {service} wants it:"
                    f" stop that, or set {variable} in {self.project.variables}."
                )

    def _build(self) -> None:
        """Builds the fedq images that this machine lacks; Docker pulls all others."""
        prefix = self.config["services"][TOOL]["image"].rpartition("/")[0]
        wanted = {image for image in self.project.images() if image.startswith(f"{prefix}/")}
        missing = sorted(image for image in wanted if not docker.has_image(image))
        if not missing or "/" in prefix:  # a prefix with a slash names a registry, from which Docker pulls them
            return
        names = [re.sub(r"^.*/|:.*$", "", image) for image in missing]
        print(f"Building {', '.join(names)} (once, some minutes) ...", file=sys.stderr, flush=True)
        tag = missing[0].rpartition(":")[2]
        words = [f"IMAGES={' '.join(names)}", f"IMAGE_PREFIX={prefix}", f"IMAGE_TAG={tag}"]
        if docker.run(["make", "--no-print-directory", "--directory", str(ROOT), "images", *words]):
            raise Unavailable("The images cannot be built: see above, and docs/guide/images.md.")

    def _settle_keys(self) -> None:
        """Gives the trainers the operator's key if the object store cannot create a separate key for them.

        This applies only to a newly generated file of variables: a file that a person wrote stays as it is.
        """
        self._compose("up", "--detach", *SERVERS)
        found, keys = variables.read(self.project.variables), {}
        if not _makes_keys(f"http://127.0.0.1:{self.port('minio', 9000)}"):
            keys["TRAINER_S3_ACCESS_KEY"] = found["MINIO_ROOT_USER"]
            keys["TRAINER_S3_SECRET_KEY"] = found["MINIO_ROOT_PASSWORD"]
            print("The object store is not MinIO: the trainers use the operator's key.", file=sys.stderr)
        variables.settle(self.project.variables, keys)
        del self.config

    def _compose(self, *words: str) -> None:
        if self.project.run(*words):
            self._explain()
            raise Unavailable("Compose could not start the stack: see above.")

    def _explain(self) -> None:
        """Raises `Unavailable` with the last log lines of a container that failed, if one did."""
        for one in self.project.containers():
            if one.state in ("exited", "restarting", "dead") and one.exit_code:
                raise Unavailable(f"{one.service} ended with {one.exit_code}; the end of what it said:\n{one.tail()}")

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        ready: set[str] = set()
        while missing := [one for one in self._serving() if one.name not in ready]:
            for one in missing:
                if one.state == "running" and one.is_ready():
                    ready.add(one.name)
                elif one.exit_code == BadInput.exit_code:  # this code means that a restart would fail the same way
                    self._explain()
            if time.monotonic() > deadline:
                self._explain()
                names = ", ".join(one.name for one in missing)
                raise Unavailable(f"After {READY_SECONDS:.0f} s {names} cannot serve; what is said there: make logs")
            time.sleep(POLL_SECONDS)

    def _serving(self) -> Iterator[Container]:
        return (one for one in self.project.containers() if one.service in SERVICES)


def _makes_keys(url: str) -> bool:
    """Tells whether the object store is MinIO or compatible with it: only those answer this path with success."""
    deadline = time.monotonic() + STORE_SECONDS
    while time.monotonic() < deadline:
        try:
            with _direct.open(f"{url}/minio/health/live", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                return False
        except OSError:
            pass
        time.sleep(POLL_SECONDS)
    raise Unavailable(f"The object store at {url} does not answer within {STORE_SECONDS:.0f} s; see make logs.")
