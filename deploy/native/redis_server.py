"""Redis, configured to acknowledge a write only when it is on the disk."""

import socket
from collections.abc import Sequence
from pathlib import Path

from deploy.native.server import Server
from deploy.native.state import write_private
from shared import names


class RedisServer(Server):
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
            "appendonly": "yes",
            "appendfsync": "always",  # `everysec` loses acknowledged writes to a mere SIGKILL
            "save": '""',
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        lines = [f"{name} {value}\n" for name, value in settings.items()]
        write_private(self.directory / "redis.conf", "".join(lines))

    def command(self) -> Sequence[str | Path]:
        return [self.programs.redis, "redis.conf"]  # Redis keeps its files in its working directory

    def serves(self) -> bool:
        """Returns whether Redis serves: logs in, writes and reads; while Redis loads data, it answers with an error."""
        try:
            with socket.create_connection(("127.0.0.1", self.state.ports["redis"]), timeout=1) as line:
                commands = (f"AUTH {self.state.secret('redis')}", f"SET {names.PROBE} 1 PX 1000", f"GET {names.PROBE}")
                line.sendall("".join(f"{command}\r\n" for command in commands).encode())
                answer = line.makefile("rb")
                return [answer.readline() for _ in range(4)] == [b"+OK\r\n", b"+OK\r\n", b"$1\r\n", b"1\r\n"]
        except OSError:
            return False
