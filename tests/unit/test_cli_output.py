"""Numbers and lists as people and programs read them."""

import json
import math
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from services.cli.report.tables import in_short
from services.cli.ui import output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (42.4, "42 s"), (60, "1 m"), (200, "3 m 20 s"), (7500, "2 h 5 m"), (349200, "4 d 1 h"), (-3, "0 s")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    """Nobody wants the seconds of a week."""
    assert output.span(seconds) == text


def test_json_is_json_where_a_model_diverged(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN and infinity, which JSON has not, become null."""
    output.emit({"loss": math.nan, "rounds": [{"accuracy": math.inf}, 0.5]}, line=True)

    assert json.loads(capsys.readouterr().out) == {"loss": None, "rounds": [{"accuracy": None}, 0.5]}


def test_a_long_list_is_shortened() -> None:
    """And says by how much."""
    assert output.shortened(["a", "b"]) == "a, b"
    assert output.shortened([str(number) for number in range(10)], 2) == "0, 1 and 8 more"


def test_a_section_of_a_job_is_told_in_short() -> None:
    """Its name first, then its settings, sections in brackets, what is not set left out."""
    partition = {"name": "dirichlet", "alpha": 0.5}
    empty: dict[str, Any] = {"args": {}, "drop": [], "update": None, "inner": {"x": None}}
    section = {"name": "digits", "clients": 20, "hidden": [64, 32], "partition": partition, **empty}

    assert in_short(section) == "digits, clients 20, hidden (64, 32), partition (dirichlet, alpha 0.5)"
    assert in_short(empty) == ""
    assert in_short(True) == "yes"
    assert in_short(["a", "b"]) == "a, b"


def test_bytes_have_a_unit() -> None:
    """Three digits, whatever the size."""
    assert [output.size(count) for count in (0, 999, 1500, 23_128_800, 10**10)] == [
        "0 B", "999 B", "1.5 kB", "23.1 MB", "10 GB",
    ]  # fmt: skip


def test_a_table_keeps_its_figures_however_narrow_the_terminal() -> None:
    """What is long takes several lines instead."""
    made = output.table(
        "round", "state", "updates", "clients", "rejected", numbers=("round", "updates"), long=("clients",)
    )
    clients = [f"client-{number:02d}" for number in range(10)]
    made.add_row("12", "committed", "1234567", ", ".join(clients), "client-11: came after the deadline of round 12")
    shown = StringIO()
    Console(file=shown, width=60).print(made)

    lines = shown.getvalue().splitlines()
    assert lines[0].split() == ["round", "state", "updates", "clients", "rejected"]
    assert lines[1].split()[:3] == ["12", "committed", "1234567"]
    words = shown.getvalue().replace(",", " ").split()
    assert set(clients) <= set(words)
    assert "deadline" in words
