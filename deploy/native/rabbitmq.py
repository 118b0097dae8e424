"""RabbitMQ with its management console, a private Erlang name server, and the policies that fedq requires."""

import base64
import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy.native import processes
from deploy.native.server import Server
from deploy.native.state import write_private
from shared import names
from shared.amqp.topology import PERMISSIONS, QUORUM
from shared.errors import Unavailable

VHOST = "fedq"
EPMD = "epmd"  #: Erlang's name server, without which a node cannot start
#: The node's working directory by a name that needs no quoting: its real path may hold any character.
HERE = "/proc/self/cwd"
DEFINITIONS = Path(__file__).parents[1] / "definitions.json"

CONFIGURATION = """\
listeners.tcp.local = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = {prometheus}
default_vhost = {vhost}
default_user = operator
default_pass = {password}
# 4 h: a task is acknowledged when its client has been trained.
consumer_timeout = 14400000
# 1 MiB: models travel through the object store.
max_message_size = 1048576
heartbeat = 30
# Messages are small; the default of 512 MB is also kept in memory.
raft.wal_max_size_bytes = 67108864
log.file = false
log.console = true
log.console.level = warning
log.console.use_colors = off
"""

# A proxy from the environment cannot reach 127.0.0.1.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RabbitMQ(Server):
    name = "rabbitmq"
    port_names = ("amqp", "management", "prometheus", "distribution", "epmd")

    @property
    def url(self) -> str:
        """The address of the management API and console."""
        return f"http://127.0.0.1:{self.state.ports['management']}"

    def amqp_url(self, user: str, vhost: str = VHOST) -> str:
        port = self.state.ports["amqp"]
        return f"amqp://{user}:{self.state.secret(user)}@127.0.0.1:{port}/{quote(vhost, safe='')}"

    def configure(self) -> None:
        text = CONFIGURATION.format(vhost=VHOST, password=self.state.secret("operator"), **self.ports)
        write_private(self.directory / "rabbitmq.conf", text)
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management,rabbitmq_prometheus].\n")
        cookie = self.directory / ".erlang.cookie"  # HOME is this folder, so no other Erlang node shares the cookie
        if not cookie.exists():
            write_private(cookie, secrets.token_hex(16))

    def launch(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        epmd = self.state.processes.get(EPMD)
        if epmd is None or not epmd.alive():
            # The private name server starts before the node. Otherwise Erlang would start one that outlives the
            # node and serves other users' nodes too.
            port = str(self.state.ports["epmd"])
            command: list[str | Path] = [self.programs.epmd, "-port", port, "-address", "127.0.0.1"]
            self.spawn(EPMD, command, environment={})
        super().launch()

    def command(self) -> Sequence[str | Path]:
        return [self.programs.rabbitmq]

    def environment(self) -> dict[str, str]:
        return {
            "HOME": HERE,
            "RABBITMQ_NODENAME": "fedq@localhost",
            "RABBITMQ_MNESIA_BASE": f"{HERE}/data",
            "RABBITMQ_LOG_BASE": f"{HERE}/log",
            "RABBITMQ_CONFIG_FILE": f"{HERE}/rabbitmq.conf",
            # These paths need not exist; they keep RabbitMQ from reading /etc/rabbitmq.
            "RABBITMQ_CONFIG_FILES": f"{HERE}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{HERE}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": f"{HERE}/rabbitmq-env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{HERE}/enabled_plugins",
            "RABBITMQ_DIST_PORT": str(self.state.ports["distribution"]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ("-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false"),
            "ERL_EPMD_PORT": str(self.state.ports["epmd"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": f"{HERE}/erl_crash.dump",
            # With this variable, the script execs the node instead of starting it as a child: one process, one pid.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    @property
    def process_names(self) -> tuple[str, ...]:
        return (self.name, EPMD)

    def serves(self) -> bool:
        """Returns whether the node serves; its AMQP listener opens last, so that shows that all of it is ready."""
        try:
            self.call("GET", f"health/checks/port-listener/{self.state.ports['amqp']}", timeout=2)
        except Unavailable:
            return False
        return True

    def wait(self) -> None:
        super().wait()
        self.call("PUT", "users/trainer", {"password": self.state.secret("trainer"), "tags": ""})
        self.add_vhost(VHOST)
        self.until(self._delivers)

    def _delivers(self) -> bool:
        """Returns whether a queue like fedq's can be created, takes a message, returns it, and can be removed."""
        queue = f"queues/{VHOST}/{names.watcher_queue(secrets.token_hex(6))}"
        message = {
            "properties": {},
            "routing_key": queue.rpartition("/")[2],
            "payload": "",
            "payload_encoding": "string",
        }
        try:
            self.call("PUT", queue, {"durable": True, "arguments": QUORUM})
            try:
                routed = self.call("POST", f"exchanges/{VHOST}/amq.default/publish", message)["routed"]
                got = self.call(
                    "POST", f"{queue}/get", {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
                )
            finally:
                self.call("DELETE", queue)
        except Unavailable:
            return False
        return bool(routed and got)

    def add_vhost(self, name: str) -> None:
        """Creates a virtual host with fedq's policies for both users; harmless if it exists."""
        vhost = quote(name, safe="")
        self.call("PUT", f"vhosts/{vhost}", {})
        for user, permissions in PERMISSIONS.items():
            self.call("PUT", f"permissions/{vhost}/{user}", permissions)
        self.call("POST", f"definitions/{vhost}", json.loads(DEFINITIONS.read_text()))

    def remove_vhost(self, name: str) -> None:
        self.call("DELETE", f"vhosts/{quote(name, safe='')}")

    def control(self, *arguments: str) -> None:
        """Runs one rabbitmqctl command on the node, for tasks that the management API cannot do."""
        code = processes.run(
            [self.programs.rabbitmq.with_name("rabbitmqctl"), *arguments],
            environment={**self.programs.environment, **self.environment()},
            directory=self.directory,
        )
        if code:
            raise Unavailable(f"rabbitmqctl {arguments[0]} ended with {code}")

    def call(self, method: str, path: str, body: Any = None, *, timeout: float = 30) -> Any:
        """Calls the management API once, as the operator."""
        login = base64.b64encode(f"operator:{self.state.secret('operator')}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 - a fixed local address
            f"{self.url}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
        )
        try:
            with _direct.open(request, timeout=timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")
            raise Unavailable(f"RabbitMQ refuses {method} {path} ({error.code}): {reason}") from None
        except OSError as error:
            raise Unavailable(f"RabbitMQ's management API at {self.url} does not answer: {error}") from None
        return json.loads(text) if text else None
