"""The federation in numbers for Prometheus, read from the roster and the ledger when they are asked for."""

from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.registry.handlers import Counts
from shared.redis.ledger import ENDED, LIVE, Ledger, Sum
from shared.redis.roster import Roster

#: Labels that are exported from the first scrape on, so that Prometheus sees the first event of each kind as a rise.
OUTCOMES = ("committed", "failed", "stopped")
FATES = ("accepted", "rejected", "abandoned")
PARTS = ("wait", "download", "evaluate", "train", "upload", "fold", "step")

#: Seconds for which an ended job's figures are still shown: long enough for several scrapes to see the last ones.
REMEMBERED = 3600.0


class Metrics:
    """Numbers that one process answers a scrape with."""

    def __init__(self, roster: Roster, ledger: Ledger, counts: Counts) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Trainers(roster))
        self._registry.register(_Jobs(ledger))
        self._registry.register(_Totals(ledger))
        self._registry.register(_Faults(ledger))
        self._registry.register(_Events(counts))

    def text(self) -> bytes:
        """All numbers in Prometheus's format; `Unavailable` while Redis is away."""
        return generate_latest(self._registry)


class _Trainers(Collector):
    """Number of live trainers and their slots, by pool or silo."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def collect(self) -> Iterator[Metric]:
        trainers, slots, busy = Counter[str](), Counter[str](), Counter[str]()
        for member in self._roster.alive():
            trainers[member.group] += 1
            slots[member.group] += member.slots
            busy[member.group] += member.busy
        yield _gauge("fedq_trainers", "Trainers alive", trainers, "group")
        yield _gauge("fedq_slots", "Clients that can train at once", slots, "group")
        yield _gauge("fedq_busy_slots", "Clients training now", busy, "group")


class _Jobs(Collector):
    """Progress of the jobs, and the quality of their models."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        jobs, now = self._ledger.jobs(), self._ledger.now()
        shown = [job for job in jobs if job.status in LIVE or job.ended > now - REMEMBERED]
        statuses = Counter(dict.fromkeys((*LIVE, *ENDED), 0))
        statuses.update(job.status for job in jobs)
        yield _gauge("fedq_jobs", "Jobs", statuses, "status")
        yield _gauge("fedq_job_round", "Last committed round", {job.id: job.round for job in shown}, "job")
        yield _gauge("fedq_job_rounds", "Rounds the job is to have", {job.id: job.rounds for job in shown}, "job")
        for name in ("accuracy", "loss", "client_accuracy", "client_loss"):
            figures = {job.id: job.metrics[name] for job in shown if name in job.metrics}
            yield _gauge(f"fedq_job_{name}", f"Latest {name.replace('_', ' ')} of the model", figures, "job")
        opened = {job.id: self._ledger.progress(job.id, job.round + 1) for job in jobs if job.status in LIVE}
        now_open = {job: progress for job, progress in opened.items() if progress is not None}
        updates = {job: progress.updates for job, progress in now_open.items()}
        yield _gauge("fedq_job_updates", "Updates of the open round that are in", updates, "job")
        targets = {job: progress.target for job, progress in now_open.items()}
        yield _gauge("fedq_job_target", "Updates that close the open round", targets, "job")


class _Totals(Collector):
    """Totals of all rounds that ended since Redis keeps count: the step that ends a round counts it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        totals, none = self._ledger.totals(), Sum(0, 0.0)
        rounds = dict.fromkeys(OUTCOMES, none) | dict(totals.rounds)
        updates = dict.fromkeys(FATES, 0) | dict(totals.updates)
        parts = dict.fromkeys(PARTS, none) | dict(totals.parts)
        yield _counter("fedq_rounds", "Rounds that ended", {name: one.times for name, one in rounds.items()}, "outcome")
        seconds = {name: one.seconds for name, one in rounds.items()}
        yield _counter("fedq_round_seconds", "Seconds from opening to end, of all rounds", seconds, "outcome")
        yield _counter("fedq_updates", "Updates of rounds that ended", updates, "outcome")
        seconds = {name: one.seconds for name, one in parts.items()}
        yield _counter("fedq_part_seconds", "Seconds that a part of the work on updates took", seconds, "part")
        times = {name: one.times for name, one in parts.items()}
        yield _counter("fedq_parts", "How often a part of the work on updates was done", times, "part")


class _Faults(Collector):
    """Faults seen in all jobs since Redis keeps the record."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        yield _counter("fedq_faults", "Faults seen, each in its job's log as well", self._ledger.faults(), "fault")


class _Events(Collector):
    """Events that this process has seen since it started."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        yield CounterMetricFamily("fedq_heartbeats", "Heartbeats received", counts.heartbeats)
        yield CounterMetricFamily("fedq_trainers_joined", "Trainers that joined", counts.joined)
        yield CounterMetricFamily("fedq_trainers_left", "Trainers that said goodbye", counts.left)
        yield CounterMetricFamily("fedq_trainers_lost", "Trainers whose lease ran out", counts.lost)


def _gauge(name: str, text: str, values: Mapping[str, float], label: str) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=[label]), values)


def _counter(name: str, text: str, values: Mapping[str, float], label: str) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=[label]), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family
