"""Figures that are not finite, and how a job ends that has some."""

import json
import math

import pytest

from services.aggregator.evaluation import Evaluation, part_of, summary
from services.aggregator.outcome import after, ending
from shared.events import Member, ModelEvaluated
from shared.job.catalog.rounds import MEASURED, OF_CLIENTS, EvaluateSpec
from shared.record.rounds import Unsound

NAN = math.nan


def told(*losses: float) -> Unsound:
    """What is known after evaluations of rounds 1, 2, … that gave these losses."""
    found = Unsound()
    for number, loss in enumerate(losses, 1):
        found = after(found, number, {"loss": loss, "accuracy": 0.1}, {})
    return found


@pytest.mark.parametrize(
    ("losses", "since"),
    [((1.0,), None), ((NAN,), 1), ((1.0, NAN, math.inf), 2), ((NAN, 1.0), None), ((NAN, 1.0, NAN), 3)],
)
def test_a_loss_that_is_no_number_at_the_end_fails_the_job(losses: tuple[float, ...], since: int | None) -> None:
    """And the reason says since when; one that became a number again is forgotten."""
    outcome, reason = ending(told(*losses), {"loss": losses[-1], "accuracy": 0.1})

    assert outcome == ("finished" if since is None else "failed")
    assert (f"the model's loss is not a finite number since the evaluation of round {since};" in reason) is bool(since)


def test_the_test_set_decides_where_there_is_one() -> None:
    """A client whose own figures are no numbers is named, and fails the job only where nobody else measures."""
    clients = {"silo-1": {"examples": 3, "loss": 0.5}, "silo-2": {"examples": 3, "loss": NAN}}
    metrics = summary(clients)
    unsound = after(Unsound(), 7, metrics, clients)

    assert ending(unsound, {"loss": 0.5, **metrics}) == (
        "finished",
        "not a finite number at the end: local_loss, local_loss_mean",
    )
    outcome, reason = ending(unsound, metrics)
    assert outcome == "failed"
    assert "local_loss is not a finite number since the evaluation of round 7, at silo-2;" in reason


def test_a_metric_of_ones_own_is_said() -> None:
    """It is not the model's loss: the job has finished. A record has null for it."""
    for value in (NAN, -math.inf, None):
        assert ending(Unsound(), {"loss": 0.5, "mine": value}) == (
            "finished",
            "not a finite number at the end: mine",
        )
    assert ending(Unsound(), {"loss": 0.5, "mine": 1.0}) == ("finished", "")


def test_the_next_owner_reads_what_the_record_keeps() -> None:
    """It is strict JSON; of sound figures nothing is kept."""
    unsound = after(Unsound(), 3, {"loss": NAN}, {"a": {"loss": NAN}, "b": {"loss": 1.0}})
    told = json.loads(json.dumps(unsound.document(), allow_nan=False))
    assert Unsound.model_validate(told["unsound"]) == unsound
    assert unsound.clients == ("a",)
    assert Unsound().document() == {}


@pytest.mark.parametrize("where", ["server", "clients", "both"])
def test_what_may_end_a_job_is_what_evaluations_give(where: str) -> None:
    """The names that a job file may give are those of a whole evaluation."""
    figures = dict.fromkeys(MEASURED, 0.5)
    pending = Evaluation(1, frozenset({0, part_of(("a",))} if where == "both" else {0}))
    common = {"job": "t-aaaaaa", "round": 1, "model": "0" * 64, "trainer": "t", "examples": 2}
    member = Member(client="a", examples=2, metrics=figures)
    if where != "clients":
        pending = pending.answered_by(ModelEvaluated(**common, metrics=figures))
    if where != "server":
        part = part_of(("a",)) if where == "both" else 0
        pending = pending.answered_by(ModelEvaluated(**common, members=(member,), part=part))

    assert set(pending.metrics) == set(EvaluateSpec(where=where).measured)
    assert set(OF_CLIENTS) == set(summary(pending.clients)) or where == "server"
