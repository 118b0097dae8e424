"""The servers that a command talks to, each connected to when it is first needed."""

from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from shared import names
from shared.errors import BadInput
from shared.job import user_code
from shared.process import logs, settings
from shared.process.settings import Cli

if TYPE_CHECKING:
    from shared.amqp.bus import Bus
    from shared.redis.client import Redis
    from shared.redis.ledger import Ledger
    from shared.redis.roster import Roster
    from shared.s3.store import Blobs

LAST = "last"  #: stands for the id of the job that was started last; no id is so short
PATIENCE = 5.0  #: seconds until a person hears that RabbitMQ or the object store does not answer


class Servers:
    """RabbitMQ, Redis and the object store of `FEDQ_*`; a driver is loaded with its first use."""

    def __init__(self) -> None:
        self.settings = settings.load(Cli)
        user_code.permit(self.settings.allow, "this fedq")
        # A command says itself what matters; a log line would break into its table.
        level = "debug" if self.settings.log_level == "debug" else "critical"
        logs.configure(self.settings.model_copy(update={"log_level": level}), "cli")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if "bus" in self.__dict__:
            self.bus.close(timeout=1)

    @cached_property
    def bus(self) -> "Bus":
        from shared.amqp.bus import Bus

        return Bus(self.settings, "cli", patience=PATIENCE)

    @cached_property
    def redis(self) -> "Redis":
        from shared.redis.client import Redis

        return Redis(self.settings)

    @cached_property
    def ledger(self) -> "Ledger":
        from shared.redis.ledger import Ledger

        return Ledger(self.redis)

    @cached_property
    def roster(self) -> "Roster":
        from shared.redis.roster import Roster

        return Roster(self.redis)

    @cached_property
    def blobs(self) -> "Blobs":
        from shared.s3.store import Blobs

        return Blobs(self.settings, patience=PATIENCE)

    def named(self, job: str) -> str:
        """The id that a person means by `job`: itself, or that of the newest job for `last`."""
        if job != LAST:
            return job
        newest = self.ledger.newest()
        if newest is None:
            raise BadInput("there is no job that could be the last; `fedq start FILE` starts one")
        return newest

    def aggregators(self) -> int:
        """Number of aggregators that would take a job now."""
        found = self.bus.depth(names.COMMANDS)
        return found[1] if found else 0

    def why_queued(self) -> str:
        """Reason for which a job waits that no aggregator has taken yet."""
        if self.aggregators():
            return "queued: an aggregator is about to take it"
        # One with all the jobs it may have stops listening for more.
        if any(job.status in ("running", "waiting") for job in self.ledger.jobs()):
            return "queued: no aggregator has room for another job; start one with `python -m services.aggregator`"
        return "queued: no aggregator is running; start one with `python -m services.aggregator`"
