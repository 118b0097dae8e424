"""What cannot start says why: in one sentence that names the variable, with an exit code, and within ten seconds.

Each row is a real process before the session's servers, with one thing wrong; all of a service's at the same time.
"""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import Servers

ROOT = Path(__file__).parents[2]
SECONDS = 60.0  #: until a process that does not end is killed, on a machine with much else to do
STARTING = threading.Semaphore(2)  #: processes at a time that load what they need, each on a core

CLOSED = "127.0.0.1:9"
NOWHERE = "nowhere.invalid:1"


@dataclass(frozen=True)
class Row:
    """What is wrong, and what is said of it in the end."""

    variable: str
    value: str
    code: int
    sentence: str  # a pattern for all of the last line
    more: Mapping[str, str] = field(default_factory=dict)  # what has to be so beside it
    arguments: tuple[str, ...] = ()

    def beside(self, *arguments: str, **more: str) -> "Row":
        return replace(self, more={**self.more, **more}, arguments=(*self.arguments, *arguments))


def with_place(url: str, place: str) -> str:
    """A URL with another host and port."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{login}{at}{place}").geturl()


def with_login(url: str, login: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{login}{parts.netloc.rpartition('@')[2]}").geturl()


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """What must not be read in any output."""
    passwords = {urlsplit(value).password for name, value in environment.items() if name.endswith("_URL")}
    return {unquote(word) for word in passwords if word} | {environment.get("FEDQ_S3_SECRET_KEY", "")} - {""}


def fault(command: Sequence[str], right: Mapping[str, str], row: Row, folder: Path) -> str:
    """What a process does other than the row says; nothing where all is as it should be."""
    ours = {**right, row.variable: row.value, **row.more}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
    with STARTING:
        process = subprocess.Popen(
            [*command, *row.arguments],
            cwd=folder,  # without files of settings
            env={**inherited, **ours, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        late = threading.Timer(SECONDS, process.kill)
        late.start()
        lines = [process.stderr.readline()]
    with process:
        lines += process.stderr
    late.cancel()
    said, last = "".join(lines), lines[-1].rstrip("\n")
    wrong = [
        f"exit code {process.returncode}" if process.returncode != row.code else "",
        "another last line" if not re.fullmatch(row.sentence, last) else "",
        "no variable" if row.variable not in last else "",
        "a traceback" if "Traceback" in said else "",
        "a secret" if any(secret in said for secret in secrets_of(right) | secrets_of(ours)) else "",
    ]
    found = ", ".join(filter(None, wrong))
    return f"{row.variable}={row.value} {' '.join(row.arguments)}: {found}\n{said}" if found else ""


def check(command: Sequence[str], right: Mapping[str, str], folder: Path, *rows: Row) -> None:
    """Runs all rows side by side, and fails with all that is other than they say."""
    with ThreadPoolExecutor(len(rows)) as pool:
        found = list(pool.map(lambda row: fault(command, right, row, folder), rows))
    assert not any(found), "\n".join(filter(None, found))


def service(name: str) -> list[str]:
    return [sys.executable, "-m", f"services.{name}"]


class Elsewhere(BaseHTTPRequestHandler):
    """An S3 service of another region; ours takes any."""

    def do_GET(self) -> None:
        said = (
            b"<Error><Code>AuthorizationHeaderMalformed</Code>"
            b"<Message>the region 'us-east-1' is wrong; expecting 'eu-west-1'</Message></Error>"
        )
        self.send_response(400)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def elsewhere() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def mute() -> Iterator[str]:
    """The place of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def strangers(servers: Servers) -> Iterator[None]:
    """Users of RabbitMQ and Redis with the password `s3cret`: `nobody` may do nothing here, `reader` may look."""
    api, redis = servers.stack.rabbitmq, servers.redis()
    for user in ("nobody", "reader"):
        api.call("PUT", f"users/{user}", {"password": "s3cret", "tags": ""})
    rights = {"configure": "^$", "write": "^$", "read": ".*"}
    api.call("PUT", f"permissions/{servers.vhost}/reader", rights)
    redis.acl_setuser(
        "reader", enabled=True, passwords=["+s3cret"], keys=["*"], commands=["+@read", "+eval", "+evalsha"]
    )
    yield
    redis.acl_deluser("reader")
    for user in ("nobody", "reader"):
        api.call("DELETE", f"users/{user}")


def test_a_registry_that_cannot_start(servers: Servers, tmp_path: Path, mute: str, strangers: None) -> None:
    """RabbitMQ, Redis, its own port and its probes: each with all that may be wrong with it."""
    right = servers.environment()
    amqp, redis, registry = right["FEDQ_AMQP_URL"], right["FEDQ_REDIS_URL"], right["FEDQ_REGISTRY_URL"]
    ports = servers.stack.state.ports
    rows = (
        Row("FEDQ_AMQP_URL", "", 2, "error: FEDQ_AMQP_URL is not set: set it in the environment .*"),
        Row("FEDQ_AMQP_URL", with_place(amqp, CLOSED), 3, r"error: RabbitMQ at 127.0.0.1:9 cannot be reached \(.*"),
        Row("FEDQ_AMQP_URL", with_place(amqp, NOWHERE), 3, "error: RabbitMQ at nowhere.invalid:1 cannot be .*"),
        Row("FEDQ_AMQP_URL", with_place(amqp, mute), 3, "error: .* does not answer; is it running, and is .*"),
        Row("FEDQ_AMQP_URL", with_place(amqp, f"127.0.0.1:{ports['redis']}"), 3, "error: .* does not answer; .*"),
        Row("FEDQ_AMQP_URL", with_login(amqp, "operator:s3cret@"), 3, "error: .* refuses these credentials; .*"),
        Row("FEDQ_AMQP_URL", with_login(amqp, "nobody:s3cret@"), 3, "error: .* refuses the vhost .*"),
        Row("FEDQ_AMQP_URL", with_login(amqp, "reader:s3cret@"), 3, "error: .* refuses what this user tries: .*"),
        Row("FEDQ_AMQP_URL", f"{amqp}-other", 3, "error: .* refuses the vhost '.*-other'; .*"),
        Row("FEDQ_REDIS_URL", "", 2, "error: FEDQ_REDIS_URL is not set: set it in the environment .*"),
        Row("FEDQ_REDIS_URL", with_place(redis, CLOSED), 3, r"error: redis://.*:9/\d+ cannot be reached \(.*"),
        Row("FEDQ_REDIS_URL", with_place(redis, NOWHERE), 3, r"error: redis://nowhere.invalid:1/\d+ cannot be .*"),
        Row("FEDQ_REDIS_URL", with_place(redis, mute), 3, "error: FEDQ_REDIS_URL: its server gives no answer in 6 s"),
        Row("FEDQ_REDIS_URL", with_place(redis, f"127.0.0.1:{ports['amqp']}"), 3, "error: redis://.* cannot be .*"),
        Row("FEDQ_REDIS_URL", with_login(redis, ":s3cret@"), 3, "error: .* refuses this password; check .*"),
        Row("FEDQ_REDIS_URL", with_login(redis, ""), 3, "error: .* refuses this password; check .*"),
        Row("FEDQ_REDIS_URL", with_login(redis, "reader:s3cret@"), 3, "error: .* refuses this user .*"),
        Row("FEDQ_REDIS_URL", f"{redis}99", 3, "error: redis://.*99: there is no such database; check .*"),
        Row("FEDQ_REGISTRY_URL", f"http://{mute}", 3, "error: .* cannot be served .Address already in use.; change .*"),
        Row("FEDQ_REGISTRY_URL", with_place(registry, "192.0.2.1:80"), 3, "error: http://192.0.2.1:80 cannot be .*"),
        Row("FEDQ_PROBE_DIR", "/proc/fedq", 2, "error: FEDQ_PROBE_DIR: /proc/fedq cannot be written: .*"),
        Row("FEDQ_HEARTBEAT_S", "soon", 2, "error: FEDQ_HEARTBEAT_S: Input should be a valid number.*"),
    )
    # Each on an address of its own: none but one shall find the port taken.
    own = (f"http://127.1.0.{number}:{urlsplit(registry).port}" for number in range(1, 99))
    apart = [row if row.variable == "FEDQ_REGISTRY_URL" else row.beside(FEDQ_REGISTRY_URL=next(own)) for row in rows]
    check(service("registry"), right, tmp_path, *apart)


def test_an_aggregator_that_cannot_start(servers: Servers, tmp_path: Path, mute: str, elsewhere: str) -> None:
    """The object store, RabbitMQ's management API, and several things at once."""
    right, trainer, ports = servers.environment(), servers.environment("trainer"), servers.stack.state.ports
    store, api = right["FEDQ_S3_URL"], right["FEDQ_RABBITMQ_URL"]
    servers.stack.rabbitmq.call("PUT", f"vhosts/{servers.vhost}-bare", {})
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    servers.stack.rabbitmq.call("PUT", f"permissions/{servers.vhost}-bare/operator", rights)
    check(
        service("aggregator"),
        right,
        tmp_path,
        Row("FEDQ_S3_ACCESS_KEY", "", 2, "error: FEDQ_S3_ACCESS_KEY is not set: set it in the environment .*"),
        Row("FEDQ_S3_ACCESS_KEY", "wrong", 3, "error: .* refuses these credentials .InvalidAccessKeyId.; check .*"),
        Row("FEDQ_S3_SECRET_KEY", "s3cret", 3, "error: .* refuses these credentials .SignatureDoesNotMatch.; check .*"),
        Row(
            "FEDQ_S3_ACCESS_KEY", trainer["FEDQ_S3_ACCESS_KEY"], 3, "error: .* and their rights on the bucket .*",
            {"FEDQ_S3_SECRET_KEY": trainer["FEDQ_S3_SECRET_KEY"]},
        ),
        Row("FEDQ_S3_BUCKET", "no-such-bucket", 3, "error: .*/no-such-bucket: there is no such bucket; create it .*"),
        Row("FEDQ_S3_URL", with_place(store, CLOSED), 3, r"error: http://127.0.0.1:9/fedq cannot be reached \(.*"),
        Row("FEDQ_S3_URL", with_place(store, NOWHERE), 3, "error: http://nowhere.invalid:1/fedq cannot be reached .*"),
        Row("FEDQ_S3_URL", with_place(store, mute), 3, "error: http://.* cannot be reached .*"),
        Row("FEDQ_S3_URL", with_place(store, f"127.0.0.1:{ports['amqp']}"), 3, "error: http://.* cannot be reached .*"),
        Row("FEDQ_S3_URL", api, 3, "error: http://.* answers.*; is FEDQ_S3_URL right.*"),
        Row("FEDQ_S3_REGION", "us-east-1", 3, "error: .*eu-west-1'.; check .*", {"FEDQ_S3_URL": elsewhere}),
        Row("FEDQ_RABBITMQ_URL", with_place(api, CLOSED), 3, "error: RabbitMQ's management API at .*:9 cannot .*"),
        Row("FEDQ_RABBITMQ_URL", with_place(api, NOWHERE), 3, "error: RabbitMQ's management API at .*:1 cannot .*"),
        Row("FEDQ_RABBITMQ_URL", with_place(api, mute), 3, "error: .*"),
        Row("FEDQ_RABBITMQ_URL", with_place(api, f"127.0.0.1:{ports['amqp']}"), 3, "error: .* cannot be reached .*"),
        Row("FEDQ_AMQP_URL", f"{right['FEDQ_AMQP_URL']}-bare", 2, "error: .* lacks the policies fedq-work, .*"),
        Row("FEDQ_FAILPOINT", "nowhere=kill", 2, "error: FEDQ_FAILPOINT: there is no point 'nowhere'; known: .*"),
        Row(
            "FEDQ_S3_URL", with_place(store, CLOSED), 3, "http://127.0.0.1:9/fedq cannot be reached .*",
            {"FEDQ_REDIS_URL": with_place(right["FEDQ_REDIS_URL"], CLOSED)},
        ),
    )  # fmt: skip
    servers.stack.remove_vhost(f"{servers.vhost}-bare")


def test_a_trainer_that_cannot_start(servers: Servers, tmp_path: Path, mute: str, strangers: None) -> None:
    """It joins with nothing that would fail its tasks: the store is looked at as RabbitMQ and its folders are."""
    right = {**servers.environment("trainer"), "FEDQ_CACHE_DIR": str(tmp_path / "cache")}
    amqp, store = right["FEDQ_AMQP_URL"], right["FEDQ_S3_URL"]
    rows = (
        Row("FEDQ_AMQP_URL", "", 2, "error: FEDQ_AMQP_URL is not set: set it in the environment .*"),
        Row("FEDQ_AMQP_URL", with_place(amqp, CLOSED), 3, r"error: RabbitMQ at 127.0.0.1:9 cannot be reached \(.*"),
        Row("FEDQ_AMQP_URL", with_place(amqp, mute), 3, "error: .* does not answer; is it running, and is .*"),
        Row("FEDQ_AMQP_URL", with_login(amqp, "trainer:s3cret@"), 3, "error: .* refuses these credentials; .*"),
        Row("FEDQ_AMQP_URL", with_login(amqp, "reader:s3cret@"), 3, "error: .* refuses what this user tries: .*"),
        Row("FEDQ_S3_SECRET_KEY", "", 2, "error: FEDQ_S3_SECRET_KEY is not set: set it in the environment .*"),
        Row("FEDQ_S3_ACCESS_KEY", "wrong", 3, "error: .* refuses these credentials .InvalidAccessKeyId.; check .*"),
        Row("FEDQ_S3_SECRET_KEY", "s3cret", 3, "error: .* refuses these credentials .SignatureDoesNotMatch.; check .*"),
        Row("FEDQ_S3_BUCKET", "no-such-bucket", 3, "error: .*FEDQ_S3_BUCKET.*"),
        Row("FEDQ_S3_URL", with_place(store, CLOSED), 3, r"error: http://127.0.0.1:9/fedq cannot be reached \(.*"),
        Row("FEDQ_S3_URL", with_place(store, mute), 3, "error: http://.* cannot be reached .*"),
        Row("FEDQ_CACHE_DIR", "/proc/fedq", 2, "error: FEDQ_CACHE_DIR: .* cannot be .*"),
        Row("FEDQ_CACHE_DIR", "/sys/kernel", 2, "error: FEDQ_CACHE_DIR: .* cannot be .*"),
        Row("FEDQ_PROBE_DIR", "/proc/fedq", 2, "error: FEDQ_PROBE_DIR: /proc/fedq cannot be written: .*"),
        Row("FEDQ_DEVICE", "gpu", 2, "error: FEDQ_DEVICE: must be auto, cpu, cuda, .*"),
    )
    silo = Row("FEDQ_STATE_DIR", "/proc/fedq", 2, "error: FEDQ_STATE_DIR: .* cannot be .*").beside("--client", "a")
    check(service("trainer"), right, tmp_path, *(row.beside("--pool", "cpu") for row in rows), silo)


def test_a_command_that_cannot_reach_its_server(servers: Servers, tmp_path: Path, mute: str) -> None:
    """A person waits no longer than a service; the other rows are among the tests of the commands."""
    right = servers.environment()
    amqp, redis, store = right["FEDQ_AMQP_URL"], right["FEDQ_REDIS_URL"], right["FEDQ_S3_URL"]
    start = ("start", str(ROOT / "examples/digits.yaml"))
    check(
        [str(Path(sys.executable).with_name("fedq"))],
        right,
        tmp_path,
        Row("FEDQ_REDIS_URL", "", 2, "error: FEDQ_REDIS_URL is not set: set it in the .*").beside("jobs"),
        Row("FEDQ_REDIS_URL", f"{redis}99", 3, "error: redis://.*: there is no such database; .*").beside("jobs"),
        Row("FEDQ_REDIS_URL", with_place(redis, mute), 3, "error: redis://.* cannot be reached .*").beside("jobs"),
        Row("FEDQ_AMQP_URL", with_place(amqp, mute), 3, "error: .* does not answer; .*").beside(*start),
        Row("FEDQ_S3_URL", with_place(store, mute), 3, "error: .* cannot be reached .*").beside(*start),
    )
