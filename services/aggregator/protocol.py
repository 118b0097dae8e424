"""Inputs of a job's state, and the effects it asks for: the words between `job_state` and `coordinator`.

Pure. An input tells what happened; an effect is work on the servers, which answers with inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from services.aggregator.client_history import ClientHistory
from services.aggregator.evaluation import Evaluation
from services.aggregator.outcome import Unsound
from shared.events import BlobRef

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


# --- what happens ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """The roster was read: slots alive in each pool and silo, and clients that are away."""

    alive: Mapping[str, int]
    away: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Opened:
    """The round was recorded, and announced unless it is reviewed first; it has so many seconds."""

    seconds: float
    at: float = 0.0  # seconds since the epoch, by Redis's clock


@dataclass(frozen=True)
class Announced:
    """Watchers were told that the job runs (`status` running), or what it waits for."""

    status: Literal["running", "waiting"]


@dataclass(frozen=True)
class CodeSeen:
    """A trainer runs files of the user's code with this digest, which no trainer ran before it."""

    digest: str
    trainer: str


@dataclass(frozen=True)
class Accepted:
    """A client's update was counted and folded."""

    client: str


@dataclass(frozen=True)
class Failed:
    """A client said that it cannot deliver, and why."""

    client: str
    why: str = ""


@dataclass(frozen=True)
class Rejected:
    """An update in a client's name was refused; `final` where it was the client's answer."""

    client: str
    why: str
    final: bool


@dataclass(frozen=True)
class Reviewed:
    """What the store holds of the open round was taken in; it has so many seconds left."""

    seconds: float


@dataclass(frozen=True)
class Interrupted:
    """Events may have been lost: the connection broke, or work is gone from its queue; the log has a `reason`."""

    reason: str = ""


@dataclass(frozen=True)
class Committed:
    """The round's model and manifest are in the store; who has answered it, by these.

    The engine may not have heard of all: an update was accepted, and the ledger's answer lost. The next owner goes by
    the manifest, and so must this one. None: whom the engine has heard of.
    """

    answered: frozenset[str] | None = None
    artifacts: Artifacts | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationChanged:
    """An evaluation was asked for, or a part of it answered; `tester` had the test set."""

    evaluation: Evaluation
    tester: str = ""


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of a round's model is known, or known to be impossible; `done` says why it ends the job.

    `lacking` is what was not measured, for a job that ends with this round.
    """

    round: int
    done: str = ""
    lacking: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)  # all that the job's record shows by now
    clients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # each client's figures
    unsound: Unsound | None = None  # None if a later model's figures are known already
    progress: Mapping[int, float] = field(default_factory=dict)  # round → the figure that may end the job
    tester: str = ""  # the pool or silo that had the test set


@dataclass(frozen=True)
class Untested:
    """The pool or silo that was asked for the test set of a round's evaluation has none, or failed."""

    round: int
    evaluation: Evaluation | None = None
    without_tests: str = ""  # the group, if it said that it has none


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

# --- what to do -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """Read the roster."""


@dataclass(frozen=True)
class Wait:
    """Say what the job waits for."""

    detail: str


@dataclass(frozen=True)
class Open:
    """Record the round and, if `ask`, ask its cohort, but not those who were asked in an earlier round."""

    round: int
    attempt: int
    cohort: tuple[str, ...]
    ask: bool = True
    carried: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Review:
    """Give the open round time, and take in what the store holds of it."""

    round: int


@dataclass(frozen=True)
class AskAgain:
    """Ask those again who have not answered."""

    round: int
    attempt: int
    cohort: tuple[str, ...]
    first: bool = False  # of a round that its owner opened; an earlier owner may have asked
    carried: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Close:
    """Freeze the accepted updates, make the model of them, commit it."""

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
    """Ask for the held-out evaluation of a round's model."""

    round: int


@dataclass(frozen=True)
class AskAnother:
    """Ask another silo for the test set of a round's evaluation."""

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
