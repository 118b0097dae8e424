"""Orchestrators of fedq: Docker Compose, Kubernetes, or processes of this machine; each asked by its command line."""

from enum import StrEnum


class On(StrEnum):
    """Orchestrator that runs fedq's services, as `--on` names it."""

    compose = "compose"
    kubernetes = "kubernetes"
    native = "native"
