"""The lines of `.fedq/env`, as dotenv and a shell read them."""

import io
from pathlib import Path

import pytest
from dotenv import dotenv_values

from deploy.native.stack import check_folder
from deploy.native.unpacked import unpacked
from shared.errors import BadInput
from shared.process import settings_file


@pytest.mark.parametrize(
    "value",
    [
        "/x #1/y",
        "/it's",
        "/a b",
        '/a "b"',
        "/$HOME",
        "/`id`",
        "/a\\b",
        '/it\'s "a" \\b',
        "/ü",
        "~/x",
        "amqp://a:b%2F@h:1/v",
    ],
)
def test_what_a_folder_may_well_be_called_can_be_written(value: str) -> None:
    """Nothing is refused without need."""
    assert dotenv_values(stream=io.StringIO(f"NAME={settings_file.quoted(value)}\n")) == {"NAME": value}


@pytest.mark.parametrize(
    ("name", "character"),
    [("a\nb", r"\\n"), ("it's $5", r"\$"), ("a${b}", r"\$"), ("a\\", r"\\"), ("\udcff", r"\\udcff")],
)
def test_a_folder_that_no_line_can_name_is_refused_with_the_character(name: str, character: str) -> None:
    """At once, and not when a server does not start."""
    with pytest.raises(BadInput, match=rf"The folder .* cannot hold a stack: .* the character '{character}+'"):
        check_folder(Path("/srv") / name)


def test_a_value_that_no_line_can_hold_is_refused_with_its_name() -> None:
    """A password, say, which is not shown."""
    with pytest.raises(BadInput, match=r"^FEDQ_KEY: a file of settings cannot hold the character '\$' of its value"):
        settings_file.lines({"FEDQ_URL": "http://host:1", "FEDQ_KEY": "it's $ecret"})


@pytest.mark.parametrize(("name", "character"), [("a b", "' '"), ("it's", '"\'"'), ("a:b", "':'"), ("a*", r"'\*'")])
def test_a_folder_that_the_servers_scripts_would_not_find_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, character: str
) -> None:
    """Before anything is fetched into it."""
    monkeypatch.setenv("FEDQ_NATIVE_CACHE", str(tmp_path / name))
    with pytest.raises(
        BadInput, match=rf"cannot hold RabbitMQ, for the character {character} in its name: set FEDQ_NA"
    ):
        unpacked("programs", "RabbitMQ", lambda _: [])
    assert list(tmp_path.iterdir()) == []
