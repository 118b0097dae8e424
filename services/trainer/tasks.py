"""Celery's two tasks, how often each is tried, and the start of the process that executes them.

Torch is imported there alone.
"""

import gc
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from billiard import current_process
from celery import current_app, platforms, shared_task, signals
from celery.exceptions import Reject

from services.trainer import worker
from services.trainer.board import Board
from services.trainer.orders import HandedBack, Order
from shared import failpoints
from shared.errors import FedqError, Unavailable
from shared.events import EvaluateModel

if TYPE_CHECKING:
    from services.trainer.slot import Slot

log = structlog.get_logger()

TRIES = 5  #: deliveries of a task that are tried; the task queues' delivery limit lies above, for what cannot be said

SILENCE = "each ended without an answer; its slot or its trainer was killed, by lack of memory perhaps"

_slot: "Slot | None" = None


def train(task: Any, order: dict[str, Any]) -> None:
    """Trains a client, or a batch of them, and says so."""
    _try(task, Order.model_validate(order))


def evaluate(task: Any, event: dict[str, Any]) -> None:
    """Evaluates a model on held-out examples and says so."""
    _try(task, EvaluateModel.model_validate(event))


def _try(task: Any, work: Order | EvaluateModel) -> None:
    """Does the work, or puts it back to be tried again; at last answers why it is given up, for the dead letters."""
    assert _slot is not None, "a task outside a slot"  # noqa: S101
    tries = _deliveries(task.request)
    try:
        reason = _failure(_slot, work, tries)
        if reason is None:
            return
        _slot.give_up(work, tries, f"given up after {TRIES} tries: {reason}")
    except Unavailable as error:
        log.warning("requeued", reason=str(error), tries=tries)
        # A reject and not a failure: it counts towards the queue's delivery limit.
        raise Reject(str(error), requeue=True) from None
    raise Reject(reason, requeue=False)


def _failure(slot: "Slot", work: Order | EvaluateModel, tries: int) -> str | None:
    """Why the work is given up, or None where it is done; `Unavailable` where it may be tried again."""
    if tries > TRIES:
        return SILENCE
    try:
        slot.do(work, tries)
    except HandedBack:
        raise
    except Unavailable as error:
        if tries < TRIES:
            raise
        return str(error)
    return None


def _deliveries(request: Any) -> int:
    """Of this task, this one included. RabbitMQ counts the earlier ones, in a header that the first has not.

    From 4.0 on it counts in a second header also those that ended with their connection, and from 4.3 there alone.
    """
    return 1 + max(int(request.get(name) or 0) for name in ("x-delivery-count", "x-acquired-count"))


def warm_up(**_: Any) -> None:
    """Makes this process a slot, before Celery gives it tasks."""
    global _slot  # noqa: PLW0603 - the process is the slot
    # Whoever asks a whole group of processes to stop asks the parent, which lets us finish.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    place = current_app.conf.slot
    if os.getppid() != place["parent"]:  # it died before the kernel was told to take this process along
        os._exit(os.EX_OK)
    # Nor does a process that the user's code made, a DataLoader's say, outlive a slot that is killed.
    os.register_at_fork(after_in_child=lambda: platforms.set_pdeathsig("SIGKILL"))
    board = Board(Path(place["board"]))
    gc.disable()  # torch makes a third of a million objects that stay: looking through them is a fifth of our start
    try:
        failpoints.arm()
        from services.trainer import joining  # noqa: PLC0415 - not in the parent

        if current_process().index == 0 and board.is_heard():
            joining.check_store(place["trainer"])  # before torch: it is the quicker
        from services.trainer import startup  # noqa: PLC0415 - nor this

        own = {name: place[name] for name in ("threads", "silo")}
        _slot = startup.start(place["trainer"], place["board"], current_process().index, **own)
    except Exception as error:
        # Celery would log it and go on with a slot that can do nothing.
        reason = str(error) if isinstance(error, FedqError) else f"{type(error).__name__}: {error}"
        board.tell(f"{'away' if isinstance(error, Unavailable) else 'failed'} {reason}")
        os._exit(os.EX_SOFTWARE)
    gc.freeze()  # nor does a collection look through them later, for 0.15 s each time
    gc.enable()


def keep_logging(**_: Any) -> None:
    """Celery asks whether somebody else sets up logging: yes, we do."""
    worker.forward_logs()


shared_task(name="train", bind=True)(train)
shared_task(name="evaluate", bind=True)(evaluate)
signals.setup_logging.connect(keep_logging)
signals.worker_process_init.connect(warm_up)
