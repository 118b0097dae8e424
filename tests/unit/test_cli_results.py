"""What `fedq results` makes of the record: tables, the learning curve, and the bytes that were sent."""

import math
from pathlib import Path
from typing import Any

import pytest

from services.cli.report import plotting, results
from services.cli.report.history import PastRound
from shared.errors import BadInput
from tests.rounds import past_round


def past(number: int, metrics: dict[str, Any], evaluation: dict[str, Any] | None = None, **changes: Any) -> PastRound:
    return past_round(number, None if evaluation is None else {"metrics": evaluation}, metrics=metrics, **changes)


def test_every_metric_that_a_job_reports_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """One's own by its name; a record has null for one that was no number; how many there are more is said."""
    own = {"perplexity": 12.345678, "mine": None, "steps": 4.0}
    results._print([past(0, {}), past(1, {**own, "client_loss": 0.5}, {"accuracy": 0.75})])
    shown = capsys.readouterr().out

    assert all(word in shown for word in ("perplexity", "12.35", "mine", "nan", "0.500", "0.750"))
    assert "steps" not in shown

    results._print([past(1, {f"metric_{number}": 1.0 for number in range(results.OTHERS + 3)})])
    assert "and 3 more metrics; --json and --csv have all" in capsys.readouterr().out


def test_a_metric_may_have_any_name() -> None:
    """And takes no other figure's place."""
    own = {"round": 0.5, "updates": 0.25, "mine": 1.0}
    document = results._document(past(3, own))

    assert (document["round"], document["updates"], document["mine"], document["metrics"]) == (3, 0, 1.0, own)


def test_a_curve_has_axes_for_what_was_reported_alone(tmp_path: Path) -> None:
    """None are empty: a job that reports metrics of its own alone has those."""
    own = [past(number, {"mine": float(number), "steps": 2.0}) for number in (1, 2)]
    assert {title: [line.metric for line in lines] for title, lines in plotting.panels(own).items()} == {
        "mine": ["mine"]
    }
    both = [past(1, {"client_loss": 0.5, "mine": math.nan}, {"loss": 0.4, "local_loss": None})]
    assert {title: [line.metric for line in lines] for title, lines in plotting.panels(both).items()} == {
        "loss": ["loss", "client_loss", "local_loss"],
        "mine": ["mine"],
    }
    with pytest.raises(BadInput, match="nothing to draw"):
        plotting.panels([past(1, {"steps": 2.0})])

    for rounds in (own, both):
        plotting.learning_curve("t", rounds, tmp_path / "curve.png")
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def traffic(files: int, up: int, plain: int, down: int) -> dict[str, int]:
    return {"files": files, "up": up, "up_plain": plain, "down": down}


def test_what_evaluation_downloads_is_counted() -> None:
    """That of the initial model too, which nobody downloads again to train."""
    evaluation = {"metrics": {}, "traffic": {"down": 500}}
    first = past_round(0, evaluation, traffic=traffic(1, 500, 500, 0))
    second = past_round(1, evaluation, traffic=traffic(2, 1000, 1000, 2000), updates=[{}, {}])

    assert results._traffic([first, second]) == "updates: 1 kB up; models: 3 kB down"
    assert second.traffic == {**traffic(2, 1000, 1000, 2000), "evaluation": 500}


def test_a_batch_is_one_file() -> None:
    """Fewer files are no compression, and are called what they are."""
    batched = past(1, {}, traffic=traffic(4, 8000, 4000, 0), updates=[{}] * 1000)
    assert results._traffic([batched]) == "updates: 8 kB up for 1000 updates in 4 files; models: 0 B down"

    small = past(1, {}, traffic=traffic(2, 1000, 4000, 0), updates=[{}] * 2)
    assert results._traffic([small]) == "updates: 1 kB up, 4.0 times fewer than as float32; models: 0 B down"
