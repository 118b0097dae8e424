"""Redis that acknowledges a write only when it is on the disk."""

import socket
from collections.abc import Sequence
from pathlib import Path

from deploy.native.server import Server
from deploy.native.state import write_private


class Redis(Server):
    name = "redis"
    port_names = ("redis",)

    @property
    def url(self) -> str:
        return f"redis://:{self.state.secret('redis')}@127.0.0.1:{self.state.ports['redis']}/0"

    def configure(self) -> None:
        settings = {
            "bind": "127.0.0.1",
            "port": self.state.ports["redis"],
            "requirepass": self.state.secret("redis"),
            "dir": f'"{self.directory}"',
            "appendonly": "yes",
            "appendfsync": "always",  # `everysec` loses acknowledged writes to a mere SIGKILL
            "save": '""',
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        lines = [f"{name} {value}\n" for name, value in settings.items()]
        write_private(self.directory / "redis.conf", "".join(lines))

    def command(self) -> Sequence[str | Path]:
        return [self.programs.redis, self.directory / "redis.conf"]

    def serves(self) -> bool:
        """Log in and ping, in the protocol's own words; while it loads its data it answers with an error."""
        try:
            with socket.create_connection(("127.0.0.1", self.state.ports["redis"]), timeout=1) as line:
                line.sendall(f"AUTH {self.state.secret('redis')}\r\nPING\r\n".encode())
                answer = line.makefile("rb")
                return (answer.readline(), answer.readline()) == (b"+OK\r\n", b"+PONG\r\n")
        except OSError:
            return False
