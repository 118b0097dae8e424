"""Probes of real services: nothing that is away or hangs beside them fails one, and each of their own loops can."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.native.processes import Process
from deploy.native.stack import Role
from tests.conftest import Servers
from tests.faults.tcp_proxy import TcpProxy
from tests.harness import ROOT, SECONDS, Services, until

OFTEN = "0.2"  #: seconds: FEDQ_PROBE_S
OLD = 4.0  #: seconds, of a file that is touched every 1.1 s at most
LONG = 7.0  #: seconds that servers are away: longer than any driver of a loop waits for an answer


def touched(probes: Path) -> float:
    """When a process last turned, as its file says; 0 before it started."""
    try:
        return (probes / "alive").stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def frozen(*processes: Process) -> Iterator[None]:
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process.pid, signal.SIGCONT)


def test_servers_that_are_away_fail_no_probe(servers: Servers, services: Services, tmp_path: Path) -> None:
    """Neither while they hang nor while they refuse; and who is asked to stop is not ready from that moment on."""
    port = servers.stack.state.ports["amqp"]
    services.settings |= {"FEDQ_PROBE_S": OFTEN, "FEDQ_CACHE_DIR": str(tmp_path / "cache")}
    with TcpProxy("127.0.0.1", port) as line:
        roles: dict[str, tuple[Role, tuple[str, ...]]] = {
            "registry": ("operator", ()),
            "aggregator": ("operator", ()),
            "trainer": ("trainer", ("--pool", "cpu")),
        }
        probes = {name: tmp_path / name for name in roles}
        running = []
        for name, (role, arguments) in roles.items():
            url = servers.environment(role)["FEDQ_AMQP_URL"].replace(f":{port}/", f":{line.port}/")
            own = {"FEDQ_PROBE_DIR": str(probes[name]), "FEDQ_AMQP_URL": url}
            running.append(services.start(name, *arguments, role=role, **own))

        def turn(seconds: float, what: str) -> None:
            """All go on turning for so long."""
            since = time.time()
            for name, folder in probes.items():
                until(lambda folder=folder: touched(folder) > since + seconds, SECONDS, f"{name} {what}")

        for name, folder in probes.items():
            until((folder / "ready").exists, SECONDS, f"{name} is ready", detail=services.tails)
        with frozen(*(server.process for server in servers.stack.servers)):
            turn(LONG, "turns while all servers hang")
        line.down()
        turn(LONG, "turns while RabbitMQ refuses")
        line.heal()
        assert all((folder / "ready").exists() for folder in probes.values())

        for process in running:
            os.kill(process.pid, signal.SIGTERM)
        for name, folder in probes.items():
            what = f"{name} is ready no more"
            until(lambda folder=folder: not (folder / "ready").exists(), SECONDS, what, detail=services.stacks)


def test_a_broker_that_hangs_in_between_is_left(servers: Servers, tmp_path: Path) -> None:
    """Celery, connected, waits for its answer before the loop begins that would miss its heartbeats; not for ever."""
    slowly = f"""
import time
from pathlib import Path
from celery.worker.consumer.tasks import Tasks
from services.trainer.parent import pool_consumer
subscribe = Tasks.start
def start(self, consumer):
    Path({str(tmp_path / "connected")!r}).touch()
    while not Path({str(tmp_path / "muted")!r}).exists(): time.sleep(0.01)
    subscribe(self, consumer)
Tasks.start = start
pool_consumer.SILENCE = 1.0
"""
    port = servers.stack.state.ports["amqp"]
    with TcpProxy("127.0.0.1", port) as line, ExitStack() as ending:
        url = servers.environment("trainer")["FEDQ_AMQP_URL"].replace(f":{port}/", f":{line.port}/")
        begin(servers, "trainer", slowly, tmp_path, ending, FEDQ_AMQP_URL=url)
        until((tmp_path / "connected").exists, SECONDS, "Celery is connected")
        line.mute("down")
        (tmp_path / "muted").touch()
        since = time.time()
        until(lambda: touched(tmp_path) > since + 1, SECONDS, "it tries again, and turns")
        line.heal()
        until((tmp_path / "ready").exists, SECONDS, "it is ready")


def test_a_queue_without_a_leader_is_waited_for(servers: Servers, tmp_path: Path) -> None:
    """RabbitMQ answers and lets nobody consume, with one of two errors; a script does, because it seldom happens."""
    away = f"""
import itertools
from pathlib import Path
from amqp.exceptions import InternalError, NotFound
from celery.worker.consumer.tasks import Tasks
errors, subscribe = itertools.cycle((NotFound, InternalError)), Tasks.start
def start(self, consumer):
    if not Path({str(tmp_path / "elected")!r}).exists(): raise next(errors)("failed to perform operation on queue")
    subscribe(self, consumer)
Tasks.start = start
"""
    with ExitStack() as ending:
        process = begin(servers, "trainer", away, tmp_path, ending)
        until((tmp_path / "alive").exists, SECONDS, "it starts")
        since = time.time()
        until(lambda: touched(tmp_path) > since + OLD, SECONDS, "it tries again and again, and turns")
        (tmp_path / "elected").touch()
        until((tmp_path / "ready").exists, SECONDS, "it is ready")
        assert process.poll() is None


HANGS = {
    "registry: the sweeper": "from shared.redis.roster import Roster; Roster.sweep = hang",
    "registry: the web's loop": """
import uvicorn
async def on_tick(*_): hang()
uvicorn.Server.on_tick = on_tick
""",
    "aggregator: the keeper of leases": "from services.aggregator.leases import JobLeases; JobLeases._renew = hang",
    "aggregator: the taker of jobs": "from services.aggregator.leases import JobLeases; JobLeases._has_room = hang",
    "trainer: the heartbeat": """
from services.trainer.parent.heartbeat import HeartbeatThread
HeartbeatThread._say = hang
""",
    "trainer: Celery's loop": """
from services.trainer.parent.worker import Worker
consuming = Worker.on_consumer_ready
def on_consumer_ready(worker, consumer):
    consuming(worker, consumer)
    worker.hub.call_later(1, hang)
Worker.on_consumer_ready = on_consumer_ready
""",
}


def test_each_loop_that_hangs_lets_the_probe_grow_old(servers: Servers, tmp_path: Path) -> None:
    """Though the process is there, is ready, and its other loops turn."""
    with ExitStack() as ending:
        found = {}
        for number, (name, hang) in enumerate(HANGS.items()):
            folder = tmp_path / str(number)
            url = f"http://127.1.0.{number + 1}:{servers.stack.state.ports['registry']}"
            process = begin(servers, name.partition(":")[0], hang, folder, ending, FEDQ_REGISTRY_URL=url)
            found[name] = (process, folder)
        for name, (process, folder) in found.items():
            until((folder / "ready").exists, SECONDS, f"{name} is ready")
            until(lambda folder=folder: time.time() - touched(folder) > OLD, SECONDS, f"{name} is seen to hang")
            assert process.poll() is None


def begin(
    servers: Servers, service: str, script: str, probes: Path, ending: ExitStack, **settings: str
) -> "subprocess.Popen[bytes]":
    """A service as a process of its own, after a script in it."""
    code = f"""
import threading
from services.{service} import __main__ as main
from shared.process.service import run
def hang(*_arguments, **_options): threading.Event().wait()
{script}
run(main.main)
"""
    arguments: tuple[str, ...] = ("--pool", "cpu") if service == "trainer" else ()
    role: Role = "trainer" if service == "trainer" else "operator"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
    ours = {"FEDQ_PROBE_DIR": str(probes), "FEDQ_PROBE_S": OFTEN, "FEDQ_CACHE_DIR": str(probes / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**inherited, **servers.environment(role), **ours, **settings},
        stderr=subprocess.DEVNULL,
    )
    ending.callback(process.wait)
    ending.callback(process.kill)
    return process
