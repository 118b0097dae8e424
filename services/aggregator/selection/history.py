"""What selection knows of a job's clients: what each of its rounds told, one after the other.

Pure and immutable. It follows from the job's record alone, so that whoever takes a job over selects as its last owner
would have.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from services.aggregator.selection import oort, tifl
from services.aggregator.selection.known import STRANGER, Known
from services.aggregator.selection.oort import Pacer
from services.aggregator.selection.tifl import Tiers
from shared.job.catalog.selection import Oort, PowerOfChoice, Tifl
from shared.job.job_spec import JobSpec


@dataclass(frozen=True)
class Report:
    """What a client's accepted update told."""

    examples: int
    metrics: Mapping[str, float]
    seconds: float  # from when it was begun to when it was sent


@dataclass(frozen=True)
class Facts:
    """What a committed round told of the clients."""

    number: int
    cohort: tuple[str, ...]  # asked anew in this round
    reports: Mapping[str, Report]  # of each client whose update counted, whenever it was asked
    #: The last evaluation on the clients, where there was one since the round before: each client's figures.
    evaluated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """What the rounds so far told of each client, and what the policy made of it."""

    clients: Mapping[str, Known] = field(default_factory=dict)
    oort: Pacer | None = None
    tifl: Tiers | None = None

    def to_document(self) -> dict[str, Any]:
        """As it is stored; exact, and some 100 bytes a client as compact JSON."""
        document: dict[str, Any] = {"clients": {client: list(known) for client, known in self.clients.items()}}
        if self.oort is not None:
            document["oort"] = asdict(self.oort)
        if self.tifl is not None:
            document["tifl"] = asdict(self.tifl)
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "History":
        """The history in a document."""
        clients = {client: Known(*values) for client, values in document["clients"].items()}
        pacer, tiers = document.get("oort"), document.get("tifl")
        return cls(clients, Pacer(**pacer) if pacer else None, _tiers(tiers) if tiers else None)


NOTHING = History()  #: before the first round


def is_needed(spec: JobSpec) -> bool:
    """Whether the job's policy goes by what is known of the clients; the others go by the round alone."""
    return isinstance(spec.select, PowerOfChoice | Oort | Tifl)


def observe(history: History, spec: JobSpec, facts: Facts) -> History:
    """What is known once a round is committed. Round 0 tells nothing: nobody trained in it."""
    if facts.number == 0:
        return history
    clients = dict(history.clients)
    for name in facts.cohort:
        client = clients.get(name, STRANGER)
        clients[name] = client._replace(asked=client.asked + 1, last_asked=facts.number)
    for name, report in facts.reports.items():
        client = clients.get(name, STRANGER)
        clients[name] = client._replace(
            accepted=client.accepted + 1,
            last_accepted=facts.number,
            examples=report.examples,
            loss=_figure(report.metrics, "client_loss", "train_loss", otherwise=client.loss),
            accuracy=_figure(report.metrics, "client_accuracy", otherwise=client.accuracy),
            seconds=report.seconds,
        )
    for name, metrics in facts.evaluated.items():
        client = clients.get(name, STRANGER)
        clients[name] = client._replace(accuracy=_figure(metrics, "accuracy", otherwise=client.accuracy))
    match spec.select:
        case Oort() as policy:
            return History(clients, oort=oort.observed(policy, history.oort, history.clients, clients, facts))
        case Tifl() as policy:
            return History(clients, tifl=tifl.observed(spec, policy, history, clients, facts))
        case _:
            return History(clients)


def _tiers(document: Mapping[str, Any]) -> Tiers:
    """JSON knows no tuples."""
    rows = {key: tuple(document[key]) for key in ("credits", "chances", "figures")}
    return Tiers(**rows, current=document["current"])


def _figure(metrics: Mapping[str, float], *names: str, otherwise: float | None) -> float | None:
    """The first of the named metrics that is a number; a client's own step may report what it likes."""
    return next((metrics[name] for name in names if name in metrics and math.isfinite(metrics[name])), otherwise)
