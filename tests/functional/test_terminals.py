"""What a terminal is given: text that only shows, in the encoding that it has."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from services.cli.ui import output, writing
from shared.text import lines, plain

ROOT = Path(__file__).parents[2]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[1;31mroot password: \x9b31m\u202eevil\r\x08\x00\x7f"

texts = st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b\x9b\x07\u202e\u2066"), max_size=80)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_plain_text_only_shows(text: str) -> None:
    """One line of characters that can be printed, as many as there were; what could be printed is as it was."""
    found = plain(text)

    assert found.isprintable()
    assert len(found) == len(text)
    assert plain(found) == found
    assert all(was == now for was, now in zip(text, found, strict=True) if was.isprintable())
    assert lines(text).count("\n") == text.count("\n")


def test_nothing_that_was_read_is_obeyed_by_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """In tables, in styled text, in lines and in notes; colours of our own go out only to a terminal."""
    made = output.table("host", "detail")
    made.add_row(HOSTILE, Text(HOSTILE, "red"))
    terminal = output.Terminal()
    terminal.print(made)
    terminal.print(HOSTILE, soft_wrap=True)
    terminal.print(Text(HOSTILE))
    output.say(HOSTILE)
    output.note(HOSTILE)
    captured = capsys.readouterr()

    for line in (captured.out + captured.err).split("\n"):
        assert line.isprintable(), ascii(line)
    assert captured.out.count("root password") == 5
    assert captured.err.count("root password") == 1


def test_colours_of_our_own_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich's sequences are no text."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLORTERM": ""}.items():
        monkeypatch.setenv(name, value)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    output.Terminal().print(Text("ok", "red"), Text(HOSTILE))

    assert "\x1b[31mok" in shown.getvalue()
    assert "\x1b]0" not in shown.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8"])
def test_any_encoding_can_be_written(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks and arrows have a spelling everywhere, and any other character that is missing a question mark."""
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding=encoding))
    writing.prepare()
    output.say("✓ ✗ → … — − × 漢 é")
    made = output.table("job", "detail")
    made.add_row("a", "✓ " + "long " * 100)
    output.Terminal().print(made)
    sys.stdout.flush()

    text = held.getvalue().decode(encoding)
    assert text.startswith("✓ ✗ → … — − × 漢 é" if encoding == "utf-8" else ("+", "x", "√")[0])
    assert encoding != "ascii" or text.startswith("+ x > ~ - - x ? ?")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("doctor",), 3), (("catalog",), 0), (("--help",), 0), (("start", "--help"), 0), (("validate", "no-✓.yaml"), 2)],
)
def test_no_command_ends_by_its_terminals_encoding(encoding: str, arguments: tuple[str, ...], code: int) -> None:
    """The exit code is the command's own, and there is no traceback."""
    nowhere = {
        "FEDQ_AMQP_URL": "amqp://u:p@127.0.0.1:1/",
        "FEDQ_REDIS_URL": "redis://127.0.0.1:1/0",
        "FEDQ_S3_URL": "http://127.0.0.1:1",
        "FEDQ_S3_ACCESS_KEY": "a",
        "FEDQ_S3_SECRET_KEY": "b",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        env={**inherited, **nowhere, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        cwd=ROOT,
        capture_output=True,
        timeout=100,
        check=False,
    )
    said = (done.stdout + done.stderr).decode(encoding)

    assert done.returncode == code, said
    assert "Error" not in said.replace("Error 111", "")
