"""Starting and stopping a job."""

import queue
import re
import secrets
import time
from contextlib import suppress

from services.cli import output
from services.cli.servers import Servers
from services.cli.watching import Watch
from shared import names, topology
from shared.errors import BadInput, BadMessage, FedqError, Unavailable
from shared.events import StartTraining, StopTraining, TrainingEnd, encode
from shared.jobs import JOB_ID, JobSpec
from shared.ledger import ENDED
from shared.link import Delivery

STOPPING = 30.0  #: seconds that a job is waited for to end


def check_id(job: str) -> str:
    """The id a person chose, or `BadInput` with what one looks like."""
    if not re.fullmatch(JOB_ID, job):
        raise BadInput(
            f"--id {job}: a job id is lower-case letters, digits and -, at most 39 of them, "
            "then - and 6 letters or digits, such as digits-first1"
        )
    return job


def start(servers: Servers, job: str, spec: JobSpec, watch: Watch | None = None) -> None:
    """Records a job and announces it: both, or neither."""
    event = StartTraining(job=job, spec=spec)
    try:
        encode(event)
    except BadMessage as error:
        raise BadInput(f"the job is too long to be announced: {error}") from error
    if servers.blobs.exists(names.job_blob(job)):  # the record, also where Redis has forgotten it
        raise BadInput(f"job {job} exists already in the bucket; choose another --id or leave it out")
    if not servers.ledger.create(job, spec.rounds.count):
        status = servers.ledger.required(job).status
        raise BadInput(f"job {job} exists already (status {status}); choose another --id or leave it out")
    declared = False
    try:
        servers.bus.declare(topology.commands(), topology.updates(job), topology.dead_letters())
        declared = True
        if watch is not None:
            watch.subscribe()  # before anybody can take the job: nothing of it is missed
        servers.bus.publish(event)
    except BaseException:
        with suppress(FedqError):  # what went wrong first is what the person hears
            servers.ledger.forget(job)
            if declared:
                servers.bus.delete(names.updates_queue(job))
        raise


def stop(servers: Servers, job: str, reason: str) -> TrainingEnd | None:
    """Asks for a job's end and waits for it; None where it has to wait for an aggregator first."""
    record = servers.ledger.required(job)
    if record.status in ENDED:
        raise BadInput(f"job {job} has ended already: {record.status}")
    inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    subscription = servers.bus.consume(topology.watcher(secrets.token_hex(6), job), inbox.put)
    try:
        servers.bus.publish(StopTraining(job=job, reason=reason))
    except Unavailable:
        # Its queue is gone: it ended in this moment, unless RabbitMQ itself is away.
        record = servers.ledger.required(job)
        if record.status in ENDED:
            raise BadInput(f"job {job} has ended already: {record.status}") from None
        raise
    if record.status == "queued" and not servers.aggregators():
        return None
    output.note(f"stop requested; waiting for job {job} to end")
    end = _await_end(inbox, time.monotonic() + STOPPING)
    servers.bus.cancel(subscription)
    if end is None:
        raise Unavailable(
            f"job {job} was asked to stop and has not ended within {STOPPING:.0f} s; "
            f"`fedq watch {job}` shows what it does"
        )
    return end


def _await_end(inbox: "queue.SimpleQueue[Delivery]", deadline: float) -> TrainingEnd | None:
    while True:
        try:
            delivery = inbox.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None
        delivery.ack()
        event = delivery.decode()
        if isinstance(event, TrainingEnd):
            return event
