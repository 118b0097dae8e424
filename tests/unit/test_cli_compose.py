"""`fedq compose`: a stack of one file, with clients that each have a name and a limit."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from services.cli.__main__ import app
from services.cli.ops import composing
from shared.job import job_spec

NUMBERS = [(1, 0, 0), (1, 1, 0), (4, 1, 1), (4, 4, 0), (12, 3, 5)]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compose", *arguments])


def generated(trainers: int, slow: int, medium: int) -> str:
    done = run("--trainers", str(trainers), "--slow", str(slow), "--medium", str(medium))
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(generated(4, 1, 1))
    return found


def test_each_client_has_a_name_a_limit_and_a_disk_of_its_own(stack: dict[str, Any]) -> None:
    """Half a processor for a slow one, 0.75 for a medium one, 1.25 for the others; no pool is left."""
    clients = {name: found for name, found in stack["services"].items() if "--client" in found.get("command", ())}

    assert {name: found["deploy"]["resources"]["limits"]["cpus"] for name, found in clients.items()} == {
        "slow-1": "0.5", "medium-1": "0.75", "fast-1": "1.25", "fast-2": "1.25",
    }  # fmt: skip
    for name, found in clients.items():
        assert found["command"] == ["--client", name]
        assert f"{name}:/var/lib/fedq" in found["volumes"]
        assert name in stack["volumes"]
        assert "replicas" not in found["deploy"]
    assert not any("--pool" in found.get("command", ()) for found in stack["services"].values())


def test_the_rest_is_the_stack_as_it_is(stack: dict[str, Any]) -> None:
    """But for what one file cannot bring along: images to build, and the files of dashboards."""
    template = yaml.safe_load(composing.TEMPLATE.read_text())
    kept = {"rabbitmq", "redis", "minio", "setup", "registry", "aggregator", "fedq"}

    assert {name: stack["services"][name] for name in kept} == {name: template["services"][name] for name in kept}
    assert not any("build" in found for found in stack["services"].values())
    mounted = [str(one) for found in stack["services"].values() for one in found.get("volumes", ())]
    assert not [one for one in mounted if one.startswith((".", "/"))]
    assert not [name for name in stack["volumes"] if not any(re.search(rf"\b{name}\}}?:/", one) for one in mounted)]
    assert "&id" not in generated(4, 1, 1)


@pytest.mark.parametrize(("trainers", "slow", "medium"), NUMBERS)
def test_the_job_that_its_comment_tells_of_is_one(trainers: int, slow: int, medium: int) -> None:
    """With as many silos as there are clients, by their names."""
    text = generated(trainers, slow, medium)
    told = "\n".join(
        line.removeprefix("#   ") for line in text.splitlines() if re.match(r"#   (silos|data|rounds): ", line)
    )
    job = job_spec.parse({"name": "t", "model": {"name": "softmax"}, **yaml.safe_load(told)})

    assert job.silos is not None
    assert set(job.silos) < yaml.safe_load(text)["services"].keys()
    assert len(job.silos) == trainers


def test_the_example_for_such_a_stack_starts_it_as_its_own_comment_does() -> None:
    """With the passwords, and in place of the pool."""
    words = f"docker compose --env-file {composing.ENV} -f {{}} up -d --remove-orphans"

    assert words.format("FILE") in generated(4, 1, 1)
    assert words.format("my.yaml") in (composing.TEMPLATE.parents[2] / "examples/heterogeneous_silos.yaml").read_text()


def test_numbers_that_do_not_fit_are_a_sentence() -> None:
    """And no file."""
    done = run("--trainers", "4", "--slow", "3", "--medium", "2")

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: --slow 3 and --medium 2 are 5 clients, and --trainers is 4\n"
    for wrong in (("--trainers", "0"), ("--slow", "-1"), ("--medium", "many")):
        assert run(*wrong).exit_code == 2


def test_without_the_repository_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where only the package is installed."""
    monkeypatch.setattr(composing, "TEMPLATE", tmp_path / "compose.yaml")
    done = run()

    assert done.exit_code == 2
    assert done.stderr == (
        f"error: {tmp_path}/compose.yaml cannot be read (No such file or directory): it is part of fedq's repository\n"
    )
