"""fedq's services as processes next to the servers."""

import os
import socket
import sys
import time
from collections import Counter

from deploy.native import processes
from deploy.native.processes import Process
from deploy.native.rabbitmq import VHOST
from deploy.native.stack import Role, Stack
from shared import names
from shared.errors import Unavailable
from shared.process import settings

POOL = "cpu"
EXAMPLES = ("examples.",)  # user code that a stack on one machine may run if FEDQ_ALLOW is not set
START_SECONDS = 60.0
POLL_SECONDS = 0.1


def start(stack: Stack, *, trainers: int) -> None:
    """Starts registry, aggregator and trainers, and waits until each listens to its queue."""
    launch(stack, "registry", "operator")
    launch(stack, "aggregator", "operator")
    for number in range(1, trainers + 1):
        launch(stack, f"trainer-{number}", "trainer", "--pool", POOL, "--slots", "1")
    deadline = time.monotonic() + START_SECONDS
    while missing := _missing(stack, trainers):
        for service in own(stack):
            if not service.alive():
                raise Unavailable(f"{service.name} ended; the end of its log {service.log}:\n{service.tail()}")
        if time.monotonic() > deadline:
            raise Unavailable(
                f"After {START_SECONDS:.0f} s nobody serves {', '.join(missing)}: see the logs in {stack.logs}."
            )
        time.sleep(POLL_SECONDS)


def stop(stack: Stack, *, grace: float) -> None:
    """Stops the services; each has `grace` seconds to finish its work."""
    processes.stop(own(stack), grace=grace)


def own(stack: Stack) -> list[Process]:
    """The services that this stack has started."""
    servers = {name for server in stack.servers for name in server.process_names}
    return [process for name, process in stack.state.processes.items() if name not in servers]


def allowed() -> str:
    """The value of `FEDQ_ALLOW` for every process of the stack, from the environment, .env, or the default."""
    return ",".join(settings.load(settings.Code).allow or EXAMPLES)


def launch(stack: Stack, name: str, role: Role, *arguments: str, **more: str) -> None:
    # The inherited environment must not carry a secret to a role that must not have it.
    inherited = {key: value for key, value in os.environ.items() if key not in stack.environment()}
    process = processes.spawn(
        name,
        [sys.executable, "-m", f"services.{name.partition('-')[0]}", *arguments],
        environment={**inherited, **stack.environment(role), "FEDQ_ALLOW": allowed(), **more, "PYTHONUNBUFFERED": "1"},
        log=stack.logs / f"{name}.log",
        dies_with_parent=stack.dies_with_parent,
    )
    stack.state.add(process)


def _missing(stack: Stack, trainers: int) -> list[str]:
    """Names the queues and services that do not have all of their listeners yet."""
    listeners = Counter(one["queue"]["name"] for one in stack.rabbitmq.call("GET", f"consumers/{VHOST}"))
    expected = {
        names.HEARTBEATS: 1,
        names.COMMANDS: 1,
        names.rounds_queue(POOL): trainers,
        names.tasks_queue(POOL): trainers,
    }
    missing = [f"queue {queue}" for queue, number in expected.items() if listeners[queue] < number]
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", stack.state.ports["registry"])):
            missing.append("the registry's API")
    return missing
