"""Start of a new job, and restart of one that has ended or is paused."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from services.cli.jobs import jobfile
from services.cli.report import history
from services.cli.report.watching import Watch
from services.cli.servers import Servers
from shared import names
from shared.amqp import topology
from shared.errors import BadInput, BadMessage, FedqError, Unavailable
from shared.events import StartTraining, encode
from shared.job.job_spec import JobSpec
from shared.names import JOB_ID
from shared.record import archive
from shared.redis.ledger import ENDED, JobRecord, Wanted

FROZEN = ("name", "seed", "model", "data", "silos")  #: fixed, as the committed rounds depend on them

KEPT = ("personal", "buffers")  #: keys of `train` that cannot change, because they decide which tensors travel


def check_id(job: str) -> str:
    """Returns the given job id, or raises `BadInput` with the rules for ids."""
    if not re.fullmatch(JOB_ID, job):
        raise BadInput(
            f"--id {job}: a job id is lower-case letters, digits and -, at most 39 of them, "
            "then - and 6 letters or digits, such as digits-first1"
        )
    return job


def start(servers: Servers, job: str, spec: JobSpec, watch: Watch | None = None, folder: Path = Path()) -> None:
    """Records and announces a job: both, or neither. Relative file names in the spec are resolved from `folder`."""
    begin_with = jobfile.start_file(spec, folder)
    event = _announcement(job, spec)
    ledger, blobs, bus = servers.ledger, servers.blobs, servers.bus
    record = ledger.job(job)
    if record is None and blobs.exists(names.job_blob(job)):  # the bucket knows the job even if Redis has lost it
        raise BadInput(f"job {job} exists already in the bucket; choose another --id or leave it out")
    if record is not None or not ledger.create(job, spec.rounds.count):
        status = ledger.required(job).status
        raise BadInput(f"job {job} exists already (status {status}); choose another --id or leave it out")
    declared = False
    try:
        if begin_with is not None:
            blobs.put(names.start_blob(job), np.fromfile(begin_with, np.uint8), metadata={"job": job})
        blobs.put_json(names.job_blob(job), _document(job, spec))  # before an aggregator can take the job
        bus.declare(topology.commands(), topology.updates(job), topology.dead_letters())
        declared = True
        if watch is not None:
            watch.subscribe()  # before an aggregator can take the job, so that no event is missed
        bus.publish(event)
    except BaseException:
        # Errors of the cleanup are suppressed, so that the user sees the first error.
        with suppress(FedqError):
            ledger.forget(job)
        with suppress(FedqError):
            blobs.remove([names.job_blob(job), *([names.start_blob(job)] if begin_with else [])])
        if declared:
            with suppress(FedqError):
                bus.delete(names.updates_queue(job))
        raise


@dataclass(frozen=True)
class Continuation:
    """Plan to continue a job: its record, its spec until now, and its spec from now on."""

    record: JobRecord
    known: bool  # whether Redis has the job
    before: JobSpec
    spec: JobSpec

    @property
    def job(self) -> str:
        return self.record.id


def plan(servers: Servers, job: str, given: JobSpec | None, assignments: Sequence[str]) -> Continuation:
    """Plans how `job` continues, or raises `BadInput` with the reason if it cannot; changes nothing."""
    record = servers.ledger.job(job)
    known = record is not None
    record = record or history.record(servers.blobs, job) or servers.ledger.required(job)
    if known and record.status not in (*ENDED, "paused"):
        raise BadInput(f"job {job} is {record.status}: it goes on as it is; `fedq stop {job}` ends it")
    document = history.known_spec(servers.blobs, servers.ledger, job)
    before = jobfile.amended(document, (), names.job_blob(job))
    spec = given or jobfile.amended(document, assignments, f"job {job}")
    changed = [key for key in FROZEN if getattr(before, key) != getattr(spec, key)]
    changed += [f"train.{key}" for key in KEPT if getattr(before.train, key) != getattr(spec.train, key)]
    if (before.pool is None) != (spec.pool is None):
        changed.append("pool")
    if changed:
        raise BadInput(
            f"job {job} cannot be resumed with another {', '.join(changed)}: its committed rounds were made with what "
            "it has; start a new job for that"
        )
    committed = max(record.round, archive.committed(servers.blobs, job))
    if committed >= spec.rounds.count:
        raise BadInput(
            f"job {job} has {committed} committed rounds and rounds.count is {spec.rounds.count}; "
            f"raise it, such as --set rounds.count={committed + 1}"
        )
    return Continuation(replace(record, round=committed), known, before, spec)


def resume(servers: Servers, going_on: Continuation, watch: Watch | None = None) -> None:
    """Queues an ended or paused job again and announces it."""
    job, spec, ledger, blobs, bus = going_on.job, going_on.spec, servers.ledger, servers.blobs, servers.bus
    event = _announcement(job, spec)
    bus.declare(topology.commands(), topology.dead_letters())  # first, so that an absent broker leaves all as it was
    kept = {key: archive.optional(blobs, key) for key in (names.wanted_blob(job), names.result_blob(job))}
    try:
        blobs.put_json(names.job_blob(job), _document(job, spec))
        for key in kept:
            blobs.delete(key)
        answer = _queue_again(servers, going_on)
    except BaseException:
        with suppress(FedqError):
            blobs.put_json(names.job_blob(job), _document(job, going_on.before))
            for key, found in kept.items():
                if found is not None:
                    blobs.put_json(key, found)
        raise
    if answer != "ok":
        raise BadInput(f"job {job} is {ledger.required(job).status} now: somebody else has resumed it")
    try:
        bus.declare(topology.updates(job))
        if watch is not None:
            watch.after = going_on.record.fence
            watch.subscribe()
        bus.publish(event)
    except Unavailable as error:
        raise Unavailable(f"{error}; job {job} is queued and will be taken when that is mended") from error


def _queue_again(servers: Servers, going_on: Continuation) -> str:
    ledger, rounds = servers.ledger, going_on.spec.rounds.count
    answer = ledger.revive(going_on.job, rounds)
    if answer == "unknown":
        queued = replace(going_on.record, status="queued", detail="waiting for an aggregator", rounds=rounds, ended=0.0)
        # If an aggregator restores the job first, it does so in the old state, which must then be revived.
        return "ok" if ledger.restore(replace(queued, wanted=Wanted())) else ledger.revive(going_on.job, rounds)
    return answer


def _announcement(job: str, spec: JobSpec) -> StartTraining:
    event = StartTraining(job=job, spec=spec)
    try:
        encode(event)
    except BadMessage as error:
        raise BadInput(f"the job is too long to be announced: {error}") from error
    return event


def _document(job: str, spec: JobSpec) -> dict[str, Any]:
    return {"job": job, "spec": spec.model_dump(mode="json")}
