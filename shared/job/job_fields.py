"""Fields of a job file, as values, and properties that follow from them.

Pure. `job_spec` checks that they go together.
"""

from collections.abc import Collection
from functools import cached_property

from pydantic import Field, StrictBool, StrictInt

from shared.job.catalog.choice import Custom, Strict
from shared.job.catalog.compression import CompressSpec
from shared.job.catalog.data import DataSpec, InFiles
from shared.job.catalog.models import ModelSpec
from shared.job.catalog.rounds import EvaluateSpec, LimitsSpec, RoundsSpec
from shared.job.catalog.selection import SelectAll, SelectSpec, Some
from shared.job.catalog.simulation import SimulateSpec
from shared.job.catalog.strategies import FedAvg, FedBuff, Scaffold, StrategySpec
from shared.job.catalog.training import TrainChoice, TrainSpec
from shared.job.clients import Listed, Numbered
from shared.names import JOB_NAME, ClientName


class JobFields(Strict):
    """Fields of a job file, and properties that follow; `JobSpec` adds the check that they go together."""

    name: str = Field(pattern=JOB_NAME)
    seed: StrictInt = Field(default=0, ge=0, lt=2**31)
    model: ModelSpec
    data: DataSpec
    train: TrainChoice = TrainSpec()
    select: SelectSpec = SelectAll()
    rounds: RoundsSpec
    strategy: StrategySpec = FedAvg()
    compress: CompressSpec = CompressSpec()
    limits: LimitsSpec = LimitsSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    simulate: SimulateSpec | None = None
    pool: ClientName | None = None
    silos: tuple[ClientName, ...] | None = Field(default=None, min_length=1)
    keep_updates: StrictBool = False

    @property
    def population(self) -> int:
        """Number of clients of the job."""
        return len(self.silos) if self.silos is not None else self.data.clients or 0

    @cached_property
    def clients(self) -> Listed | Numbered:
        """Names of the clients, in order."""
        return Listed(self.silos) if self.silos is not None else Numbered(self.population)

    def in_order(self, clients: Collection[str]) -> tuple[str, ...]:
        """The given clients, in the job's order."""
        return tuple(sorted(clients, key=self.clients.index))

    @property
    def has_own_files(self) -> bool:
        """True if each client trains on all of a separate file, not on a share of the files that all of them have."""
        return are_own(self.silos, self.data)

    @property
    def needs_test_set(self) -> bool:
        """True if the model is evaluated on the data's held-out test set."""
        return self.evaluate.every > 0 and self.evaluate.where != "clients"

    @property
    def cohort_size(self) -> int:
        """Number of clients that a round asks."""
        if isinstance(self.select, Some):
            return min(self.select.size, self.population)
        return self.population

    @property
    def target(self) -> int:
        """Number of updates that close a round."""
        if isinstance(self.strategy, FedBuff):
            return self.strategy.buffer_size
        wanted = self.select.clients if isinstance(self.select, Some) else self.cohort_size
        return self.rounds.target or wanted

    @property
    def minimum(self) -> int:
        """Number of updates that a round needs at its deadline."""
        return self.rounds.minimum or (1 if self.max_staleness else self.target)

    @property
    def max_staleness(self) -> int:
        """Number of rounds by which an update's base may be old; 0 if rounds are synchronous."""
        return self.strategy.max_staleness if isinstance(self.strategy, FedBuff) else 0

    @property
    def is_stateful(self) -> bool:
        """True if clients keep something from round to round."""
        feedback = self.compress.update is not None and self.compress.update.error_feedback
        keeps = bool(self.train.personal) or self.train.buffers == "local"
        return isinstance(self.strategy, Scaffold) or feedback or keeps

    @property
    def has_code(self) -> bool:
        """True if trainers run the user's own code for the job."""
        return bool(self.code)

    @property
    def code(self) -> tuple[str, ...]:
        """The names, `module:attribute`, of the user's own code that trainers run."""
        return tuple(part.name for part in (self.model, self.data, self.train) if isinstance(part, Custom))

    def group_of(self, client: str) -> str:
        """Name of the queue's owner for a client's work: its pool, or the client itself."""
        return self.pool or client


def are_own(silos: tuple[str, ...] | None, data: object) -> bool:
    """True if each client trains on a whole, separate file."""
    return silos is not None and isinstance(data, InFiles)
