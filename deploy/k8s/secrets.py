"""Secrets of a federation with servers inside: `python3 -m deploy.k8s.secrets [--tls] | kubectl create -f -`.

Passwords are random and differ each time: `create` leaves existing Secrets alone, while `apply` would replace them and
lock every service out. This script uses only the standard library, because it runs before anything is installed.
"""

import argparse
import json
import secrets
import sys
from typing import Any

NAMESPACE = "fedq"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m deploy.k8s.secrets", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tls", action="store_true", help="for components/tls: amqps, rediss and https")
    arguments = parser.parse_args()
    items = [_secret(name, values) for name, values in make(tls=arguments.tls).items()]
    json.dump({"apiVersion": "v1", "kind": "List", "items": items}, sys.stdout, indent=2)
    print()


def make(*, tls: bool = False) -> dict[str, dict[str, str]]:
    """The keys and values of each Secret, by the name of the Secret."""
    rabbitmq, trainer, redis = _password(), _password(), _password()
    operators, trainers = _key("fedq"), _key("trainer")
    amqp, amqp_port = ("amqps", 5671) if tls else ("amqp", 5672)
    http, http_port = ("https", 15671) if tls else ("http", 15672)
    return {
        # The registry, the aggregator and the operator use this Secret.
        "fedq-operator": {
            "FEDQ_AMQP_URL": f"{amqp}://operator:{rabbitmq}@rabbitmq:{amqp_port}/fedq",
            "FEDQ_REDIS_URL": f"{'rediss' if tls else 'redis'}://:{redis}@redis:6379/0",
            "FEDQ_S3_ACCESS_KEY": operators[0],
            "FEDQ_S3_SECRET_KEY": operators[1],
        },
        # The trainers use this Secret and have no other credentials.
        "fedq-trainer": {
            "FEDQ_AMQP_URL": f"{amqp}://trainer:{trainer}@rabbitmq:{amqp_port}/fedq",
            "FEDQ_S3_ACCESS_KEY": trainers[0],
            "FEDQ_S3_SECRET_KEY": trainers[1],
        },
        # The Job `setup` uses this Secret to create the trainers' user and key.
        "fedq-setup": {
            "FEDQ_TRAINER_AMQP_PASSWORD": trainer,
            "FEDQ_TRAINER_S3_ACCESS_KEY": trainers[0],
            "FEDQ_TRAINER_S3_SECRET_KEY": trainers[1],
        },
        # The servers use these Secrets; RabbitMQ's has the form that its cluster operator reads.
        "fedq-rabbitmq": {
            "username": "operator",
            "password": rabbitmq,
            "default_user.conf": f"default_user = operator\ndefault_pass = {rabbitmq}\n",
            "host": f"rabbitmq.{NAMESPACE}.svc",
            "port": str(amqp_port),
            "provider": "rabbitmq",
            "type": "rabbitmq",
        },
        "fedq-redis": {"password": redis},
        # KEDA uses this Secret; it queries RabbitMQ from another namespace.
        "fedq-keda": {
            "host": f"{http}://operator:{rabbitmq}@rabbitmq.{NAMESPACE}.svc:{http_port}/fedq",
            "tls": "enable" if tls else "disable",
        },
    }


def _secret(name: str, values: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": "fedq"}},
        "type": "Opaque",
        "stringData": values,
    }


def _password() -> str:
    """A random password, which needs no escaping in a URL."""
    return secrets.token_urlsafe(24)


def _key(name: str) -> tuple[str, str]:
    """A random access key and its secret key."""
    return name, _password()


if __name__ == "__main__":
    main()
