"""What the owner of a job has at hand: the servers, its fence, the job's arrays, and where the job stands."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import structlog

from services.aggregator.accumulator import Accumulator
from services.aggregator.client_history import ClientHistory
from services.aggregator.evaluation import Evaluation
from services.aggregator.outcome import Unsound
from services.aggregator.turnout import Turnout
from shared.amqp.bus import Bus
from shared.amqp.connection import Subscription
from shared.errors import Unavailable
from shared.events import BlobRef, fitting
from shared.job.catalog.selection import SelectAll
from shared.job.job_spec import JobSpec
from shared.redis.ledger import Ledger
from shared.redis.roster import Roster
from shared.s3.store import Blobs

UNSAID = 100  #: faults remembered while Redis is not there to be told of them


@dataclass(frozen=True)
class Edges:
    """The servers, a thread for work that nobody waits for, and a clock in seconds."""

    bus: Bus
    blobs: Blobs
    ledger: Ledger
    roster: Roster
    later: Executor
    clock: Callable[[], float] = time.monotonic


class Faults:
    """A job's faults on their way to its log and to the counts that are everybody's."""

    def __init__(self, ledger: Ledger, job: str) -> None:
        self._ledger, self._job = ledger, job
        self._unsaid: list[tuple[str, Sequence[str], int]] = []

    def note(self, fault: str, detail: str, number: int = -1) -> None:
        """Counts a fault and writes it into the job's log, now or when Redis is there again."""
        self.note_all(fault, [detail], number)

    def note_all(self, fault: str, details: Sequence[str], number: int = -1) -> None:
        """The same fault several times, each with a detail of its own."""
        self._unsaid.append((fault, details, number))
        try:
            while self._unsaid:
                name, texts, of = self._unsaid[0]
                self._ledger.note_all(name, texts, self._job, of)
                del self._unsaid[0]
        except Unavailable:
            del self._unsaid[:-UNSAID]


@dataclass
class JobContext:
    """One owner's place at one job."""

    edges: Edges
    job: str
    fence: int
    spec: JobSpec
    faults: Faults
    subscription: Subscription | None
    accumulator: Accumulator = field(init=False)
    log: Any = field(init=False)
    committed: int = -1  # the last round that is
    metrics: dict[str, float] = field(default_factory=dict)  # the latest
    first_opened: float = 0.0  # seconds since the epoch, by Redis's clock
    announced: bool = False  # whoever watches has been told that the job runs
    alive: dict[str, int] = field(default_factory=dict)  # slots of each group, when last looked
    clearing: Future[None] | None = None
    client_history: ClientHistory = field(
        default_factory=ClientHistory
    )  # of the clients, up to the last committed round
    history_blob: BlobRef | None = None  # where that lies
    previous: BlobRef | None = None  # the model before the current one
    delta: BlobRef | None = None  # what makes the current one of it, compressed
    server: BlobRef | None = None  # what the strategy keeps
    evaluations: dict[int, Evaluation] = field(default_factory=dict)  # that are asked for and not complete
    evaluated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # clients' figures since the last commit
    turnout: Turnout = field(init=False)  # of the rounds that this owner committed, and at the end of all
    tester: str = ""  # the pool or silo that had a test set last
    untested: set[str] = field(default_factory=set)  # those that said they have none
    code: dict[str, str] = field(default_factory=dict)  # digest of the user's files → the trainer that ran them first
    judged: int = -1  # the last round whose evaluation this owner has heard
    unsound: Unsound = field(default_factory=Unsound)  # what is not finite in the last evaluation
    progress: dict[int, float] = field(default_factory=dict)  # round → the figure that may end the job

    def __post_init__(self) -> None:
        self.accumulator = Accumulator(self.edges.blobs, self.job, self.spec, self.edges.clock)
        everybody = self.spec.silos is not None and isinstance(self.spec.select, SelectAll)
        self.turnout = Turnout(self.spec.clients, everybody=everybody)
        self.log = structlog.get_logger().bind(job=self.job)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Takes in what was measured last; of all that ever was, no more is kept than the job's end can tell."""
        earlier = {name: value for name, value in self.metrics.items() if name not in metrics}
        self.metrics = fitting({**metrics, **earlier})

    def settle_clearing(self) -> None:
        """Waits until the last round's leftovers are gone."""
        if self.clearing is not None:
            self.clearing.result()
