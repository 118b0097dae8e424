"""Evaluation of a round's model, as a value that collects the answers and computes the figures.

Pure. Figures on the clients' own held-out examples are the mean over examples, the mean over clients, and the mean of
the worst tenth of the clients (Mohri et al. 2019 and Li et al. 2019 explain why a mean alone is not fair).
"""

import hashlib
import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from services.aggregator.selection import lottery
from services.aggregator.selection.cohort import population
from shared.events import BlobRef, ModelEvaluated, fitting
from shared.job.job_spec import JobSpec
from shared.record.rounds import Unsound

SERVER = 0  #: number of the part that is the pool's test set


def part_of(clients: Sequence[str]) -> int:
    """Returns the number of the part that consists of these clients; it depends on nothing else.

    An earlier owner may have cut the clients into other parts, and the answers to its requests arrive here.
    """
    if not clients:
        return SERVER
    return 1 + int.from_bytes(hashlib.sha256("/".join(clients).encode()).digest()[:6], "big")


def part_of_tests(spec: JobSpec, group: str) -> int:
    """Returns the number of the part that is the test set of a pool or of one silo."""
    return SERVER if spec.pool is not None else part_of(("", group))  # no client's name is empty


def whose_tests(spec: JobSpec, part: int) -> str | None:
    """Returns the pool or silo whose test set a part is, or None if the part consists of clients."""
    return next((group for group in _testers(spec) if part_of_tests(spec, group) == part), None)


def next_tester(spec: JobSpec, alive: Mapping[str, int], excluded: Collection[str], last: str) -> str | None:
    """Returns the pool or silo to ask next: the `last` one that had a test set, else the next that may, or None."""
    able = [group for group in _testers(spec) if group not in excluded and (spec.pool is not None or alive.get(group))]
    return last if last in able else next(iter(able), None)


def nobody_has_tests(spec: JobSpec, untested: Collection[str]) -> bool:
    """Returns True if the job's pool, or each of its silos, has reported that it has no test set."""
    return all(group in untested for group in _testers(spec))


def _testers(spec: JobSpec) -> tuple[str, ...]:
    return spec.silos if spec.silos is not None else (spec.pool or "",)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one round's model, with the answers so far."""

    round: int
    parts: Collection[int] = frozenset({SERVER})  # numbers of the requested parts
    answered: Mapping[int, ModelEvaluated] = field(default_factory=dict)  # part → its answer
    model: BlobRef | None = None  # the evaluated model, if this owner requested the evaluation
    tried: Mapping[str, str] = field(default_factory=dict)  # pool or silo that measured nothing on tests → error or ""

    @property
    def complete(self) -> bool:
        """True once each requested part is answered."""
        return self.answered.keys() == set(self.parts)

    def answered_by(self, event: ModelEvaluated) -> "Evaluation":
        """Returns the evaluation with an answer added, or itself if the part has an answer or was not requested."""
        if event.part not in self.parts or event.part in self.answered:
            return self
        return replace(self, answered={**self.answered, event.part: event})

    def unmeasured(self, spec: JobSpec) -> str:
        """Returns the reasons why a figure that the job wants was not measured; empty if all were."""
        return "; ".join(filter(None, (self.untested(spec), self._unmeasured_on_clients(spec))))

    def untested(self, spec: JobSpec) -> str:
        """Returns the reason why nothing was measured on a test set, if the job wants that; empty otherwise."""
        if spec.evaluate.where == "clients" or any(whose_tests(spec, part) for part in self.answered):
            return ""
        if errors := [error for error in self.tried.values() if error]:
            return f"the model was not measured on a test set: {errors[0]}"
        whose = "the data have no test set" if spec.pool is not None else "no silo that is there has a test set"
        return f"{whose}, and the model was not measured on any (data.test_fraction, or test() of your own data)"

    def _unmeasured_on_clients(self, spec: JobSpec) -> str:
        """Returns the reason why nothing was measured on the clients, if the job wants that; empty otherwise."""
        if spec.evaluate.where == "server" or self.clients:
            return ""
        errors = [event.error for part, event in self.answered.items() if event.error and not whose_tests(spec, part)]
        if errors:
            return f"the model was not measured on the clients: {errors[0]}"
        return "no client that was asked holds out examples, and the model was measured on none (data.local_test)"

    @property
    def examples(self) -> int:
        return sum(event.examples for event in self.answered.values())

    @property
    def clients(self) -> dict[str, dict[str, float]]:
        """Figures of each client, with its number of examples."""
        members = [member for _, event in sorted(self.answered.items()) for member in event.members]
        return {member.client: {**member.metrics, "examples": member.examples} for member in members}

    @property
    def metrics(self) -> dict[str, float]:
        """Figures on the test set, and those on the clients with the prefix `local_`; as many as an event may carry."""
        on_tests = {name: value for event in self.answered.values() for name, value in event.metrics.items()}
        return fitting(on_tests | summary(self.clients))

    def document(self) -> dict[str, Any]:
        """Returns the evaluation in its stored form."""
        stored: dict[str, Any] = {"round": self.round, "examples": self.examples, "metrics": self.metrics}
        stored["traffic"] = {"down": sum(event.downloaded for event in self.answered.values())}
        return stored | ({"clients": self.clients} if self.clients else {})


@dataclass(frozen=True)
class Evaluations:
    """Evaluations of a job: the pending ones, and the figures of the complete ones."""

    pending: Mapping[int, Evaluation] = field(default_factory=dict)  # round → its evaluation
    tester: str = ""  # the last pool or silo that had a test set
    untested: frozenset[str] = frozenset()  # pools and silos that reported that they have no test set
    latest: int = -1  # the last round whose evaluation this owner knows
    unsound: Unsound = field(default_factory=Unsound)  # figures that are not finite in that evaluation
    progress: Mapping[int, float] = field(default_factory=dict)  # round → the figure that may end the job
    clients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # clients' figures since the last commit

    def asked(self, evaluation: Evaluation, tester: str = "") -> "Evaluations":
        """Returns the evaluations with a new or changed one; `tester` had its test set."""
        pending = {**self.pending, evaluation.round: evaluation}
        return replace(self, pending=pending, tester=tester or self.tester)


def evaluators(spec: JobSpec, alive: Mapping[str, int], number: int) -> tuple[str, ...]:
    """Returns the clients to evaluate the model of round `number` on: all alive, or `evaluate.clients` drawn."""
    able = population(spec, alive)
    most = spec.evaluate.clients
    if most is None or most >= len(able):
        return tuple(able)
    if len(able) > lottery.LISTED:
        return spec.in_order(list(islice(lottery.shuffled(f"evaluate/{spec.seed}/{number}", able), most)))
    return spec.in_order(heapq.nsmallest(most, able, key=lambda client: _lot(spec.seed, number, client)))


def _lot(seed: int, number: int, client: str) -> bytes:
    return hashlib.sha256(f"evaluate/{seed}/{number}/{client}".encode()).digest()


def summary(clients: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns the means of the clients' figures, for each figure that all clients have; empty without clients."""
    if not clients:
        return {}
    total = sum(figures["examples"] for figures in clients.values())
    names = sorted(set.intersection(*(set(figures) for figures in clients.values())) - {"examples"})
    means = {
        f"local_{name}": sum(figures[name] * figures["examples"] for figures in clients.values()) / total
        for name in names
    }
    for name in names:
        values = sorted(figures[name] for figures in clients.values())
        means[f"local_{name}_mean"] = math.fsum(values) / len(values)
    if "accuracy" in names:
        worst = sorted(figures["accuracy"] for figures in clients.values())[: math.ceil(len(clients) / 10)]
        means["local_accuracy_worst_decile"] = math.fsum(worst) / len(worst)
    return means
