"""Orchestrators of fedq: Docker Compose and Kubernetes by their command lines, or processes of this machine."""

from enum import StrEnum


class On(StrEnum):
    """Orchestrator that runs fedq's services, as `--on` names it."""

    compose = "compose"
    kubernetes = "kubernetes"
    native = "native"
