"""What a slot answers: the events, filled in with what was asked."""

from contextlib import suppress
from typing import Any

from services.trainer.train_task import TrainTask
from shared.errors import BadInput
from shared.events import EvaluateModel, Member, ModelEvaluated, ModelUpdate
from shared.job import user_modules
from shared.text import plain

REASON = 120  #: characters of why one of a batch failed: those of all must fit into one event
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
    """What training gave, as it will be told once it is in the store."""
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
    """That there will be no update, of the client or of any of the batch."""
    if task.is_batch and not failures:
        failures = dict.fromkeys(task.members, reason[:REASON])
    return update(task, trainer, failures=failures).model_copy(update={"error": reason})


def evaluated(event: EvaluateModel, trainer: str, **found: Any) -> ModelEvaluated:
    """How good a model is: `examples`, `metrics` and `members`, or the `error` that prevented it."""
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
    """One line with the reason; with the stack too, unless fedq itself says what a person is to mend."""
    is_told = isinstance(error, BadInput) and error.__cause__ is None
    about.error("failed", reason=sentence(error), exc_info=None if is_told else error)


def sentence(error: BaseException, length: int = SENTENCE) -> str:
    """`<Type>: <what it says>`, on one line that fits into an event; a person's mistake by what it says alone.

    Where it came out of the user's code, ` (<file>:<line>)` follows.
    """
    text = ""
    with suppress(BaseException):  # an exception of the user's may have no words that can be had
        text = plain(" ".join(str(error).split()))
    if not (text and isinstance(error, BadInput)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = user_modules.place(error)
    return f"{text[: length - len(place)]}{place}"
