"""RabbitMQ of another version: an image in place of the native broker, beside native Redis and S3.

The container shares this machine's network and process numbers, so that tests find it by port and by pid as they find
the native one. Freezing it takes root, as signals to another user's process do.
"""

import shlex
import subprocess
from pathlib import Path

from deploy.native.processes import Process
from deploy.native.rabbitmq import RabbitMQ
from deploy.native.stack import Stack
from deploy.native.state import StackState
from shared.errors import Unavailable
from tests.reaper import Reaper

SETTINGS = "/etc/rabbitmq-of-tests"  #: where the container finds what is written for it
STOP_SECONDS = 20


class ContainerRabbitMQ(RabbitMQ):
    """A broker in a container, with the configuration of the native one; its data live as long as the object."""

    def __init__(self, state: StackState, image: str) -> None:
        super().__init__(state, dies_with_parent=True)
        self.image = image
        self._container = ""
        self._reaper: Reaper | None = None

    @property
    def process_names(self) -> tuple[str, ...]:
        return (self.name,)  # its epmd is inside

    def launch(self) -> None:
        if not self._container:
            self.configure()
            (self.directory / "rabbitmq.conf").chmod(0o644)  # for the container's user; the folder is ours alone
            self._container = self._create()
            self._reaper = Reaper(f"docker rm --force --volumes {self._container}")
        docker("start", self._container)
        pid = int(docker("inspect", "--format", "{{.State.Pid}}", self._container))
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) if pid else 0
        self.state.add(Process(self.name, pid, ticks, self.log))

    def _create(self) -> str:
        environment = {
            "RABBITMQ_NODENAME": "fedq@localhost",
            "RABBITMQ_CONFIG_FILE": f"{SETTINGS}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{SETTINGS}/enabled_plugins",
            "RABBITMQ_DIST_PORT": str(self.state.ports["distribution"]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self.state.ports["epmd"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the node: the container's pid is the broker's
        }
        variables = [f"--env={name}={value}" for name, value in environment.items()]
        mount = f"--volume={self.directory}:{SETTINGS}:ro"
        return docker("create", "--network=host", mount, *variables, self.image)

    def stop(self) -> None:
        docker("stop", f"--time={STOP_SECONDS}", self._container)

    def kill(self) -> None:
        if self.running():
            docker("kill", self._container)

    def remove(self) -> None:
        """End it and forget its data."""
        if self._reaper is not None:
            self._reaper.release()
        self._container, self._reaper = "", None

    def control(self, *arguments: str) -> None:
        docker("exec", self._container, "rabbitmqctl", *arguments)

    def _failure(self, process: Process) -> Unavailable:  # noqa: ARG002 - it has but the one
        return Unavailable(f"{self.image} ended while it started:\n{docker('logs', '--tail=30', self._container)}")


class ContainerStack(Stack):
    """The native stack, but for its broker."""

    def __init__(self, directory: Path, image: str) -> None:
        super().__init__(directory)
        self.broker = self.rabbitmq = ContainerRabbitMQ(self.state, image)
        self.servers = (self.rabbitmq, self.redis, self.s3)

    def __exit__(self, *error: object) -> None:
        try:
            self.kill()
        finally:
            self.broker.remove()


def docker(*arguments: str) -> str:
    """Runs the command of that name; its standard output. `Unavailable` with its words where it fails."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise Unavailable(f"{shlex.join(['docker', *arguments])} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()
