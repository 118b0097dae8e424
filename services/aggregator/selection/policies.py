"""Table of all selection policies, and the history of a job's clients that they choose by.

Pure. The history is read from its stored form and updated by each round. It follows from the job's record alone, so
that the next owner of a job selects as the last one would have.
"""

import math
from collections.abc import Mapping
from typing import Any

from services.aggregator.selection.oort import OortPolicy
from services.aggregator.selection.policy import STRANGER, ClientStats, Facts, History, SelectionPolicy
from services.aggregator.selection.power_of_choice import PowerOfChoicePolicy
from services.aggregator.selection.tifl import TiflPolicy
from services.aggregator.selection.without_history import AllPolicy, RandomPolicy, RoundRobinPolicy
from shared.job.job_spec import JobSpec

#: Selection policies by their names in a job file.
POLICIES: Mapping[str, SelectionPolicy[Any]] = {
    "all": AllPolicy(),
    "random": RandomPolicy(),
    "round_robin": RoundRobinPolicy(),
    "power_of_choice": PowerOfChoicePolicy(),
    "oort": OortPolicy(),
    "tifl": TiflPolicy(),
}


def read_history(document: Mapping[str, Any]) -> History:
    """Returns the history that `History.to_document` stored."""
    clients = {client: ClientStats(*values) for client, values in document["clients"].items()}
    states = {name: policy.state(document[name]) for name, policy in POLICIES.items() if document.get(name)}
    return History(clients, states)


def is_needed(spec: JobSpec) -> bool:
    """Returns True if the job's policy chooses by the history; the other policies need the round alone."""
    return POLICIES[spec.select.name].keeps_history


def observe(history: History, spec: JobSpec, facts: Facts) -> History:
    """Returns the history once a round is committed. Round 0 changes nothing: no client trained in it."""
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
    state = POLICIES[spec.select.name].observe(spec.select, spec, history, clients, facts)
    return History(clients, {} if state is None else {spec.select.name: state})


def _figure(metrics: Mapping[str, float], *names: str, otherwise: float | None) -> float | None:
    """Returns the first of the named metrics that is finite; a user's own training step may report anything."""
    return next((metrics[name] for name in names if name in metrics and math.isfinite(metrics[name])), otherwise)
