"""Client history of a job: its clients' states after a round, and the figures that selection uses.

Pure. It follows from the job's manifests; a copy is stored with the last one, so that the next owner need not read all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from services.aggregator.selection import policies
from services.aggregator.selection.policy import NOTHING, Facts, History, Report
from shared.events import StateRef
from shared.job.job_spec import JobSpec
from shared.record.rounds import AcceptedUpdate

OF_CLIENTS = ("states", "clients")  #: fields of a flat document by client, stored apart; see `shared.record.parts`


@dataclass(frozen=True)
class ClientHistory:
    """Client history of the rounds up to the last committed one."""

    states: Mapping[str, StateRef] = field(default_factory=dict)  # client → its state from its last counted update
    history: History = NOTHING

    def document(self) -> dict[str, Any]:
        """Returns the history in its stored form."""
        states = {client: [ref.size, ref.digest] for client, ref in self.states.items()}
        return {"states": states, "history": self.history.to_document()}


def flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a document with the figures of `history` by client at its top level, as the stored parts need them."""
    about = dict(document["history"])
    return {"states": document["states"], "clients": about.pop("clients"), "history": about}


def is_kept(spec: JobSpec) -> bool:
    """Returns True if the job's clients have states, or its selection uses figures of the clients."""
    return spec.is_stateful or policies.is_needed(spec)


def read(document: Mapping[str, Any]) -> ClientHistory:
    """Returns the client history in a document, flat or not."""
    about = document["history"]
    if "clients" in document:
        about = {**about, "clients": document["clients"]}
    states = {
        client: StateRef(size=int(size), digest=str(digest)) for client, (size, digest) in document["states"].items()
    }
    return ClientHistory(states, policies.read_history(about))


def after(
    before: ClientHistory,
    spec: JobSpec,
    number: int,
    cohort: tuple[str, ...],
    accepted: Mapping[str, AcceptedUpdate],
    evaluated: Mapping[str, Mapping[str, float]] | None = None,
) -> ClientHistory:
    """Returns the history after round `number` is committed with these accepted updates.

    `cohort` are the clients that the round asked, without those in flight. `evaluated` are the clients' figures in the
    last evaluation on their own held-out examples.
    """
    if number == 0 or not is_kept(spec):
        return before
    fresh = {client: update.state for client, update in accepted.items() if update.state is not None}
    reports = {
        client: Report(update.examples, update.metrics, update.timings.get("total", 0.0))
        for client, update in accepted.items()
    }
    figures = before.history
    if policies.is_needed(spec):
        figures = policies.observe(figures, spec, Facts(number, cohort, reports, evaluated or {}))
    return replace(before, states={**before.states, **fresh}, history=figures)


def superseded(before: ClientHistory, now: ClientHistory) -> list[tuple[str, StateRef]]:
    """Returns the states that were replaced, each with its client."""
    return [(client, ref) for client, ref in before.states.items() if now.states.get(client, ref).digest != ref.digest]
