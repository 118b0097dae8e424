"""Many small clients in one task: trained one after the other, and folded before anything travels.

The sums are integers on the round's grid, so that the batch gives to the bit what its clients would have given one by
one, and the aggregator receives one blob for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from services.trainer.slot import replies
from services.trainer.slot.client import Clients, Stopwatch, measured
from services.trainer.slot.context import SlotContext
from services.trainer.slot.replies import REASON, sentence
from services.trainer.slot.simulated_client import Absent, SimulatedClient
from services.trainer.train_task import TrainTask
from shared.aggregation import fold, weights
from shared.aggregation.fold import Buffers, Fold
from shared.aggregation.strategies.choose import strategy_of
from shared.aggregation.strategies.strategy import Counted
from shared.aggregation.weights import File
from shared.errors import Stale, Unavailable
from shared.events import BlobRef, Member

log = structlog.get_logger()

#: Metrics told of each client of a batch; kept few, as an event may carry hundreds of clients.
FIGURES = ("client_loss", "client_accuracy", "train_loss", "local_norm")
NORM = "norm"  #: norm of the client's update, which travels only inside the fold


@dataclass(frozen=True)
class Folded:
    """The result of training a batch."""

    file: File | None  # the sums; None if no client's training came to an end
    members: tuple[Member, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    downloaded: int = 0

    @property
    def examples(self) -> int:
        return sum(member.examples for member in self.members)

    @property
    def metrics(self) -> dict[str, float]:
        """The means over all examples."""
        shared: Sequence[str] = [
            name for name in FIGURES if self.members and all(name in member.metrics for member in self.members)
        ]
        total = self.examples
        return {name: sum(member.metrics[name] * member.examples for member in self.members) / total for name in shared}


def train(context: SlotContext, task: TrainTask, base: BlobRef, watch: Stopwatch) -> Folded:
    """Trains the clients of a batch; `Stale` if none of them is there."""
    spec = task.spec
    clients = Clients(context, task, base, watch)
    strategy = strategy_of(spec.strategy, spec.population)
    layout, grid = clients.layout.of_updates(), fold.grid_of(spec, task.cohort_size)
    folded = Fold(layout.size, grid, Buffers.of(clients.base, layout, grid.max_abs))
    members, failures = [], {}
    for client in task.members:
        simulated = SimulatedClient(context, task, client)
        try:
            simulated.appear()
            trained = clients.train(client, simulated)
            norm = measured(trained.delta, trained.examples, clients.base, layout, spec).norm
            simulated.upload(trained.file.nbytes)
        except Absent as absent:
            log.info("says nothing", job=task.job, round=task.round, client=client, reason=str(absent))
            continue
        except (Stale, Unavailable):
            raise
        except BaseException as error:  # the user's code may raise anything
            replies.log_failure(log.bind(job=task.job, round=task.round, client=client), error)
            clients.renew()
            failures[client] = sentence(error, REASON)
            continue
        counted = Counted(client, trained.examples, norm=norm, metrics=trained.metrics)
        folded.add(trained.delta, strategy.weight(counted), strategy.scale(counted))
        members.append(Member(client=client, examples=trained.examples, metrics=_told(trained.metrics, norm)))
        watch.lap("upload")
    if not members and not failures:
        raise Absent("nobody of the batch is there")
    return Folded(_file(folded) if members else None, tuple(members), failures, clients.downloaded)


def _told(metrics: Mapping[str, float], norm: float) -> dict[str, float]:
    return {name: metrics[name] for name in FIGURES if name in metrics} | {NORM: norm}


def _file(folded: Fold) -> File:
    layout = weights.layout_of({"sums": ("I64", folded.sums.shape)})
    file = layout.empty_file()
    layout.views(file)["sums"][:] = folded.sums
    return file
