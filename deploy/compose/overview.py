"""Overview of the stack for a person: the state of each container, and the addresses of the consoles."""

import json

from deploy.compose.docker import Container
from deploy.compose.stack import ComposeStack


def places(stack: ComposeStack) -> str:
    """Consoles and endpoints; only the consoles' passwords are shown, because a person has to type them."""
    services = stack.config["services"]
    running = {one.service for one in stack.project.containers() if one.state == "running"}
    minio, rabbitmq = services["minio"]["environment"], services["rabbitmq"]["environment"]
    lines = [
        f"RabbitMQ  http://127.0.0.1:{stack.port('rabbitmq', 15672)}/#/queues"
        f" (user operator, password {rabbitmq['RABBITMQ_DEFAULT_PASS']})",
        f"Registry  http://127.0.0.1:{stack.port('registry', 8080)}",
        f"MinIO     http://127.0.0.1:{stack.port('minio', 9001)}/browser/fedq"
        f" (user {minio['MINIO_ROOT_USER']}, password {minio['MINIO_ROOT_PASSWORD']}): jobs/<job>/rounds/<round>/",
    ]
    if "grafana" in running:
        password = services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
        lines.append(f"Grafana   http://127.0.0.1:{stack.port('grafana', 3000)} (user admin, password {password})")
    return "\n".join(lines)


def as_text(stack: ComposeStack) -> str:
    found = stack.project.containers()
    if not found:
        return f"No container of the project {stack.project.name} exists: `make up` starts it."
    width = max(len(one.name) for one in found) + 2
    lines = [f"{one.name:<{width}}{one.condition}" for one in found if not one.done]
    if any(_is_down(one) for one in found):
        lines.append("What is down: `make up` starts it again; `make logs` shows why it ended.")
    return "\n".join([*lines, places(stack)] if any(one.state == "running" for one in found) else lines)


def as_json(stack: ComposeStack) -> str:
    """Overview for a program, as JSON without any password."""
    found = stack.project.containers()
    environment = stack.environment() if found else {}
    return json.dumps(
        {
            "project": stack.project.name,
            "containers": [
                {"name": one.name, "service": one.service, "state": one.state, "health": one.health} for one in found
            ],
            "urls": {name: environment.get(f"FEDQ_{name.upper()}_URL") for name in ("rabbitmq", "registry", "s3")},
        },
        indent=2,
    )


def _is_down(one: Container) -> bool:
    return one.state != "running" and not one.done
