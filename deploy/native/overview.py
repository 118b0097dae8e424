"""Overview of a stack for a person: the state of each process, and the addresses of the consoles."""

import json
import os

from deploy.native import services
from deploy.native.seaweedfs import BUCKET
from deploy.native.stack import Stack


def places(stack: Stack) -> str:
    """Consoles and endpoints; only the console's password is shown, because a person has to type it."""
    environment = stack.environment()
    command = f"python -m deploy.native env --dir {os.path.relpath(stack.directory)}"
    password = stack.state.secret("operator")
    lines = [
        f"RabbitMQ  {stack.rabbitmq.url}/#/queues (user operator, password {password})",
        f"S3        {stack.s3.url}, bucket {BUCKET}: jobs/<job>/rounds/<round>/ (keys: {command})",
        f"Logs      {stack.logs}",
    ]
    if services.own(stack):
        lines.insert(1, f"Registry  {environment['FEDQ_REGISTRY_URL']}")
    return "\n".join(lines)


def as_text(stack: Stack) -> str:
    processes = stack.state.processes.values()
    if not processes:
        return f"No stack was ever started in {stack.directory}."
    lines = [
        f"{process.name:<12}{f'up, pid {process.pid}' if process.alive() else 'down':<18}{process.log}"
        for process in processes
    ]
    return "\n".join([*lines, places(stack)] if stack.state.running() else lines)


def as_json(stack: Stack) -> str:
    """Overview for a program, as JSON without any password."""
    environment = stack.environment() if stack.state.ports else {}
    return json.dumps(
        {
            "directory": str(stack.directory),
            "processes": [
                {"name": process.name, "pid": process.pid, "up": process.alive(), "log": str(process.log)}
                for process in stack.state.processes.values()
            ],
            "ports": stack.state.ports,
            "urls": {name: environment.get(f"FEDQ_{name.upper()}_URL") for name in ("rabbitmq", "registry", "s3")},
        },
        indent=2,
    )
