"""The commands that ask no server, and how each kind of failure ends."""

import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from services.cli.__main__ import app
from services.cli.ui.failing import Commands
from shared.errors import BadInput, JobFailed, QueueFull, Unavailable

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "examples/digits.yaml")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("FEDQ_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # where there is no .env


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_validate_needs_no_server() -> None:
    """It says in a line what the job is; with --json, all of it with defaults."""
    plain, as_json = run("validate", DIGITS), run("validate", DIGITS, "--json", "--set", "rounds.count=2")

    assert plain.exit_code == 0
    assert plain.stdout == f"{DIGITS}: fine, 20 clients, 15 rounds of 10\n"
    assert json.loads(as_json.stdout)["rounds"]["count"] == 2
    assert json.loads(as_json.stdout)["limits"]["max_abs"] == 256.0


def test_a_mistake_in_a_file_is_exit_code_2() -> None:
    """With the key, what was found and what is allowed, on standard error."""
    result = run("validate", DIGITS, "--set", "model.name=lenett")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "'lenett' is not known (did you mean lenet?); allowed: softmax, mlp, lenet" in result.stderr


def test_schema_is_a_json_schema() -> None:
    """With every key of a job file."""
    schema = json.loads(run("schema").stdout)

    assert schema["type"] == "object"
    assert {"name", "model", "data", "rounds", "pool", "silos"} <= schema["properties"].keys()


@pytest.mark.parametrize(
    "arguments",
    [["jobx"], ["validate"], ["validate", DIGITS, "--sett", "a=1"], ["replay", "j", "x"], ["replay", "j", "-1"]],
)
def test_a_mistake_in_the_arguments_is_exit_code_2(arguments: list[str]) -> None:
    """As for every other mistake in what was given."""
    assert run(*arguments).exit_code == 2


def test_a_wait_ends_within_a_day() -> None:
    """A clock cannot count to more than some years."""
    result = run("scale", "2", "--wait", "inf")

    assert result.exit_code == 2
    assert "86400" in result.stderr


def test_missing_settings_are_all_named_at_once() -> None:
    """And none is guessed."""
    result = run("jobs")

    assert result.exit_code == 2
    for name in ("FEDQ_AMQP_URL", "FEDQ_REDIS_URL", "FEDQ_S3_URL", "FEDQ_S3_ACCESS_KEY", "FEDQ_S3_SECRET_KEY"):
        assert name in result.stderr.partition(" not set: ")[0]


def ending_in(error: BaseException) -> Result:
    failing = typer.Typer(cls=Commands)

    @failing.callback()
    def begin() -> None: ...

    @failing.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(failing, ["fail"])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (JobFailed("job a failed: no clients"), 1, "error: job a failed: no clients\n"),
        (BadInput("a: is missing\nb: is missing"), 2, "error:\n  a: is missing\n  b: is missing\n"),
        (Unavailable("Redis is away"), 3, "error: Redis is away\n"),
        (QueueFull("its queue is full"), 3, "error: its queue is full\n"),
        (KeyError("x"), 1, "error: unexpected KeyError: 'x'; FEDQ_LOG_LEVEL=debug shows where\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_the_kind_of_an_error_is_its_exit_code(error: BaseException, code: int, text: str) -> None:
    """A sentence each, and never a traceback."""
    result = ending_in(error)

    assert result.exit_code == code
    assert result.stderr == text
    assert result.stdout == ""


def test_debug_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """For whoever wants to mend it."""
    monkeypatch.setenv("FEDQ_LOG_LEVEL", "debug")

    assert "Traceback" in ending_in(KeyError("x")).stderr
