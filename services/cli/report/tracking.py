"""Tracking of a job by `fedq track`: each round's metrics in TensorBoard files and on an MLflow server.

The metrics come from the record, so that a job can be tracked while it runs, later, or twice. A sink knows which
points it already has and stores only the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli.report import history, rows
from services.cli.report.history import PastRound
from services.cli.report.progress import JobProgress
from services.cli.report.trackers import Point, Sink
from services.cli.report.watching import View, Watch
from services.cli.servers import Servers
from services.cli.ui import output
from shared.errors import BadInput, Unavailable
from shared.events import AnyEvent, ModelEvaluated, RoundEnd, TrainingEnd

LATE = 3  #: rounds after which a missing evaluation is not looked for again until the job's end


@dataclass(frozen=True)
class Places:
    """Trackers that the user has chosen."""

    tensorboard: Path | None
    mlflow: str | None

    def __post_init__(self) -> None:
        if self.tensorboard is None and not self.mlflow:
            raise BadInput("say where to: --tensorboard DIR, or --mlflow URI (or MLFLOW_TRACKING_URI), or both")

    def sinks(self, job: str, spec: Mapping[str, Any]) -> Iterator[Sink]:
        """Yields a sink for each chosen tracker; `BadInput` if its package is missing."""
        if self.tensorboard is not None:
            from services.cli.report.tensorboard import TensorBoard

            yield TensorBoard(self.tensorboard, job, spec)
        if self.mlflow:
            from services.cli.report.mlflow_runs import Run

            yield Run(self.mlflow, job, spec)


def track(servers: Servers, job: str, view: View, places: Places, clients: int) -> TrainingEnd:
    """Follows a job to its end, and sends each committed round to all sinks."""
    spec = history.known_spec(servers.blobs, servers.ledger, job)
    population = len(spec["silos"] or ()) or spec["data"]["clients"]
    if population > clients > 0:
        output.note(f"{clients} of {population} clients get series of their own; --clients says how many")
    told = list(places.sinks(job, spec))
    tracking = Tracking(servers, job, spec, view, told, clients)
    outcome, at = None, None
    try:
        end = Watch(servers, job, tracking).follow()
        tracking.tell(final=True)
        outcome, at = end.outcome, tracking.last
    finally:
        for sink in told:
            sink.end(outcome, at)
    return end


class Tracking:
    """View that wraps another view, and sends to the sinks what is new in the record."""

    def __init__(
        self, servers: Servers, job: str, spec: Mapping[str, Any], view: View, told: Sequence[Sink], clients: int
    ) -> None:
        self._servers, self._job, self._spec, self._view, self._sinks = servers, job, spec, view, told
        self._clients = clients
        self._next = 0  # the first round whose manifest has not been read
        self._unjudged: list[int] = []  # rounds that may still be evaluated
        self._followed: list[str] = []  # clients that have separate series
        self.last: float | None = None  # commit time of the last round

    def show(self, progress: JobProgress, sentence: str, event: AnyEvent | None = None, /) -> None:
        self._view.show(progress, sentence, event)
        if event is None or isinstance(event, RoundEnd | ModelEvaluated):
            self.tell()

    def tell(self, *, final: bool = False) -> None:
        """Sends to the sinks the points that are new in the record since the last call."""
        try:
            found = self._news(final)
        except Unavailable:
            if final:
                raise
            return  # the next call, on an event or a change of the record, catches up
        if not found:
            return
        judged = {past.number for past in found if past.evaluation}
        expected = {past.number for past in found if self._is_judged(past)}
        self._unjudged = sorted({*self._unjudged, *expected} - judged)
        self._next = max(self._next, found[-1].number + 1)
        self.last = max(self.last or 0.0, *(past.manifest.committed for past in found))
        points = [point for past in found for point in self._points(past)]
        for sink in self._sinks:
            sink.add(points)

    def _news(self, final: bool) -> list[PastRound]:
        """Earlier rounds with a new evaluation, then the new rounds."""
        blobs = self._servers.blobs
        again = [number for number in self._unjudged if final or number >= self._next - LATE]
        known = [past for number in again for past in history.rounds(blobs, self._job, number, number)]
        return [past for past in known if past.evaluation] + history.rounds(blobs, self._job, self._next)

    def _is_judged(self, past: PastRound) -> bool:
        every = self._spec["evaluate"]["every"]
        last = past.number == self._spec["rounds"]["count"]
        return bool(every) and (past.number % every == 0 or last or self._spec["evaluate"].get("stop") is not None)

    def _points(self, past: PastRound) -> Iterator[Point]:
        at = past.manifest.committed
        whole, *clients = rows.of_round(past)
        figures: dict[str, float] = {f"train/{name}": value for name, value in past.manifest.metrics.items()}
        figures |= {f"test/{name}": value for name, value in past.tested.items()}
        figures |= {"round/seconds": past.manifest.seconds}
        if past.number:
            states = [row.state for row in clients]
            figures |= {f"round/{state}": states.count(state) for state in ("accepted", "rejected", "unanswered")}
            figures |= {"round/examples": whole.examples or 0}
        for row in clients:
            if row.client not in self._followed and len(self._followed) < self._clients:
                self._followed.append(row.client)
            if row.client in self._followed:
                figures |= {f"client/{row.client}/{name}": value for name, value in _own(row)}
        yield from (Point(tag, past.number, float(value), at) for tag, value in figures.items())


def _own(row: rows.Row) -> Iterator[tuple[str, float]]:
    known = {"examples": row.examples, "seconds": row.seconds, "norm": row.norm, **row.metrics}
    yield from ((name, float(value)) for name, value in known.items() if value is not None)
