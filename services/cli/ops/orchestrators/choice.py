"""Choice of the orchestrator: the one that is named, or the one that is there."""

from collections.abc import Sequence
from typing import Protocol

from services.cli.ops.orchestrators import On, compose, kubernetes, native
from services.cli.ops.orchestrators.tools import QUERY, NotHere, Source
from shared.errors import BadInput, Unavailable

LOOK = 5.0  #: seconds for a cluster that nobody has named to answer: it may be one that was switched off long ago


class Nowhere(BadInput):
    """No orchestrator runs fedq here."""


class Orchestrator(Protocol):
    """A program that runs fedq's services somewhere."""

    @property
    def name(self) -> str:
        """As `--on` names it."""

    @property
    def place(self) -> str:
        """The place where the services run, in words."""

    def count(self, pool: str) -> int:
        """Number of trainers of a pool that there should be now; `BadInput` if there is no such pool."""

    def scale(self, pool: str, wanted: int) -> str:
        """Changes the number of trainers of a pool to `wanted`, and returns in words what was changed."""

    def sources(self, follow: bool) -> list[Source]:
        """Sources of the services' log lines; with `follow`, also of those that are still to be written."""


def chosen(on: On | None, namespace: str | None, among: Sequence[On]) -> Orchestrator:
    """The orchestrator that is meant; `BadInput` if that is not clear, or if it is not there."""
    if namespace is not None:
        if on not in (None, On.kubernetes):
            raise BadInput("--namespace is for Kubernetes: leave it out, or --on")
        on = On.kubernetes
    if on is not None:
        found = _find(on, namespace, QUERY)
        if found is None:
            raise BadInput(_NOT_THERE[on])
        return found
    there, why = [], []
    for kind in among:
        try:
            there.append(_running(kind))
        except (NotHere, Nowhere, Unavailable) as error:  # a Docker that is not running says nothing about Kubernetes
            why.append(str(error))
    if len(there) > 1:
        places = " and ".join(f"{one.name} ({one.place})" for one in there)
        raise BadInput(f"fedq runs here more than once, by {places}: choose with --on")
    if not there:
        raise Nowhere(f"fedq does not run here: {'; '.join(why)}")
    return there[0]


def _running(kind: On) -> Orchestrator:
    found = _find(kind, None, LOOK)
    if found is None:
        raise Nowhere(_NOT_THERE[kind])
    if isinstance(found, native.Native) and not found.runs:
        raise Nowhere(f"{found.place} does not run any more (--on native shows what it wrote)")
    return found


def _find(kind: On, namespace: str | None, seconds: float) -> Orchestrator | None:
    match kind:
        case On.compose:
            return compose.find()
        case On.kubernetes:
            return kubernetes.find(namespace, seconds)
        case On.native:
            return native.find()


_NOT_THERE = {
    On.compose: "no compose project of fedq is there",
    On.kubernetes: "the namespace of kubectl's context has no Deployment of trainers (--namespace names another)",
    On.native: "no stack was started in this folder without Docker",
}
