"""Servers that a command uses, each connected on first use."""

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

LAST = "last"  #: stands for the id of the newest job; no id is this short
PATIENCE = 5.0  #: seconds before the user is told that RabbitMQ or the object store does not answer


class Servers:
    """Connections to RabbitMQ, Redis and the object store of `FEDQ_*`; each driver is imported on first use."""

    def __init__(self) -> None:
        self.settings = settings.load(Cli)
        user_code.permit(self.settings.allow, "this fedq")
        # A command prints all that matters itself; a log line would break up its table.
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
        """The id that `job` means: the id itself, or for `last` the id of the newest job."""
        if job != LAST:
            return job
        newest = self.ledger.newest()
        if newest is None:
            raise BadInput("there is no job that could be the last; `fedq start FILE` starts one")
        return newest

    def aggregators(self) -> int:
        """Number of aggregators that could take a job now."""
        found = self.bus.depth(names.COMMANDS)
        return found[1] if found else 0

    def why_queued(self) -> str:
        """Reason why no aggregator has taken a queued job yet."""
        if self.aggregators():
            return "queued: an aggregator is about to take it"
        # An aggregator that has as many jobs as it may have stops listening for more.
        if any(job.status in ("running", "waiting") for job in self.ledger.jobs()):
            return "queued: no aggregator has room for another job; start one with `python -m services.aggregator`"
        return "queued: no aggregator is running; start one with `python -m services.aggregator`"
