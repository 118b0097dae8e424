"""Requests of an operator to a job that has not ended: stop, pause or resume.

The request is written into the bucket, in case Redis is lost; then into the ledger, which the job's owner reads with
every lease renewal; then an event announces it.
"""

import queue
import secrets
import time
from collections.abc import Callable

from services.cli.report import history
from services.cli.servers import Servers
from services.cli.ui import output
from shared import names
from shared.amqp import topology
from shared.amqp.connection import Delivery
from shared.errors import BadInput, BadMessage, Unavailable
from shared.events import AnyEvent, JobStatus, PauseTraining, StartTraining, StopTraining, TrainingEnd
from shared.job.job_spec import JobSpec
from shared.record import archive
from shared.redis.ledger import ENDED, JobRecord, Wanted

STOPPING = 30.0  #: seconds to wait for a job to end, or to pause after its round is over


def stop(servers: Servers, job: str, reason: str) -> str:
    """Requests a job's end, waits for it, and returns the outcome as a sentence."""
    record = _live(servers, job)
    if record.status == "paused":
        return _stop_paused(servers, record, reason)
    inbox = _Inbox(servers, job)
    _want(servers, job, Wanted("stopped", reason))
    servers.bus.publish(StopTraining(job=job, reason=reason), required=False)
    return _ended(servers, record, inbox)


def _stop_paused(servers: Servers, record: JobRecord, reason: str) -> str:
    """Stops a paused job: it has no owner, so it is queued again for an aggregator to end it in order."""
    job = record.id
    inbox = _Inbox(servers, job)
    _write(servers, job, Wanted("stopped", reason))
    servers.ledger.revive(job, record.rounds)
    _want(servers, job, Wanted("stopped", reason))  # repeated here because `revive` resets the request to running
    _ring(servers, job)
    return _ended(servers, record, inbox)


def _ended(servers: Servers, record: JobRecord, inbox: "_Inbox") -> str:
    if record.status in ("queued", "paused") and not servers.aggregators():
        return f"stop requested; job {record.id} is {servers.why_queued()}"
    output.note(f"stop requested; waiting for job {record.id} to end")
    end = inbox.wait(lambda event: isinstance(event, TrainingEnd), STOPPING)
    if not isinstance(end, TrainingEnd):
        raise Unavailable(
            f"job {record.id} was asked to stop and has not ended within {STOPPING:.0f} s; "
            f"`fedq watch {record.id}` shows what it does"
        )
    return f"job {record.id} {end.outcome} after {end.rounds} rounds"


def pause(servers: Servers, job: str, reason: str) -> str:
    """Requests that a job open no further round, waits until it is paused or has ended, and says which."""
    record = _live(servers, job)
    if record.status == "paused":
        raise BadInput(f"job {job} is paused already; `fedq resume {job}` continues it")
    if record.wanted.status == "stopped":
        raise BadInput(f"job {job} is about to be stopped; `fedq watch {job}` shows its end")
    inbox = _Inbox(servers, job)
    _want(servers, job, Wanted("paused", reason))
    servers.bus.publish(PauseTraining(job=job, reason=reason), required=False)
    if record.status == "queued" and not servers.aggregators():
        return f"pause requested; job {job} is {servers.why_queued()}"
    patience, what = STOPPING, "to be paused"
    open_round = servers.ledger.round(job, record.round + 1)
    if open_round is not None and open_round.state in ("open", "closed"):
        patience += max(0.0, open_round.deadline - servers.ledger.now())
        what = f"to finish round {open_round.number}, {patience:.0f} s at most"
    output.note(f"pause requested; waiting for job {job} {what}")
    told = inbox.wait(lambda event: isinstance(event, TrainingEnd) or _is_paused(event), patience)
    if isinstance(told, TrainingEnd):
        return f"job {job} {told.outcome} after {told.rounds} rounds"
    if told is None:
        raise Unavailable(
            f"job {job} was asked to pause and has not within {patience:.0f} s; "
            f"`fedq watch {job}` shows what it does, and `fedq resume {job}` takes the wish back"
        )
    committed = max(0, servers.ledger.required(job).round)
    return f"job {job} paused after {committed} rounds; `fedq resume {job}` continues it"


def resume(servers: Servers, job: str) -> str:
    """Withdraws a request to pause, or queues a paused job again; says which."""
    record = _live(servers, job, ended=f"`fedq start --resume {job}` continues it")
    if record.status != "paused":
        if record.wanted.status == "stopped":
            raise BadInput(f"job {job} is about to be stopped; once it has, `fedq start --resume {job}` continues it")
        if record.wanted.status == "running":
            raise BadInput(f"job {job} is {record.status}, not paused: there is nothing to resume")
    _want(servers, job, Wanted())
    record = servers.ledger.required(job)  # the job may have been paused since the first look
    if record.status == "paused":
        servers.ledger.revive(job, record.rounds)
        _ring(servers, job)
        return f"job {job} goes on with round {record.round + 1}"
    _ring(servers, job)
    return f"job {job} was not paused yet, and goes on"


def _live(servers: Servers, job: str, ended: str = "") -> JobRecord:
    """The record of a job that has not ended, restored from the bucket if Redis has lost it."""
    record = servers.ledger.job(job)
    if record is None:
        record = history.record(servers.blobs, job) or servers.ledger.required(job)
        if record.status not in ENDED:
            servers.ledger.restore(record)
    if record.status in ENDED:
        raise BadInput(f"job {job} has ended already: {record.status}" + (f"; {ended}" if ended else ""))
    return record


def _want(servers: Servers, job: str, wanted: Wanted) -> None:
    before = archive.optional(servers.blobs, names.wanted_blob(job))
    _write(servers, job, wanted)
    answer = servers.ledger.want(job, wanted)
    if answer in ENDED:
        # An ended job does not read its requests, and this one must not take effect if the job is resumed later.
        if before is None:
            servers.blobs.delete(names.wanted_blob(job))
        raise BadInput(f"job {job} has ended already: {answer}")


def _write(servers: Servers, job: str, wanted: Wanted) -> None:
    record = {"job": job, "wanted": wanted.status, "reason": wanted.reason}
    servers.blobs.put_json(names.wanted_blob(job), record)


def _ring(servers: Servers, job: str) -> None:
    """Asks an aggregator to take the job; harmless if one owns it, because the event is then stale."""
    spec = history.known_spec(servers.blobs, servers.ledger, job)
    servers.bus.declare(topology.commands(), topology.updates(job), topology.dead_letters())
    servers.bus.publish(StartTraining(job=job, spec=JobSpec.model_validate(spec)))


def _is_paused(event: AnyEvent) -> bool:
    return isinstance(event, JobStatus) and event.status == "paused"


class _Inbox:
    """Inbox of a job's events from its construction on."""

    def __init__(self, servers: Servers, job: str) -> None:
        self._servers = servers
        self._job = job
        self._events: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._subscription = servers.bus.consume(topology.watcher(secrets.token_hex(6), job), self._events.put)

    def wait(self, wanted: Callable[[AnyEvent], bool], patience: float) -> AnyEvent | None:
        """The first wanted event; if none arrives within `patience` seconds, an event rebuilt from the record."""
        deadline = time.monotonic() + patience
        found = None
        while found is None:
            try:
                delivery = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                found = self._recorded()
                found = found if found is not None and wanted(found) else None
                break
            delivery.ack()
            try:
                event = delivery.decode()
            except BadMessage:
                continue  # a later version of fedq may have sent it
            found = event if wanted(event) else None
        self._servers.bus.cancel(self._subscription)
        return found

    def _recorded(self) -> AnyEvent | None:
        """The event that may have been missed, rebuilt from the record; None if the job still runs."""
        record = self._servers.ledger.job(self._job)
        if record is not None and record.status in ENDED:
            return history.end_of(self._servers.blobs, record)
        if record is not None and record.status == "paused":
            return JobStatus(job=self._job, status="paused", detail=record.detail)
        return None
