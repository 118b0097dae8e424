"""Progress of a watched job: takes in events, and describes what is new in each in a sentence.

This module is pure. An event may come twice, from the bus and from the record; the second one yields nothing new.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.events import (
    AnyEvent,
    JobStatus,
    Member,
    Missing,
    ModelEvaluated,
    ModelUpdate,
    RoundEnd,
    RoundStart,
    TrainingEnd,
)
from shared.redis.ledger import JobRecord, RoundRecord


@dataclass
class EndedRound:
    """Progress of a round that is over."""

    number: int
    updates: int
    rejected: int
    seconds: float
    client_loss: float | None = None
    client_accuracy: float | None = None
    tested: Mapping[str, float] = field(default_factory=dict)  # metrics of the model on the test set
    held_out: Mapping[str, float] = field(default_factory=dict)  # metrics of the model on held-out examples
    members: tuple[Member, ...] = ()  # clients that have evaluated the model
    parts: set[int] = field(default_factory=set)  # parts of the evaluation that were received

    @property
    def loss(self) -> float | None:
        """Loss of the model, on the test set or else on the clients' held-out examples."""
        return (self.tested or self.held_out).get("loss")

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the model, on the same examples as its loss."""
        return (self.tested or self.held_out).get("accuracy")


@dataclass
class JobProgress:
    """Progress of a job, as far as its events have been received."""

    job: str
    count: int  # number of rounds that the job is to have
    status: str = "queued"
    detail: str = ""
    note: str = ""  # an obstacle that was found while no event arrived
    round: int = -1  # the open round, or else the last one
    attempt: int = 0
    cohort: set[str] = field(default_factory=set)
    size: int = 0  # size of the whole cohort, which arrives in parts
    answered: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    rows: dict[int, EndedRound] = field(default_factory=dict)
    end: TrainingEnd | None = None

    @property
    def committed(self) -> int:
        """The last round that has a model; -1 before the initial model."""
        return max(self.rows, default=self.end.rounds if self.end else -1)

    def recall(self, record: JobRecord, open_round: RoundRecord | None) -> str:
        """Takes over the ledger's state, and describes what is new; empty if nothing is."""
        self.count = record.rounds
        news = self._describe(record.status, record.detail)
        if open_round is not None and open_round.state == "open":
            self._open(open_round.number, open_round.attempt, open_round.cohort)
            self.answered.update(open_round.accepted)
            self.failed.update(open_round.rejected)
        return news

    def apply(self, event: AnyEvent) -> str:
        """Takes in an event and describes it; empty if it is known already or belongs to another job."""
        if getattr(event, "job", None) != self.job:
            return ""
        news = ""
        match event:
            case JobStatus():
                news = self._describe(event.status, event.detail)
            case RoundStart():
                news = self._on_round_start(event)
            case ModelUpdate():
                news = self._on_model_update(event)
            case RoundEnd():
                news = self._on_round_end(event)
            case ModelEvaluated():
                news = self._on_model_evaluated(event)
            case TrainingEnd():
                self.end = event
                news = self._describe(event.outcome, event.reason)
        return news

    def _describe(self, status: str, detail: str) -> str:
        if (status, detail) == (self.status, self.detail):
            return ""
        self.status, self.detail = status, detail
        return f"{status}: {detail}" if detail else status

    def _on_round_start(self, event: RoundStart) -> str:
        self.count = event.spec.rounds.count
        before = len(self.cohort) if (event.round, event.attempt) == (self.round, self.attempt) else 0
        if event.round <= self.committed:
            return ""
        self._open(event.round, event.attempt, event.cohort, event.cohort_size)
        self._describe("running", "")
        if len(self.cohort) == before:
            return ""  # the aggregator repeats the event for clients that have not answered
        again = f", attempt {event.attempt}" if event.attempt > 1 else ""
        if event.round == 0:
            return f"{self._name(0)}: asked {event.cohort[0]} for the initial model{again}"
        return f"{self._name(event.round)}: {_many(self.size, 'client')} asked{again}"

    def _open(self, number: int, attempt: int, cohort: tuple[str, ...], size: int = 0) -> None:
        if (number, attempt) != (self.round, self.attempt):
            self.round, self.attempt, self.size = number, attempt, 0
            self.cohort, self.answered, self.failed = set(), set(), {}
        self.cohort.update(cohort)
        self.size = max(self.size, size, len(self.cohort))

    def _on_model_update(self, event: ModelUpdate) -> str:
        """Takes in the update of one client, or of all clients in a batch."""
        if event.round != self.round:
            return ""
        failures = dict(event.failures) or ({event.client: event.error} if event.error is not None else {})
        failed = {client: error for client, error in failures.items() if self._is_new(client)}
        self.failed.update(failed)
        told = [] if event.error is not None else [member.client for member in event.members] or [event.client]
        delivered = [client for client in told if self._is_new(client)]
        self.answered.update(delivered)
        news = []
        if delivered:
            of = f" of {self.size}" if self.size else ""
            news.append(f"{len(self.answered)}{of} updates in, {_first(delivered)}")
        if failed:
            news.append(f"{_first(list(failed))} failed: {next(iter(failed.values()))}")
        return f"{self._name(event.round)}: {'; '.join(news)}" if news else ""

    def _is_new(self, client: str) -> bool:
        return client not in self.answered and client not in self.failed

    def _on_round_end(self, event: RoundEnd) -> str:
        if event.outcome != "committed":
            return f"{self._name(event.round)}: {event.outcome}: {event.reason}"
        if event.round in self.rows:
            return ""
        row = EndedRound(event.round, event.accepted, event.rejected, event.seconds)
        row.client_loss, row.client_accuracy = event.metrics.get("client_loss"), event.metrics.get("client_accuracy")
        self.rows[event.round] = row
        asked = self.size if event.round == self.round else 0  # the size is known only for the current round
        self.round = max(self.round, event.round)
        if event.round == 0:
            return f"{self._name(0)}: the initial model is there, {event.seconds:.1f} s"
        updates = f"{event.accepted} of {asked} updates" if asked > event.accepted else _many(event.accepted, "update")
        refused = f", {event.rejected} rejected" if event.rejected else ""
        clients = _figures("clients' ", row.client_loss, row.client_accuracy)
        return f"{self._name(event.round)}: committed {updates}{refused}{clients}, {event.seconds:.1f} s"

    def _on_model_evaluated(self, event: ModelEvaluated) -> str:
        if event.error is not None:
            return f"{self._name(event.round)}: not evaluated: {event.error}"
        row = self.rows.get(event.round)
        if row is None or not event.examples or event.part in row.parts:
            return ""
        row.parts.add(event.part)
        if event.members:
            row.members += event.members
            place, found = f"on {_many(len(row.members), 'client')}", _means(row.members)
            row.held_out = found
        elif event.metrics.keys() & {"loss", "accuracy"}:
            place, found = "test", event.metrics
            row.tested = found
        else:  # an event rebuilt from the record has only the means over clients
            place, found = (
                "on the clients",
                {name.removeprefix("local_"): event.metrics[name] for name in event.metrics},
            )
            row.held_out = found
        figures = _figures("", found.get("loss"), found.get("accuracy"))
        return f"{self._name(event.round)}: {place}{figures.removeprefix(',')}"

    def _name(self, number: int) -> str:
        return f"round {number}/{self.count}"


def last_line(end: TrainingEnd) -> str:
    """One line that sums up a finished job."""
    accuracy, place = end.metrics.get("accuracy"), ""
    if accuracy is None:
        accuracy, place = end.metrics.get("local_accuracy"), " on the clients"
    begin = "finished" if accuracy is None else f"accuracy {accuracy:.3f}{place}"
    said = "".join(f"; {part}" for part in (end.reason, missing(end.missing)) if part)
    return f"{begin} after {_many(end.rounds, 'round')} ({end.seconds:.1f} s){said}"


def missing(found: Missing) -> str:
    """One line about clients and updates that are missing from a job's models; empty if there are none."""
    parts = []
    if found.clients:
        more = f" and {found.clients - len(found.first)} more" if found.clients > len(found.first) else ""
        parts.append(f"in no model: {', '.join(found.first)}{more}")
    if found.refused:
        parts.append(f"{_many(found.refused, 'update')} refused")
    if found.failed:
        parts.append(f"clients failed {_many(found.failed, 'time')}")
    return "; ".join(parts)


def _means(members: Sequence[Member]) -> dict[str, float]:
    """Means of the metrics of all clients, weighted by their numbers of examples."""
    names = set.intersection(*(set(member.metrics) for member in members))
    total = sum(member.examples for member in members)
    return {name: sum(member.metrics[name] * member.examples for member in members) / total for name in sorted(names)}


def _first(clients: Sequence[str]) -> str:
    return f"{clients[0]} and {len(clients) - 1} more" if len(clients) > 1 else clients[0]


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _figures(whose: str, loss: float | None, accuracy: float | None) -> str:
    told = [(name, value) for name, value in (("loss", loss), ("accuracy", accuracy)) if value is not None]
    return "".join(f", {whose if index == 0 else ''}{name} {value:.3f}" for index, (name, value) in enumerate(told))
