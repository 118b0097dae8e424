"""The stack without Docker, started for real: ready soon, set up as fedq needs it, and gone without a trace."""

import io
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pika
import pytest
import urllib3
from minio import Minio
from minio.error import S3Error
from pika.adapters.blocking_connection import BlockingChannel

from deploy.native.processes import Process
from deploy.native.rabbitmq import DEFINITIONS
from deploy.native.seaweedfs import SeaweedFS
from deploy.native.stack import Role, Stack
from deploy.native.state import StackState
from shared import names

ROOT = Path(__file__).parents[2]
QUORUM = {"x-queue-type": "quorum"}
DELIVERIES = 6  # the delivery limit, and the one that exceeds it


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """In a folder whose name has what scripts, Erlang and dotenv would take for their own."""
    with Stack(tmp_path_factory.mktemp("native") / 'it\'s "one" #1 of 5%' / "stack") as started:
        yield started


@pytest.fixture
def channel(stack: Stack) -> Iterator[BlockingChannel]:
    yield from _channel(stack, "operator")


@pytest.fixture
def trainer(stack: Stack) -> Iterator[BlockingChannel]:
    yield from _channel(stack, "trainer")


def _channel(stack: Stack, role: Role) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(stack.environment(role)["FEDQ_AMQP_URL"]))
    yield connection.channel()
    connection.close()


def _s3(stack: Stack, role: Role) -> Minio:
    settings = stack.environment(role)
    return Minio(
        settings["FEDQ_S3_URL"].removeprefix("http://"),
        settings["FEDQ_S3_ACCESS_KEY"],
        settings["FEDQ_S3_SECRET_KEY"],
        secure=False,
        region="us-east-1",
    )


def test_a_trainer_is_told_only_of_the_bus_and_the_object_store(stack: Stack) -> None:
    known = {"FEDQ_AMQP_URL", "FEDQ_S3_URL", "FEDQ_S3_ACCESS_KEY", "FEDQ_S3_SECRET_KEY", "FEDQ_S3_BUCKET"}

    assert set(stack.environment("trainer")) == {*known, "FEDQ_CACHE_DIR"}
    assert "operator" not in json.dumps(stack.environment("trainer"))


def test_a_trainer_cannot_use_the_management_api(stack: Stack) -> None:
    login = urllib3.make_headers(basic_auth=f"trainer:{stack.state.secret('trainer')}")

    assert urllib3.request("GET", f"{stack.rabbitmq.url}/api/queues", headers=login).status == 401


@pytest.mark.parametrize("vhost", ["fedq", "test-1"])
def test_every_vhost_has_the_policies(stack: Stack, vhost: str) -> None:
    stack.add_vhost(vhost)
    policies = stack.rabbitmq.call("GET", f"policies/{vhost}")
    wanted = json.loads(DEFINITIONS.read_text())["policies"]

    assert {one["name"]: one["definition"] for one in policies} == {one["name"]: one["definition"] for one in wanted}


def test_a_removed_vhost_is_gone(stack: Stack) -> None:
    stack.add_vhost("passing")
    stack.remove_vhost("passing")

    assert "passing" not in [vhost["name"] for vhost in stack.rabbitmq.call("GET", "vhosts")]


def test_a_message_rejected_beyond_the_limit_lands_in_dead_letters(stack: Stack, channel: BlockingChannel) -> None:
    queue = names.updates_queue("dead-lettering")
    for name in (names.DEAD_LETTERS, queue):
        channel.queue_declare(name, durable=True, arguments=QUORUM)
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"poison", mandatory=True)

    for _ in range(DELIVERIES):
        method, _properties, _body = next(channel.consume(queue, inactivity_timeout=10))
        assert method is not None
        channel.basic_reject(method.delivery_tag, requeue=True)
    channel.cancel()
    method, properties, body = next(channel.consume(names.DEAD_LETTERS, inactivity_timeout=10))

    assert method is not None
    assert body == b"poison"
    assert properties.headers["x-death"][0]["reason"] == "delivery_limit"
    channel.basic_ack(method.delivery_tag)
    channel.cancel()


def test_a_trainer_serves_its_queues_and_dead_letters(trainer: BlockingChannel, channel: BlockingChannel) -> None:
    queue = names.rounds_queue("cpu")
    channel.exchange_declare(names.EVENTS, "topic", durable=True)
    trainer.queue_declare(queue, durable=True, arguments=QUORUM)
    trainer.queue_declare(names.DEAD_LETTERS, durable=True, arguments=QUORUM)
    trainer.queue_bind(queue, names.EVENTS, "round-start.cpu")
    trainer.confirm_delivery()
    trainer.basic_publish(names.EVENTS, "round-start.cpu", b"", mandatory=True)
    method, _properties, _body = next(trainer.consume(queue, inactivity_timeout=10))

    assert method is not None
    trainer.basic_ack(method.delivery_tag)
    trainer.cancel()


Attempt = Callable[[BlockingChannel], object]


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda trainer: trainer.basic_get(names.COMMANDS), id="read the aggregator's commands"),
        pytest.param(lambda trainer: trainer.basic_get(names.DEAD_LETTERS), id="read dead letters"),
        pytest.param(lambda trainer: trainer.queue_delete(names.COMMANDS), id="delete a queue of the aggregator"),
        pytest.param(lambda trainer: trainer.queue_purge(names.HEARTBEATS), id="purge the heartbeats"),
        pytest.param(lambda trainer: trainer.queue_declare("anything"), id="make any queue"),
        pytest.param(
            lambda trainer: trainer.queue_bind(names.COMMANDS, names.EVENTS, "#"), id="bind the aggregator's queue"
        ),
    ],
)
def test_a_trainer_may_not(trainer: BlockingChannel, channel: BlockingChannel, attempt: Attempt) -> None:
    channel.exchange_declare(names.EVENTS, "topic", durable=True)
    for queue in (names.COMMANDS, names.DEAD_LETTERS, names.HEARTBEATS):
        channel.queue_declare(queue, durable=True, arguments=QUORUM)

    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
        attempt(trainer)


def test_the_bucket_is_there_for_both_and_a_trainer_writes_updates_only(stack: Stack) -> None:
    operator, trainer = _s3(stack, "operator"), _s3(stack, "trainer")
    model, update = names.model_blob("job", 1, "f" * 64), names.update_blob("job", 1, "client", "e" * 64)
    operator.put_object("fedq", model, io.BytesIO(b"model"), 5)
    trainer.put_object("fedq", update, io.BytesIO(b"update"), 6)

    assert trainer.bucket_exists("fedq")
    assert trainer.stat_object("fedq", model).size == 5
    assert operator.stat_object("fedq", update).size == 6
    with pytest.raises(S3Error, match="Access Denied"):
        trainer.put_object("fedq", model, io.BytesIO(b"other"), 5)


def test_servers_return_with_what_they_acknowledged(stack: Stack, channel: BlockingChannel) -> None:
    operator = _s3(stack, "operator")
    operator.put_object("fedq", "jobs/kept", io.BytesIO(b"kept"), 4)
    channel.queue_declare(names.updates_queue("kept"), durable=True, arguments=QUORUM)
    before = (stack.s3.pid, stack.environment())

    stack.s3.kill()
    stack.s3.start()
    stack.redis.restart()

    assert (stack.s3.pid != before[0], stack.environment()) == (True, before[1])
    assert operator.stat_object("fedq", "jobs/kept").size == 4


def test_a_store_that_lists_its_bucket_and_takes_nothing_is_not_ready(tmp_path: Path) -> None:
    """As it is while its filer elects a leader. Such a store is played here: the real one does it seldom."""
    takes = threading.Event()

    class Store(BaseHTTPRequestHandler):
        kept = b""

        def _answer(self, code: int, body: bytes = b"") -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self._answer(200)

        def do_PUT(self) -> None:
            Store.kept = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200 if takes.is_set() else 500)

        def do_GET(self) -> None:
            self._answer(200, Store.kept)

        def do_DELETE(self) -> None:
            self._answer(204)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state = StackState(tmp_path)
        state.ports["s3"] = server.server_port
        store = SeaweedFS(state, dies_with_parent=True)
        assert not store.serves()
        takes.set()
        assert store.serves()
        server.shutdown()


def test_stopping_leaves_no_process(tmp_path: Path, stack: Stack) -> None:
    with Stack(tmp_path / "second") as second:
        assert not _bound(second) & _bound(stack)
        started = second.state.running()
        assert {process.name for process in started} == {"rabbitmq", "epmd", "redis", "seaweedfs"}

    assert [process for process in started if process.alive()] == []
    assert stack.state.running()


def _bound(stack: Stack) -> set[int]:
    return {port for server in stack.servers for port in server.ports.values()}


def test_killing_the_parent_leaves_no_process(tmp_path: Path) -> None:
    directory = tmp_path / "third"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, directory], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        started = StackState(directory).running()
        assert len(started) == 4
        parent.kill()

    assert [process.name for process in started if not _ends(process)] == []


PARENT = """
import sys
from pathlib import Path
from deploy.native.seaweedfs import SeaweedFS
from deploy.native.stack import Stack

with Stack(Path(sys.argv[1])):
    print("up", flush=True)
    input()
"""


def _ends(process: Process) -> bool:
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 5)[0])
    finally:
        os.close(descriptor)
