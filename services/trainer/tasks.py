"""Celery's two tasks and the start of the process that executes them; torch is imported there alone."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from billiard import current_process
from celery import current_app, shared_task, signals
from celery.exceptions import Reject

from services.trainer import worker
from services.trainer.board import Board
from services.trainer.orders import Order
from shared.errors import FedqError, Unavailable
from shared.events import EvaluateModel

if TYPE_CHECKING:
    from services.trainer.slot import Slot

log = structlog.get_logger()

_slot: "Slot | None" = None


def train(order: dict[str, Any]) -> None:
    """Trains one client and says so."""
    _do(lambda slot: slot.train(Order.model_validate(order)))


def evaluate(event: dict[str, Any]) -> None:
    """Evaluates a model on the held-out test set and says so."""
    _do(lambda slot: slot.evaluate(EvaluateModel.model_validate(event)))


def _do(work: Any) -> None:
    assert _slot is not None, "a task outside a slot"  # noqa: S101
    try:
        work(_slot)
    except Unavailable as error:
        log.warning("requeued", reason=str(error))
        # A reject and not a failure: it counts towards the queue's delivery limit.
        raise Reject(str(error), requeue=True) from None


def warm_up(**_: Any) -> None:
    """Makes this process a slot, before Celery gives it tasks."""
    global _slot  # noqa: PLW0603 - the process is the slot
    # Whoever asks a whole group of processes to stop asks the parent, which lets us finish.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    place = current_app.conf.slot
    if os.getppid() != place["parent"]:  # it died before the kernel was told to take this process along
        os._exit(os.EX_OK)
    try:
        from services.trainer import slot  # noqa: PLC0415 - not in the parent

        _slot = slot.start(place["trainer"], place["board"], current_process().index, place["threads"])
    except Exception as error:
        # Celery would log it and go on with a slot that can do nothing.
        reason = str(error) if isinstance(error, FedqError) else f"{type(error).__name__}: {error}"
        Board(Path(place["board"])).tell(f"failed {reason}")
        os._exit(os.EX_SOFTWARE)


def keep_logging(**_: Any) -> None:
    """Celery asks whether somebody else sets up logging: yes, we do."""
    worker.forward_logs()


shared_task(name="train")(train)
shared_task(name="evaluate")(evaluate)
signals.setup_logging.connect(keep_logging)
signals.worker_process_init.connect(warm_up)
