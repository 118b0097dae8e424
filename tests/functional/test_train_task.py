"""What a trainer makes of a round-start: tasks, and what it is over."""

from pathlib import Path

from services.trainer.parent.dispatch import on_notice
from services.trainer.signals import Signals
from services.trainer.train_task import task_id, train_tasks
from shared.events import BlobRef, RoundEnd, RoundStart, StateRef
from tests.by_hand import digits

JOB = "digits-abcdef"
BASE = BlobRef(key="k", size=1, digest="0" * 64)


def start(*cohort: str, size: int = 1, **changes: object) -> RoundStart:
    fields = {
        "job": JOB,
        "group": "cpu",
        "round": 2,
        "attempt": 1,
        "base": BASE,
        "cohort": cohort,
        "spec": digits(rounds={"count": 3, "clients_per_task": size}),
        "deadline": 0,
    }
    return RoundStart.model_validate({**fields, **changes})


def test_a_cohort_is_cut_into_consecutive_batches() -> None:
    """Each with what all of the round need; the first client names the batch."""
    cohort = ("a", "b", "c", "d", "e")
    found = list(train_tasks(start(*cohort, size=2, cohort_size=9), 1.0))
    assert [order.members for order in found] == [("a", "b"), ("c", "d"), ("e",)]
    assert [order.client for order in found] == ["a", "c", "e"]
    assert all(order.is_batch and order.cohort_size == 9 for order in found)


def test_each_client_is_its_own_task_where_nothing_else_is_asked_for() -> None:
    """With its own state; and the initial model is made by one, whatever is asked for."""
    states = (StateRef(size=1, digest="a" * 64), None)
    found = list(train_tasks(start("a", "b", states=states), 1.0))
    assert [(order.members, order.state, order.is_batch) for order in found] == [
        (("a",), states[0], False),
        (("b",), None, False),
    ]
    assert {order.cohort_size for order in found} == {2}
    initial = list(train_tasks(start("a", size=4, base=None, round=0), 1.0))
    assert [(order.members, order.is_batch) for order in initial] == [(("a",), False)]


def test_the_same_work_has_the_same_id() -> None:
    """Whoever publishes it and whenever; another batch that begins with the same client has another."""
    one, other = (next(iter(train_tasks(start("a", "b", size=2), asked))) for asked in (1.0, 2.0))
    assert one.identity == other.identity
    ids = {
        one.identity,
        next(iter(train_tasks(start("a", "c", size=2), 1.0))).identity,
        next(iter(train_tasks(start("a"), 1.0))).identity,
        next(iter(train_tasks(start("a", attempt=2), 1.0))).identity,
    }
    assert len(ids) == 4
    assert next(iter(train_tasks(start("a"), 1.0))).identity == task_id(JOB, 2, 1, "a")


def test_a_rounds_end_is_that_of_earlier_ones_where_rounds_do_not_wait(tmp_path: Path) -> None:
    """The last few are still wanted; at the beginning, all are."""
    end = RoundEnd(job=JOB, round=1, outcome="committed", accepted=0, rejected=0, lag=2)
    with Signals.create(tmp_path, "t") as signals:
        on_notice(signals, end)
        assert not signals.is_over(JOB, 0, 0, 1)
        on_notice(signals, end.model_copy(update={"round": 5}))
        assert signals.is_over(JOB, 3, 9, 9)
        assert not signals.is_over(JOB, 4, 0, 1)
