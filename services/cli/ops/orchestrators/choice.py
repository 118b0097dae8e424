"""Choice of the orchestrator: the one that the user names, or the one that runs fedq here."""

from collections.abc import Sequence
from typing import Protocol

from services.cli.ops.orchestrators import On, compose, kubernetes, native
from services.cli.ops.orchestrators.tools import QUERY, NotHere, Source
from shared.errors import BadInput, Unavailable

LOOK = 5.0  #: seconds for a cluster that was not named to answer; it may have been switched off long ago


class Nowhere(BadInput):
    """Error raised if no orchestrator runs fedq here."""


class Orchestrator(Protocol):
    """Program that runs fedq's services."""

    @property
    def name(self) -> str:
        """The name of the orchestrator, as `--on` takes it."""

    @property
    def place(self) -> str:
        """Description of the place in which the services run."""

    def count(self, pool: str) -> int:
        """Current size of a pool, in trainers; `BadInput` if there is no such pool."""

    def scale(self, pool: str, wanted: int) -> str:
        """Changes the number of trainers of a pool to `wanted`, and describes the change in a sentence."""

    def sources(self, follow: bool) -> list[Source]:
        """Sources of the services' log lines; with `follow`, also of future lines."""


def chosen(on: On | None, namespace: str | None, among: Sequence[On]) -> Orchestrator:
    """The named or only orchestrator; `BadInput` if the choice is unclear or it does not run here."""
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
        except (NotHere, Nowhere, Unavailable) as error:  # a stopped Docker does not rule out Kubernetes
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
