"""Celery's two tasks, how often each is tried, and the start of the process that executes them.

Torch is imported by that process alone, and not by the parent, which imports this module too.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from billiard import current_process
from celery import current_app, shared_task, signals
from celery.exceptions import Reject
from pydantic import ValidationError

from services.trainer.parent import worker
from services.trainer.signals import Signals
from services.trainer.slot import warming
from services.trainer.slot.job_process import JobProcess
from services.trainer.train_task import HandedBack, TrainTask
from shared.amqp.connection import COUNTS, deliveries
from shared.errors import BadMessage, FedqError, Unavailable
from shared.events import EvaluateModel, check_places
from shared.text import plain

if TYPE_CHECKING:
    from services.trainer.slot.slot import Slot

log = structlog.get_logger()

Work = TypeVar("Work", TrainTask, EvaluateModel)

TRIES = 5  #: deliveries of a task that are tried; the queue's limit is higher, to let a slot say that it gives up

SILENCE = "each ended without an answer; its slot or its trainer was killed, by lack of memory perhaps"

_slot: "Slot | None" = None
_job_process: JobProcess | None = None


def train(task: Any, argument: dict[str, Any]) -> None:
    """Trains a client, or a batch of them, and says so."""
    _try(task, _read(TrainTask, argument))


def evaluate(task: Any, argument: dict[str, Any]) -> None:
    """Evaluates a model on held-out examples and says so."""
    _try(task, _read(EvaluateModel, argument))


def _read(kind: type[Work], argument: dict[str, Any]) -> Work:
    """The work in a task's argument; the task becomes a dead letter if there is none."""
    try:
        work = kind.model_validate(argument)
        check_places(work.job, work)
    except (ValidationError, BadMessage) as error:
        reason = plain(" ".join(str(error).split()))[:300]
        log.error("dead-lettered", reason=reason)
        raise Reject(reason, requeue=False) from None
    return work


def _try(task: Any, work: TrainTask | EvaluateModel) -> None:
    """Does the work, or puts it back to be tried again; at last says why it is given up, and makes it a dead letter."""
    assert _slot is not None, "a task outside a slot"  # noqa: S101
    tries = deliveries({name: task.request.get(name) for name in COUNTS})
    try:
        reason = _failure(_slot, work, tries)
        if reason is None:
            return
        _slot.give_up(work, tries, f"given up after {TRIES} tries: {reason}")
    except Unavailable as error:
        log.warning("requeued", reason=str(error), tries=tries)
        # A reject counts towards the queue's delivery limit; a failure would not.
        raise Reject(str(error), requeue=True) from None
    raise Reject(reason, requeue=False)


def _failure(slot: "Slot", work: TrainTask | EvaluateModel, tries: int) -> str | None:
    """The reason why the work is given up, or None if it is done; `Unavailable` if it may be tried again."""
    if tries > TRIES:
        return SILENCE
    try:
        _do(slot, work, tries)
    except HandedBack:
        raise
    except Unavailable as error:
        if tries < TRIES:
            raise
        return str(error)
    return None


def _do(slot: "Slot", work: TrainTask | EvaluateModel, tries: int) -> None:
    """Does the work here or, if it takes the user's code, in the process of that job."""
    assert _job_process is not None, "a task outside a slot"  # noqa: S101
    if work.spec.has_code:
        _job_process.do(work, tries)
    else:
        _job_process.tidy()
        slot.do(work, tries)


def warm_up(**_: Any) -> None:
    """Makes this process a slot, before Celery gives it tasks."""
    global _slot, _job_process  # noqa: PLW0603 - the process is the slot
    told = current_app.conf.slot
    warming.settle(told["parent"])
    place = warming.Place(index=current_process().index, **told["place"])
    signals = Signals(Path(place.signals))
    _job_process = JobProcess(place)
    try:
        if place.index == 0 and signals.is_heard():
            # Before torch is imported: it takes less time, so a wrong key fails sooner.
            warming.check_store(place.trainer)
        _slot = warming.slot(place)
    except Exception as error:
        # Celery would log the error and go on with a slot that can do no task.
        reason = str(error) if isinstance(error, FedqError) else f"{type(error).__name__}: {error}"
        signals.tell(f"{'away' if isinstance(error, Unavailable) else 'failed'} {reason}")
        os._exit(os.EX_SOFTWARE)


def keep_logging(**_: Any) -> None:
    """Sets up logging, which keeps Celery from doing so."""
    worker.forward_logs()


shared_task(name="train", bind=True)(train)
shared_task(name="evaluate", bind=True)(evaluate)
signals.setup_logging.connect(keep_logging)
signals.worker_process_init.connect(warm_up)
