"""Which orchestrator is meant, and what a Docker that is a fake says of it."""

import json
from pathlib import Path

import pytest

from services.cli.ops.orchestrators import On, compose
from services.cli.ops.orchestrators.choice import Nowhere, chosen
from shared.errors import BadInput, Unavailable


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program, which a test writes."""
    file = tmp_path / "docker"
    file.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    return file


@pytest.mark.parametrize(
    ("complaint", "sentence"),
    [
        (
            "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct and if "
            "the daemon is running: dial unix /var/run/docker.sock: connect: no such file or directory",
            "Docker's daemon does not answer: start it",
        ),
        (
            "Cannot connect to the Docker daemon at tcp://h:1. Is it running?",
            "Docker's daemon does not answer: start it",
        ),
        ("Error response from daemon: no space left.", "`docker ps` failed: no space left"),
    ],
)
def test_a_docker_that_does_not_do_its_work_is_a_sentence(docker: Path, complaint: str, sentence: str) -> None:
    """Whatever its version calls it."""
    docker.write_text(f'#!/bin/sh\necho "{complaint}" >&2\nexit 1\n')

    with pytest.raises(Unavailable) as failure:
        compose.find()

    assert str(failure.value) == sentence


def test_an_empty_name_of_a_project_chooses_none(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Docker has it."""
    lines = [
        " ".join(json.dumps(word) for word in ("mine", service, "compose.yaml", "/", "", "running"))
        for service in ("aggregator", "registry")
    ]
    docker.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    monkeypatch.setenv(compose.CHOICE, "")

    found = compose.find()

    assert found is not None
    assert found.project == "mine"
    monkeypatch.setenv(compose.CHOICE, "other")
    assert compose.find() is None


@pytest.mark.parametrize("on", [On.compose, On.native])
def test_a_namespace_is_of_kubernetes_alone(on: On) -> None:
    """Whoever names one means no other orchestrator."""
    with pytest.raises(BadInput, match=r"^--namespace is for Kubernetes"):
        chosen(on, "research", tuple(On))


def test_a_stack_that_has_ended_is_not_one_that_was_never_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote can still be read."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Nowhere, match="no stack was started in this folder"):
        chosen(None, None, [On.native])
    (tmp_path / ".fedq/stack").mkdir(parents=True)
    ended = {"name": "aggregator", "pid": 1, "started": -2, "log": "aggregator.log"}
    (tmp_path / ".fedq/stack/stack.json").write_text(json.dumps({"processes": [ended]}))

    with pytest.raises(Nowhere, match=r"the stack in \.fedq/stack does not run any more \(--on native shows"):
        chosen(None, None, [On.native])
    assert chosen(On.native, None, [On.native]).sources(follow=True)


def test_a_stack_is_found_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its settings are."""
    (tmp_path / ".fedq/stack").mkdir(parents=True)
    (tmp_path / ".fedq/stack/stack.json").write_text(json.dumps({"processes": []}))
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path / "jobs")

    assert chosen(On.native, None, [On.native]).place == "the stack in ../.fedq/stack"
