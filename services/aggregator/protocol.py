"""Inputs of a job's state, and the effects it asks for: the protocol between `job_state` and `coordinator`.

Pure. An input says what happened. An effect asks for work on the servers, and the work results in further inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from services.aggregator.client_history import ClientHistory
from services.aggregator.evaluation import Evaluation
from shared.events import BlobRef
from shared.record.rounds import Unsound

Outcome = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Artifacts:
    """Blobs that the last committed round left for the next one."""

    round: int = -1  # -1 before round 0 is committed
    previous: BlobRef | None = None  # the model before the current one
    delta: BlobRef | None = None  # the compressed difference from `previous` to the current model
    server: BlobRef | None = None  # the strategy's state
    client_history: ClientHistory = field(default_factory=ClientHistory)
    history_blob: BlobRef | None = None  # the stored `client_history`


# --- inputs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """The roster was read: the slots alive in each pool and silo, and the clients that are away."""

    alive: Mapping[str, int]
    away: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Opened:
    """The round was recorded, and its cohort asked unless a review comes first; its deadline is `seconds` away."""

    seconds: float
    at: float = 0.0  # time of opening, in seconds since the epoch by Redis's clock


@dataclass(frozen=True)
class Announced:
    """Watchers were notified that the job runs, or what it waits for."""

    status: Literal["running", "waiting"]


@dataclass(frozen=True)
class CodeSeen:
    """A trainer runs user code whose files have a digest that no trainer had before."""

    digest: str
    trainer: str


@dataclass(frozen=True)
class Accepted:
    """A client's update was counted and folded."""

    client: str


@dataclass(frozen=True)
class Failed:
    """A client reported that it cannot deliver, and why."""

    client: str
    why: str = ""


@dataclass(frozen=True)
class Rejected:
    """An update in a client's name was refused; the refusal is `final` if no better answer can follow."""

    client: str
    why: str
    final: bool


@dataclass(frozen=True)
class Reviewed:
    """The open round's updates in the object store were received; its deadline is `seconds` away."""

    seconds: float


@dataclass(frozen=True)
class Interrupted:
    """Events may have been lost: the connection broke, or work vanished from its queue."""

    reason: str = ""  # for the job's log, if it is not there yet


@dataclass(frozen=True)
class Committed:
    """The round's model and manifest are in the object store; the manifest says which clients have answered.

    The state may lack some of them, if the ledger accepted an update and its reply was lost. The next owner would
    follow the manifest, and so must this one.
    """

    answered: frozenset[str] | None = None  # clients with an answer in the manifest; None: those in the state
    artifacts: Artifacts | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationChanged:
    """An evaluation was requested, or a part of it was answered; `tester` had the test set."""

    evaluation: Evaluation
    tester: str = ""


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of a round's model is complete, or known to be impossible; `done` says why it ends the job."""

    round: int
    done: str = ""  # the reason why the job needs no further round; empty if it needs one
    lacking: str = ""  # the reason why something was not measured, for a job that ends with this round
    metrics: Mapping[str, float] = field(default_factory=dict)  # the job's latest figures, with these
    clients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # each client's figures
    unsound: Unsound | None = None  # None if a later model's figures are known already
    progress: Mapping[int, float] = field(default_factory=dict)  # round → the figure that may end the job
    tester: str = ""  # the pool or silo that had the test set


@dataclass(frozen=True)
class Untested:
    """The pool or silo asked to evaluate a round's model on its test set has none, or failed."""

    round: int
    evaluation: Evaluation | None = None
    without_tests: str = ""  # the pool or silo, if it reported for the first time that it has no test set


@dataclass(frozen=True)
class Joined:
    """A trainer has joined the roster."""


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True)
class Stopped:
    """An operator ended the job."""

    reason: str


@dataclass(frozen=True)
class Paused:
    """An operator wants no further round for now."""

    reason: str


@dataclass(frozen=True)
class Resumed:
    """An operator wants the job to go on."""


Input = (
    Looked
    | Opened
    | Announced
    | CodeSeen
    | Accepted
    | Failed
    | Rejected
    | Reviewed
    | Interrupted
    | Committed
    | EvaluationChanged
    | Evaluated
    | Untested
    | Joined
    | Ticked
    | Stopped
    | Paused
    | Resumed
)

# --- effects --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """Read the roster."""


@dataclass(frozen=True)
class Wait:
    """Notify watchers what the job waits for."""

    detail: str


@dataclass(frozen=True)
class Open:
    """Record the round and, if `ask`, ask its cohort, except the clients in flight."""

    round: int
    attempt: int
    cohort: tuple[str, ...]
    ask: bool = True
    in_flight: Mapping[str, int] = field(default_factory=dict)  # client → the earlier round that asked it


@dataclass(frozen=True)
class Review:
    """Extend the open round's deadline, and receive its updates from the object store."""

    round: int


@dataclass(frozen=True)
class AskAgain:
    """Ask the clients again that have not answered."""

    round: int
    attempt: int
    cohort: tuple[str, ...]  # the unanswered clients alone
    first: bool = False  # True if this owner opened the attempt without asking; an earlier owner may have asked
    in_flight: Mapping[str, int] = field(default_factory=dict)  # client → the earlier round that asked it


@dataclass(frozen=True)
class Close:
    """Freeze the accepted updates, make the next model from them, and commit it."""

    round: int


@dataclass(frozen=True)
class Abandon:
    """End the round, or this attempt at it, without a model."""

    round: int
    attempt: int
    outcome: Literal["failed", "stopped"]
    reason: str


@dataclass(frozen=True)
class Evaluate:
    """Have a round's model evaluated on held-out data."""

    round: int


@dataclass(frozen=True)
class AskAnother:
    """Ask another silo to evaluate a round's model on its test set."""

    round: int


@dataclass(frozen=True)
class Pause:
    """Release the job until an operator resumes it."""

    reason: str


@dataclass(frozen=True)
class End:
    """End the job."""

    outcome: Outcome
    reason: str = ""


Effect = Look | Wait | Open | Review | AskAgain | Close | Abandon | Evaluate | AskAnother | Pause | End
