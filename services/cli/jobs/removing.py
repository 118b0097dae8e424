"""Permanent removal of ended jobs, and of the queues of silos or pools that will not come back."""

import re
import sys
from collections.abc import Sequence

import typer

from services.cli.report import history
from services.cli.servers import Servers
from services.cli.ui import output
from shared import names
from shared.errors import BadInput, FedqError, Refused
from shared.names import CLIENT_NAME, JOB_ID
from shared.redis.ledger import ENDED, LIVE


def remove(servers: Servers, jobs: Sequence[str], statuses: Sequence[str], *, yes: bool) -> None:
    """Removes jobs, given by id or by final status, from Redis, the bucket and RabbitMQ, after confirmation.

    The ledger comes first, because it says whether a job has ended. If the command is interrupted, the next one
    removes the rest.
    """
    check_statuses(statuses)
    chosen = dict.fromkeys(jobs)
    chosen |= dict.fromkeys(record.id for record in servers.ledger.jobs() if record.status in statuses)
    if not jobs and not statuses:
        raise BadInput("there is nothing to remove: give JOB, or --status failed")
    known = {job: _status(servers, job) for job in chosen}
    if not known:
        print(f"no job is {' or '.join(statuses)}")
        return
    listed = ", ".join(f"{job} ({status})" for job, status in known.items())
    agree(f"Removes for good, with its models, records and kept updates: {listed}", yes)
    for job in known:
        answer = servers.ledger.remove(job)
        if answer != "ok":
            raise BadInput(_is_live(job, answer))
        try:
            servers.blobs.remove([names.job_blob(job)])  # first: without it, the rest is no job
            removed = servers.blobs.delete(names.job_prefix(job))
            servers.bus.delete(names.updates_queue(job))
        except FedqError as error:
            raise type(error)(f"{error}; a part of job {job} is left: `fedq rm {job}` removes it") from error
        print(f"removed {job}: {removed + 1} objects")


def forget(servers: Servers, group: str, *, yes: bool) -> None:
    """Removes the queues of a silo or pool, after confirmation; `BadInput` if a trainer serves it or a job needs it.

    Otherwise the queues stay, however long they have no listener, because work waits there for trainers that return.
    """
    if not re.fullmatch(CLIENT_NAME, group):
        raise BadInput(f"{group} is no name of a silo or pool: letters, digits, - and _, at most 63")
    if serving := [member.trainer for member in servers.roster.alive() if member.group == group]:
        raise BadInput(f"{group} has trainers, {output.shortened(serving)}: stop them before it is forgotten")
    for record in servers.ledger.jobs():
        spec = (history.spec(servers.blobs, record.id) or {}) if record.status in LIVE else {}
        if group in (spec.get("pool"), *(spec.get("silos") or ())):
            raise BadInput(f"job {record.id} is {record.status} and asks {group}: stop it before {group} is forgotten")
    queues = [names.rounds_queue(group), names.tasks_queue(group)]
    found = {queue: depth for queue in queues if (depth := servers.bus.depth(queue)) is not None}
    if not found:
        raise BadInput(f"no queue waits for {group}; `fedq nodes` lists who is there")
    if listening := [queue for queue, (_, consumers) in found.items() if consumers]:
        raise BadInput(f"somebody listens to {', '.join(listening)}: stop that trainer before {group} is forgotten")
    agree(f"Removes the queues of {group}, and {sum(ready for ready, _ in found.values())} messages in them", yes)
    for queue in found:
        servers.bus.delete(queue)
    print(f"forgot {group}: removed {', '.join(found)}")


def check_statuses(statuses: Sequence[str]) -> None:
    """Raises `BadInput` for a status that no ended job can have."""
    known = (*LIVE, *ENDED)
    if unknown := [status for status in statuses if status not in known]:
        several = "; give --status once for each" if "," in unknown[0] else ""
        raise BadInput(f"--status {unknown[0]} is not known; allowed: {', '.join(known)}{several}")


def agree(sentence: str, yes: bool) -> None:
    """Asks for confirmation; `BadInput` if there is no terminal to ask at and `--yes` was not given."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadInput(f"{sentence}. Without a terminal to be asked in, say --yes")
    typer.confirm(f"{sentence}. Go on?", abort=True, err=True)


def _status(servers: Servers, job: str) -> str:
    """The status of an ended job, or "in part" for a partly removed one; `BadInput` if it runs or does not exist.

    A job that Redis does not know and whose records are damaged cannot continue either: its status is "unreadable".
    """
    record = servers.ledger.job(job)
    if record is None and re.fullmatch(JOB_ID, job):
        try:
            record = history.record(servers.blobs, job)
        except Refused:
            return "unreadable"
        if record is None and servers.blobs.list(names.job_prefix(job)):
            return "in part"
    status = (record or servers.ledger.required(job)).status
    if status not in ENDED:
        raise BadInput(_is_live(job, status))
    return status


def _is_live(job: str, status: str) -> str:
    return f"job {job} is {status}: end it with `fedq stop {job}` before it is removed"
