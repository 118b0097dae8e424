"""The ways in which fedq's services can run, as `--on` names them."""

from enum import StrEnum


class On(StrEnum):
    """Who runs them."""

    compose = "compose"
    kubernetes = "kubernetes"
    native = "native"
