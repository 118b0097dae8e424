"""The stack in containers, as a test sees it: started as `make up` starts it, asked from outside, hurt, and removed."""

import json
import os
import shlex
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.compose import docker, variables
from deploy.compose.docker import Project
from deploy.compose.stack import PORTS, ComposeStack
from deploy.native.rabbitmq import RabbitMQ
from deploy.native.stack import Role
from deploy.native.state import StackState
from shared.errors import Unavailable
from tests.conftest import Servers
from tests.faults import federation, step
from tests.harness import until
from tests.reaper import Reaper

VHOST = "fedq"
SECONDS = 120.0  #: for what takes a few on a machine that does nothing else
TRAINERS = 2  #: where nobody scales
LONG = 60  #: rounds of a job that is hurt more than once


class Containers:
    """One project of Compose under a name and on ports of its own."""

    def __init__(self, folder: Path) -> None:
        code = folder / "code"
        code.mkdir()
        shutil.copy(step.__file__, code / "step.py")  # what CODE_DIR is for
        state = StackState(folder)
        state.choose_ports(PORTS.values())
        ports = {name: str(port) for name, port in state.ports.items()}
        self.project = Project(f"fedq-test-{os.getpid()}", folder / ".env")
        images = {name: os.environ[name] for name in ("IMAGE_PREFIX", "IMAGE_TAG") if name in os.environ}
        self.stack = ComposeStack(self.project, {**ports, **images, "CODE_DIR": str(code), "FEDQ_ALLOW": "step."})
        self.rabbitmq = RabbitMQ(state, dies_with_parent=False)  # for its management API alone
        state.ports["management"] = state.ports["RABBITMQ_PORT"]
        every = shlex.join([*self.words(), "--profile", "*"])
        volumes = f"docker volume ls --quiet --filter label=com.docker.compose.project={self.project.name}"
        self._reaper = Reaper(  # volumes of a test's own compose file too, which `down` does not know
            f"{every} kill; {every} down --volumes --remove-orphans; {volumes} | xargs -r docker volume rm"
        )

    def start(self) -> None:
        self.stack.start()
        self.rabbitmq.state.secrets["operator"] = self.variables["RABBITMQ_PASSWORD"]

    def remove(self) -> None:
        self._reaper.release()

    @property
    def variables(self) -> dict[str, str]:
        """What is in its `.env`."""
        return variables.read(self.project.variables)

    def environment(self, role: Role = "operator", *, vhost: str = VHOST) -> dict[str, str]:
        """`FEDQ_*` for a process outside the containers, as `make up` writes them."""
        found = self.stack.environment()
        if role == "trainer":
            found = {name: value for name, value in found.items() if name.startswith("FEDQ_S3")}
            own, port = self.variables, self.rabbitmq.state.ports["AMQP_PORT"]
            password = own["RABBITMQ_TRAINER_PASSWORD"]
            found["FEDQ_AMQP_URL"] = f"amqp://trainer:{password}@127.0.0.1:{port}/{vhost}"
            found["FEDQ_S3_ACCESS_KEY"] = own["TRAINER_S3_ACCESS_KEY"]
            found["FEDQ_S3_SECRET_KEY"] = own["TRAINER_S3_SECRET_KEY"]
        return found

    # --- by Docker's command line -----------------------------------------------------------

    def words(self) -> list[str]:
        """`docker compose` for this project, as a person types it."""
        return [
            *("docker", "compose", "--project-name", self.project.name),
            *("--file", str(docker.FILE), "--env-file", str(self.project.variables)),
        ]

    def compose(self, *words: str) -> str:
        """What `docker compose …` prints."""
        return said(*self.words(), *words)

    def up(self, *words: str) -> None:
        """What the guide says heals: start what does not run."""
        self.compose("up", "--detach", *words)

    def whole(self) -> bool:
        """Whether all runs that should, with as many trainers as at first."""
        missing = {"rabbitmq", "redis", "minio", "registry", "aggregator"} - {
            one["Config"]["Labels"]["com.docker.compose.service"] for one in self.inspect() if one["State"]["Running"]
        }
        return not missing and len(self.ids("trainer")) == TRAINERS

    def fedq(self, *words: str) -> str:
        """The command line in a container of its own."""
        return self.compose("run", "--rm", "--no-TTY", "fedq", *words)

    def inspect(self, service: str = "") -> list[dict[str, Any]]:
        """What Docker knows of the containers of a service, or of all of them."""
        found = self.compose("--profile", "*", "ps", "--all", "--quiet", *([service] if service else [])).split()
        return list(json.loads(said("docker", "inspect", *found))) if found else []

    def ids(self, service: str) -> list[str]:
        """The running containers of a service."""
        return [one["Id"] for one in self.inspect(service) if one["State"]["Running"]]

    def crash(self, container: str) -> None:
        """SIGKILL from the kernel, as for want of memory: Docker has no part in it, so that it starts it again."""
        pid = json.loads(said("docker", "inspect", container))[0]["State"]["Pid"]
        image = f"{self.variables['IMAGE_PREFIX']}/registry:{self.variables['IMAGE_TAG']}"
        command = ["--pid=host", "--user=0", "--entrypoint=sh", image, "-c", f"kill -9 {pid}"]
        said("docker", "run", "--rm", "--network=none", *command)

    def logs(self) -> str:
        """The end of what each container said."""
        return self.compose("--profile", "*", "logs", "--no-color", "--tail=20")


class Federation(federation.Federation):
    """Jobs on the stack in containers; its trainers and its aggregator are there already."""

    def __init__(self, containers: Containers, logs: Path) -> None:
        self.containers = containers
        super().__init__(Servers(containers, vhost=VHOST, database=0, buses=[]), logs)  # type: ignore[arg-type]

    def document(self, *, count: int = 5, seconds: float = 0.2, **changes: Any) -> dict[str, Any]:
        """A job of `count` rounds, whose step comes from the folder of own code and takes `seconds`."""
        step = {"name": "step:train", "args": {"seconds": seconds}}
        return super().document(train=step, rounds={"count": count, "deadline": "2m"}) | changes

    def expected(self, count: int = 5) -> list[str]:
        """The digests of the first `count` rounds when nothing happens, from a quick job that is run once a session.

        How long a step takes changes none of them.
        """
        if not _undisturbed:
            job = self.submit(count=LONG, seconds=0)
            record = self.ended(job, SECONDS)
            assert record.status == "finished", record.detail
            _undisturbed.extend(self.digests(job))
        return _undisturbed[: count + 1]  # round 0 is the initial model's

    def trained(self, count: int, seconds: float = SECONDS) -> None:
        """Returns when so many trainers are in the roster."""
        roster = self.servers.roster()

        def found() -> bool:
            try:
                return len(roster.alive()) == count
            except Unavailable:
                return False

        until(found, seconds, f"{count} trainers in the roster", detail=self.tails)

    def tails(self) -> str:
        return self.containers.logs()

    def close(self) -> None:
        for bus in self.servers.buses:
            bus.close()


_undisturbed: list[str] = []


def said(*words: str, seconds: float = SECONDS) -> str:
    """What a command prints; AssertionError with its complaint where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, f"{shlex.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def moment(text: str) -> float:
    """A time of Docker's (nanoseconds, UTC) as seconds since the epoch."""
    return datetime.fromisoformat(f"{text[:26].rstrip('Z')}+00:00").timestamp()


def now() -> float:
    """Seconds since the epoch, by the clock that Docker has here as well."""
    return time.time()
