"""Servers of one stack, started in parallel and stopped together."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from deploy.native import debs
from deploy.native.rabbitmq import VHOST, RabbitMQ
from deploy.native.redis_server import RedisServer
from deploy.native.seaweedfs import BUCKET, SeaweedFS
from deploy.native.server import PortTaken, Server
from deploy.native.state import StackState
from shared.errors import BadInput
from shared.process import settings_file

Role = Literal["operator", "trainer"]
TRIES = 5  # another process may take a chosen port in the same moment


class Stack:
    """RabbitMQ, Redis and S3 below one directory.

    As a context manager for tests and benchmarks, it kills the servers at the end of the block, and they end with
    this process, however it ends. With `dies_with_parent=False` they outlive it until `stop` is called.
    """

    def __init__(self, directory: Path, *, dies_with_parent: bool = True) -> None:
        self.state = StackState(directory)
        self.directory = self.state.directory
        self.logs = self.directory / "logs"
        self.dies_with_parent = dies_with_parent
        self.rabbitmq = RabbitMQ(self.state, dies_with_parent=dies_with_parent)
        self.redis = RedisServer(self.state, dies_with_parent=dies_with_parent)
        self.s3 = SeaweedFS(self.state, dies_with_parent=dies_with_parent)
        self.servers: tuple[Server, ...] = (self.rabbitmq, self.redis, self.s3)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Starts all servers with their previous data, and waits until all serve."""
        if self.state.running():
            raise BadInput(f"The stack in {self.directory} is already running: stop it first.")
        check_folder(self.directory)
        debs.find()  # a download may be needed and may fail, so it comes before any change
        self.state.processes.clear()
        self.state.choose_ports(["registry", *(name for server in self.servers for name in server.port_names)])
        try:
            for server in self.servers:
                server.launch()
            for server in self.servers:
                _wait(server)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stops all servers in order and in parallel; their data stays."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(lambda server: server.stop(), self.servers))

    def kill(self) -> None:
        """Kills all servers if their data is not needed: a queue declared in the last second may not recover."""
        for server in self.servers:
            server.kill()

    def add_vhost(self, name: str) -> None:
        self.rabbitmq.add_vhost(name)

    def remove_vhost(self, name: str) -> None:
        self.rabbitmq.remove_vhost(name)

    def environment(self, role: Role = "operator", *, vhost: str = VHOST) -> dict[str, str]:
        """Settings of a service; a trainer's settings lead only to the bus and the object store."""
        access, secret = self.s3.keys(role)
        environment = {
            "FEDQ_AMQP_URL": self.rabbitmq.amqp_url(role, vhost),
            "FEDQ_S3_URL": self.s3.url,
            "FEDQ_S3_ACCESS_KEY": access,
            "FEDQ_S3_SECRET_KEY": secret,
            "FEDQ_S3_BUCKET": BUCKET,
            "FEDQ_CACHE_DIR": str(self.directory / "cache"),
        }
        if role == "operator":
            environment["FEDQ_RABBITMQ_URL"] = self.rabbitmq.url
            environment["FEDQ_REDIS_URL"] = self.redis.url
            environment["FEDQ_REGISTRY_URL"] = f"http://127.0.0.1:{self.state.ports['registry']}"
        return environment


def check_folder(directory: Path) -> None:
    """Raises `BadInput` for a folder whose name the settings file cannot hold."""
    try:
        settings_file.quoted(str(directory))
    except ValueError as error:
        raise BadInput(
            f"The folder {str(directory)!a} cannot hold a stack: dotenv and a shell would not read {error} of its name "
            "alike; choose another with --dir."
        ) from None


def _wait(server: Server) -> None:
    for _ in range(TRIES - 1):
        try:
            return server.wait()
        except PortTaken:
            server.stop()
            server.state.choose_ports(server.port_names, anew=True)
            server.launch()
    return server.wait()
