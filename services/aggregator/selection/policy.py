"""Protocol of a selection policy, and the values that a policy chooses by.

Pure and immutable.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from shared.job.job_spec import JobSpec

Settings_contra = TypeVar("Settings_contra", contravariant=True)  #: the policy's section of a job file; see the catalog


class ClientStats(NamedTuple):
    """Figures of one client from all rounds so far; rounds count from 1, and 0 means never."""

    asked: int = 0  # number of times
    accepted: int = 0  # number of its updates that counted
    last_asked: int = 0  # round number
    last_accepted: int = 0  # round number
    examples: int = 0  # number of examples in its last training
    loss: float | None = None  # the last that the client reported
    accuracy: float | None = None  # the last that it reported, or that was measured on its held-out examples
    seconds: float | None = None  # duration of its last update


STRANGER = ClientStats()  #: a client that was never asked


@dataclass(frozen=True)
class Report:
    """Figures that came with a client's accepted update."""

    examples: int
    metrics: Mapping[str, float]
    seconds: float  # from the start of the training to the sending of the update


@dataclass(frozen=True)
class Facts:
    """Facts about the clients that a committed round adds to the history."""

    number: int
    cohort: tuple[str, ...]  # only the clients asked in this round, not those in flight since an earlier one
    reports: Mapping[str, Report]  # client → its update that counted, whichever round asked it
    #: Figures of each client in the last evaluation on the clients, if there was one since the round before.
    evaluated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """Figures of each client after some rounds, and the state of the job's policy."""

    clients: Mapping[str, ClientStats] = field(default_factory=dict)
    states: Mapping[str, Any] = field(default_factory=dict)  # policy → its state; only the job's policy has one, if any

    def to_document(self) -> dict[str, Any]:
        """Returns the history as it is stored: exact, and about 100 bytes a client as compact JSON."""
        document: dict[str, Any] = {"clients": {client: list(stats) for client, stats in self.clients.items()}}
        return document | {name: asdict(state) for name, state in self.states.items()}


NOTHING = History()  #: the history before the first round


@dataclass(frozen=True)
class Request:
    """A cohort to choose: so many of the candidates, for one attempt at a round."""

    spec: JobSpec
    number: int
    attempt: int
    wanted: int
    candidates: Collection[str]  # in the job's order; listing them is costly if the job has a million clients
    history: History = NOTHING


class SelectionPolicy(Protocol[Settings_contra]):
    """A way to choose cohorts; it must choose the same on every machine.

    A policy's state is a dataclass that `asdict` and `state` take to JSON and back without a loss.
    """

    keeps_history: ClassVar[bool] = False  #: if False, the policy chooses without `Request.history`

    def choose(self, settings: Settings_contra, request: Request, /) -> Collection[str]:
        """Returns the clients to ask, at most as many as are wanted, in any order."""

    def observe(
        self,
        settings: Settings_contra,
        spec: JobSpec,
        before: History,
        clients: Mapping[str, ClientStats],
        facts: Facts,
        /,
    ) -> Any:
        """Returns the policy's state after a round, or None if it keeps none; `clients` are the figures after it."""
        return None

    def state(self, document: Mapping[str, Any], /) -> Any:
        """Returns the state in its stored form; None for a policy that keeps none."""
        return None
