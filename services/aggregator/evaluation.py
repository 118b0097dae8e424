"""How good a round's model is, put together of the answers of those who were asked.

Pure. On the clients, each on its own held-out examples: the mean over examples, the mean over clients, and the mean of
the worst tenth of the clients (Mohri et al. 2019 and Li et al. 2019 say why a mean alone is not fair).
"""

import hashlib
import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from services.aggregator.outcome import Unsound
from services.aggregator.selection import lottery
from services.aggregator.selection.cohort import population
from shared.events import BlobRef, ModelEvaluated, fitting
from shared.job.job_spec import JobSpec

SERVER = 0  #: the part that is the server's test set


def part_of(clients: Sequence[str]) -> int:
    """The number of the part that these clients are: the same whoever asks, and another for any other clients.

    An earlier owner may have cut the clients otherwise, and its answers come to this one.
    """
    if not clients:
        return SERVER
    return 1 + int.from_bytes(hashlib.sha256("/".join(clients).encode()).digest()[:6], "big")


def part_of_tests(spec: JobSpec, group: str) -> int:
    """The number of the part that a pool's test set is, or one silo's."""
    return SERVER if spec.pool is not None else part_of(("", group))  # no client's name is empty


def whose_tests(spec: JobSpec, part: int) -> str | None:
    """The pool or silo whose test set a part is; None where it is one of clients."""
    return next((group for group in _testers(spec) if part_of_tests(spec, group) == part), None)


def next_tester(spec: JobSpec, alive: Mapping[str, int], without: Collection[str], known: str) -> str | None:
    """The group to ask for the test set: the one `known` to have it, else the next that may; None for nobody."""
    there = [group for group in _testers(spec) if group not in without and (spec.pool is not None or alive.get(group))]
    return known if known in there else next(iter(there), None)


def nobody_has_tests(spec: JobSpec, untested: Collection[str]) -> bool:
    """True where all that hold data of the job have said that they have no test set."""
    return all(group in untested for group in _testers(spec))


def _testers(spec: JobSpec) -> tuple[str, ...]:
    return spec.silos if spec.silos is not None else (spec.pool or "",)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one round's model, while answers come in."""

    round: int
    parts: Collection[int] = frozenset({SERVER})  # numbers of the parts that were asked for
    answered: Mapping[int, ModelEvaluated] = field(default_factory=dict)  # part → its answer
    model: BlobRef | None = None  # the evaluated model, if this owner asked for it
    tried: Mapping[str, str] = field(default_factory=dict)  # group asked for a test set in vain → its error, if any

    @property
    def complete(self) -> bool:
        """True once each part that was asked for is answered."""
        return self.answered.keys() == set(self.parts)

    def answered_by(self, event: ModelEvaluated) -> "Evaluation":
        """The evaluation with an answer; the first answer to a part stands, and one to another part is left out."""
        if event.part not in self.parts or event.part in self.answered:
            return self
        return replace(self, answered={**self.answered, event.part: event})

    def unmeasured(self, spec: JobSpec) -> str:
        """Reasons why a figure that the job wants was not measured; empty where all of them were."""
        return "; ".join(filter(None, (self.untested(spec), self._unheld(spec))))

    def untested(self, spec: JobSpec) -> str:
        """The reason why nothing was measured on a test set, where that was wanted; empty otherwise."""
        if spec.evaluate.where == "clients" or any(whose_tests(spec, part) for part in self.answered):
            return ""
        if errors := [error for error in self.tried.values() if error]:
            return f"the model was not measured on a test set: {errors[0]}"
        whose = "the data have no test set" if spec.pool is not None else "no silo that is there has a test set"
        return f"{whose}, and the model was not measured on any (data.test_fraction, or test() of your own data)"

    def _unheld(self, spec: JobSpec) -> str:
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
        """Each client's figures, with its examples."""
        members = [member for _, event in sorted(self.answered.items()) for member in event.members]
        return {member.client: {**member.metrics, "examples": member.examples} for member in members}

    @property
    def metrics(self) -> dict[str, float]:
        """The server's figures by their names, the clients' with `local_` before them; as many as can be told."""
        own = {name: value for event in self.answered.values() for name, value in event.metrics.items()}
        return fitting(own | summary(self.clients))

    def document(self) -> dict[str, Any]:
        """What the record keeps."""
        found: dict[str, Any] = {"round": self.round, "examples": self.examples, "metrics": self.metrics}
        found["traffic"] = {"down": sum(event.downloaded for event in self.answered.values())}
        return found | ({"clients": self.clients} if self.clients else {})


@dataclass(frozen=True)
class Evaluations:
    """Evaluations of a job: those under way, and the figures of those that are complete."""

    pending: Mapping[int, Evaluation] = field(default_factory=dict)  # round → its evaluation
    tester: str = ""  # the pool or silo that had a test set last
    untested: frozenset[str] = frozenset()  # pools and silos that said they have none
    latest: int = -1  # the last round whose evaluation this owner knows
    unsound: Unsound = field(default_factory=Unsound)  # figures that are not finite in that evaluation
    progress: Mapping[int, float] = field(default_factory=dict)  # round → the figure that may end the job
    clients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # clients' figures since the last commit

    def asked(self, evaluation: Evaluation, tester: str = "") -> "Evaluations":
        """The evaluations with one that was asked for or answered; `tester` had its test set."""
        pending = {**self.pending, evaluation.round: evaluation}
        return replace(self, pending=pending, tester=tester or self.tester)


def evaluators(spec: JobSpec, alive: Mapping[str, int], number: int) -> tuple[str, ...]:
    """The clients that evaluate the model of round `number`: all that can, or `evaluate.clients` of them by lot."""
    there = population(spec, alive)
    most = spec.evaluate.clients
    if most is None or most >= len(there):
        return tuple(there)
    if len(there) > lottery.LISTED:
        return spec.in_order(list(islice(lottery.shuffled(f"evaluate/{spec.seed}/{number}", there), most)))
    return spec.in_order(heapq.nsmallest(most, there, key=lambda client: _lot(spec.seed, number, client)))


def _lot(seed: int, number: int, client: str) -> bytes:
    return hashlib.sha256(f"evaluate/{seed}/{number}/{client}".encode()).digest()


def summary(clients: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What the figures of single clients come to; empty without clients."""
    if not clients:
        return {}
    total = sum(found["examples"] for found in clients.values())
    names = sorted(set.intersection(*(set(found) for found in clients.values())) - {"examples"})
    means = {
        f"local_{name}": sum(found[name] * found["examples"] for found in clients.values()) / total for name in names
    }
    for name in names:
        values = sorted(found[name] for found in clients.values())
        means[f"local_{name}_mean"] = math.fsum(values) / len(values)
    if "accuracy" in names:
        worst = sorted(found["accuracy"] for found in clients.values())[: math.ceil(len(clients) / 10)]
        means["local_accuracy_worst_decile"] = math.fsum(worst) / len(worst)
    return means
