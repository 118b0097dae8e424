"""Rounds as rows, and who took part: what is made of manifests."""

import csv
from pathlib import Path
from typing import Any

from services.cli.report import participation, rows
from services.cli.report.history import PastRound
from services.cli.report.participation import Participation
from tests.rounds import MODEL, past_round


def past(number: int, **changes: Any) -> PastRound:
    """A round in which a and b delivered, c was refused and d silent."""
    update = {"trainer": "t", "blob": MODEL, "timings": {"train": 1.0, "total": 1.5}, "norm": 0.5}
    evaluation = changes.pop("evaluation", None)
    found = {
        "cohort": ["a", "b", "c", "d"],
        "updates": [
            {"client": "a", "examples": 10, "metrics": {"train_loss": 0.25}, **update},
            {"client": "b", "examples": 20, "metrics": {"train_loss": 0.5}, "staleness": 2, **update},
        ],
        "rejected": {"c": "holds NaN or Inf"},
        "job": "t-abc234",
        "unanswered": ["d"],
        "metrics": {"train_loss": 0.4},
        "seconds": 3.0,
    }
    return past_round(number, evaluation, **(found | changes))


EVALUATION = {
    "metrics": {"accuracy": 0.75, "local_accuracy": 0.5},
    "clients": {"a": {"examples": 2, "accuracy": 1.0}, "z": {"examples": 2, "accuracy": 0.0}},
}


def read(rounds: list[PastRound], file: Path) -> list[dict[str, str]]:
    rows.save(rounds, file)
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_round_comes_first_and_then_its_clients(tmp_path: Path) -> None:
    """A column for each figure; what is not known is empty."""
    found = read([past(1, evaluation=EVALUATION)], tmp_path / "rows.csv")

    assert list(found[0]) == [
        "round", "client", "state", "examples", "seconds", "norm", "staleness", "accuracy", "local_accuracy",
        "train_loss",
    ]  # fmt: skip
    assert [tuple(row.values()) for row in found] == [
        ("1", "", "committed", "30", "3.0", "", "", "0.75", "0.5", "0.4"),
        ("1", "a", "accepted", "10", "1.5", "0.5", "0", "", "1.0", "0.25"),
        ("1", "b", "accepted", "20", "1.5", "0.5", "2", "", "", "0.5"),
        ("1", "c", "rejected", "", "", "", "", "", "", ""),
        ("1", "d", "unanswered", "", "", "", "", "", "", ""),
        ("1", "z", "evaluated", "", "", "", "", "", "0.0", ""),
    ]


def test_the_initial_model_is_no_clients_update(tmp_path: Path) -> None:
    """Round 0 has one row; a client whose second update was refused was accepted; each round follows the one before."""
    first = past(0, rejected={}, unanswered=[], metrics={})
    second = past(1, rejected={"a": "a second update"}, unanswered=[])
    found = read([first, second], tmp_path / "rows.csv")

    assert [(row["round"], row["client"], row["state"]) for row in found] == [
        ("0", "", "committed"),
        ("1", "", "committed"),
        ("1", "a", "accepted"),
        ("1", "b", "accepted"),
    ]
    assert found[0]["examples"] == ""


def test_participation_counts_what_came_of_being_asked() -> None:
    """Not for the initial model; and a client that is still at work for an earlier round is not asked again."""
    rounds = [
        past(0),
        past(1),
        past(2, cohort=["a", "c", "d"], carried={"d": 1}, updates=[past(2).committed.document["updates"][0]]),
    ]
    parts = participation.of_job(rounds)

    assert parts == {
        "a": Participation(asked=2, accepted=2, rejected=0, last=2),
        "b": Participation(asked=1, accepted=1, rejected=0, last=1),
        "c": Participation(asked=2, accepted=0, rejected=2, last=None),
        "d": Participation(asked=1, accepted=0, rejected=0, last=None),
    }
    assert participation.summary(parts, 20) == (
        "4 of 20 clients were asked, 1 to 2 times each, and 0 to 2 updates of each were accepted"
    )
    assert participation.document(parts)["c"] == {"asked": 2, "accepted": 0, "rejected": 2, "last": None}


def test_nobody_took_part_in_a_job_that_has_only_begun() -> None:
    """Nor did a stranger whose update was refused."""
    assert participation.of_job([past(0)]) == {}
    stranger = participation.of_job([past(1, cohort=[], updates=[])])
    assert participation.summary(stranger, 3) == "none of 3 clients was asked yet"


def test_a_metric_takes_no_other_columns_name(tmp_path: Path) -> None:
    """One's own may be called as it likes."""
    (whole, *_) = read([past(1, metrics={"seconds": 9.0, "state": 1.0})], tmp_path / "rows.csv")
    assert (whole["seconds"], whole["metric_seconds"], whole["metric_state"]) == ("3.0", "9.0", "1.0")
