"""Replies of a slot: the events that answer a task, filled in from it."""

from contextlib import suppress
from typing import Any

from services.trainer.train_task import TrainTask
from shared.errors import BadInput
from shared.events import EvaluateModel, Member, ModelEvaluated, ModelUpdate
from shared.job import user_modules
from shared.text import plain

REASON = 120  #: characters of the reason why one of a batch failed: all of them must fit into one event
SENTENCE = 1000  #: characters of any other reason


def update(
    task: TrainTask,
    trainer: str,
    *,
    examples: int = 0,
    metrics: dict[str, float] | None = None,
    members: tuple[Member, ...] = (),
    failures: dict[str, str] | None = None,
    downloaded: int = 0,
) -> ModelUpdate:
    """The event for the result of training, without the blob, which is told once it is in the store."""
    return ModelUpdate(
        job=task.job,
        round=task.round,
        attempt=task.attempt,
        client=task.client,
        trainer=trainer,
        base=base_of(task),
        update=None,
        examples=examples,
        members=members,
        failures=failures or {},
        metrics=metrics or {},
        downloaded=downloaded,
    )


def failed(task: TrainTask, trainer: str, reason: str, failures: dict[str, str] | None = None) -> ModelUpdate:
    """The event that says that there will be no update, of the client or of any of the batch."""
    if task.is_batch and not failures:
        failures = dict.fromkeys(task.members, reason[:REASON])
    return update(task, trainer, failures=failures).model_copy(update={"error": reason})


def evaluated(event: EvaluateModel, trainer: str, **found: Any) -> ModelEvaluated:
    """The event that says how good a model is: `examples`, `metrics` and `members`, or the `error`."""
    return ModelEvaluated(
        job=event.job,
        round=event.round,
        model=event.model.digest,
        trainer=trainer,
        part=event.part,
        **{"examples": 0, **found},
    )


def base_of(task: TrainTask) -> str | None:
    """The digest of the model that a task begins with."""
    return task.base.digest if task.base is not None else None


def log_failure(about: Any, error: BaseException) -> None:
    """Logs one line with the reason, and the stack too, unless fedq itself says what a person must mend."""
    is_told = isinstance(error, BadInput) and error.__cause__ is None
    about.error("failed", reason=sentence(error), exc_info=None if is_told else error)


def sentence(error: BaseException, length: int = SENTENCE) -> str:
    """`<Type>: <what it says>`, on one line that fits into an event; a person's mistake by what it says alone.

    If it came out of the user's code, ` (<file>:<line>)` follows.
    """
    text = ""
    with suppress(BaseException):  # an exception of the user's may raise when it is turned to text
        text = plain(" ".join(str(error).split()))
    if not (text and isinstance(error, BadInput)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = user_modules.place(error)
    return f"{text[: length - len(place)]}{place}"
