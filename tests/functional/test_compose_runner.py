"""`python3 -m deploy.compose` where something is in the way: a sentence that names it, and what to do.

Docker is scripted here, because its faults must be; what it does in truth is tests/compose.
"""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from deploy import __main__ as choosing
from deploy.compose import __main__ as runner
from deploy.compose import overview, variables
from deploy.compose.docker import FILE, Container, Project
from deploy.compose.stack import PORTS, ComposeStack
from deploy.native.state import PORTS as CHOICE
from deploy.native.state import is_free
from shared.errors import BadInput, Unavailable
from tests.unit.test_compose_file import filled

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (None, "Docker is not installed"),
        ("exit 1", "This Docker has no Compose v2"),
        ("echo 2.3.3", "Docker Compose 2.3.3 is too old: install 2.24.4 or newer"),
        ("echo 2.24.3-1", "Docker Compose 2.24.3-1 is too old: install 2.24.4 or newer"),
        (
            "[ $1 = version ] && { echo 'Cannot connect to the daemon' >&2; exit 1; }; echo v2.30.1-desktop.2",
            "Docker's daemon does not answer (Cannot connect to the daemon): start it",
        ),
        ("[ $1 = version ] && exit 1; echo 2.24.4", "Docker's daemon does not answer (docker ended with 1): start it"),
    ],
)
def test_what_is_wrong_with_docker_is_one_sentence(tmp_path: Path, script: str | None, sentence: str) -> None:
    if script is not None:
        scripted(tmp_path, script)
    done = subprocess.run(
        [sys.executable, "-m", "deploy.compose", "status"],
        env={**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == Unavailable.exit_code
    assert done.stderr.startswith(sentence)
    assert done.stderr.endswith("or run the stack without Docker: make up STACK=native.\n")
    assert done.stderr.count("\n") == 1


def test_it_needs_the_standard_library_alone() -> None:
    """A laptop has Docker, make and Python: -I and -S keep everything that was installed away."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import deploy.compose.__main__"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def scripted(folder: Path, script: str) -> None:
    """A `docker` that says what the test wants."""
    docker = folder / "docker"
    docker.write_text(f"#!/bin/sh\n{script}\n")
    docker.chmod(0o755)


@pytest.mark.parametrize(
    ("asked", "script", "settings", "chosen"),
    [
        ("", "exit 0", None, "compose"),
        ("", "exit 0", "FEDQ_CACHE_DIR=/home/a/fedq/.fedq/stack/cache", "native"),  # processes run already
        ("", "exit 0", "FEDQ_AMQP_URL=amqp://fedq@127.0.0.1:5672", "compose"),
        ("", None, None, "native"),
        ("", "[ $1 = compose ]", None, "native"),  # the command is there, and no daemon
        ("", "sleep 60", None, "native"),
        ("native", "exit 0", None, "native"),
        ("compose", None, None, "compose"),
    ],
)
def test_containers_are_taken_where_docker_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, script: str | None, settings: str | None, chosen: str
) -> None:
    """Unless STACK says otherwise, or processes run already."""
    if script is not None:
        scripted(tmp_path, script)
    if settings is not None:
        (tmp_path / ".fedq").mkdir()
        (tmp_path / ".fedq/env").write_text(f"# of a stack\n{settings}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script and "sleep" in script else str(tmp_path))
    monkeypatch.setenv("STACK", asked)
    monkeypatch.setattr(choosing, "PATIENCE", 0.5)

    assert choosing.stack() == chosen


@pytest.mark.parametrize(
    ("words", "stack", "sentence"),
    [
        (["up"], "podman", "error: there is no stack podman: STACK is native or compose\n"),
        (["down"], "native", "error: no stack was ever started here: make up starts one\n"),
        ([], "", "error: say one of up, down, demo, logs, status, such as python3 -m deploy up\n"),
        (["fly"], "", "error: say one of up, down, demo, logs, status, such as python3 -m deploy up\n"),
    ],
)
def test_a_mistake_in_what_to_run_is_one_sentence(tmp_path: Path, words: list[str], stack: str, sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
         "from deploy.__main__ import main; main()", *words],
        env={"STACK": stack}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode != 0, done.stderr) == (True, sentence)


def test_a_container_of_run_may_end_while_others_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker lists it, and knows nothing of it a moment later."""
    label = {"com.docker.compose.service": "redis"}
    known = {"Name": "/a-redis-1", "Config": {"Labels": label}, "State": {"Status": "running", "ExitCode": 0}}
    scripted(
        tmp_path,
        f"""case "$*" in
        ps*oneoff=False) echo redis ;;
        ps*) echo redis run ;;
        "inspect redis") echo '{json.dumps([known])}' ;;
        *) echo "No such object: run" >&2; exit 1 ;;
        esac""",
    )
    monkeypatch.setenv("PATH", str(tmp_path))

    assert Project("a", tmp_path / ".env").containers() == [Container("a-redis-1", "redis", "running", "", 0)]


class Scripted(Project):
    """A project whose containers the test decides."""

    def __init__(self, folder: Path, *, fails: bool = False) -> None:
        super().__init__("scripted", folder / ".env")
        self.found: list[Container] = []
        self.fails = fails
        self.shell: dict[str, str] = {}  #: variables whose word comes before the file's
        self.profiles: set[str] = set()
        self.commands: list[tuple[str, ...]] = []

    def config(self) -> dict[str, Any]:
        values = variables.read(self.variables)
        text = filled(FILE.read_text(), values | self.shell)
        config: dict[str, Any] = yaml.safe_load(text)
        for service in config["services"].values():
            ports = (port.split(":") for port in service.get("ports", []))
            service["ports"] = [{"published": outer, "target": int(inner)} for _, outer, inner in ports]
        return config

    def images(self) -> list[str]:
        services = self.config()["services"].values()
        return [one["image"] for one in services if self.profiles.issuperset(one.get("profiles", []))]

    def containers(self) -> list[Container]:
        return self.found

    def run(self, *words: str, **_: Any) -> int:
        self.commands.append(words)
        return int(self.fails)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """With variables that a person wrote, ports that are free, and images that are here."""
    made = Scripted(tmp_path)
    free = (str(port) for port in CHOICE if is_free(port))
    variables.make(made.variables, dict(zip(PORTS.values(), free, strict=False)))
    variables.settle(made.variables, {})
    monkeypatch.setattr("deploy.compose.docker.has_image", lambda _: True)
    return made


def container(service: str, state: str = "running", exit_code: int = 0) -> Container:
    return Container(f"scripted-{service}-1", service, state, "", exit_code)


def test_a_port_that_is_taken_is_named_with_its_variable(project: Scripted) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        variables.change(project.variables, {"S3_PORT": str(port)})

        with pytest.raises(BadInput, match=rf"Port {port} of 127\.0\.0\.1 is taken .* minio .* set S3_PORT in "):
            ComposeStack(project).start()

    assert project.commands == []


def test_the_ports_of_containers_that_run_are_ours(project: Scripted) -> None:
    with socket.socket() as docker:
        docker.bind(("127.0.0.1", 0))
        docker.listen()
        variables.change(project.variables, {"S3_PORT": str(docker.getsockname()[1])})
        project.found = [container("minio")]
        ComposeStack(project).start()

    assert project.commands == [("up", "--detach", "--remove-orphans")]


@pytest.mark.parametrize(
    ("given", "profile", "prefix", "built"),
    [
        ({}, "", "fedq", {"registry", "aggregator", "trainer-cpu", "cli"}),
        ({}, "gpu", "fedq", {"registry", "aggregator", "trainer-cpu", "trainer-cuda", "cli"}),
        ({"IMAGE_PREFIX": "mine"}, "", "mine", {"registry", "aggregator", "trainer-cpu", "cli"}),
        ({"IMAGE_PREFIX": "registry.example.org/mine"}, "", "", set()),
    ],
    ids=["the file's", "those of a profile", "the shell's word comes first", "a registry has them"],
)
def test_the_images_that_are_built_are_those_that_start(
    project: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    profile: str,
    prefix: str,
    built: set[str],
) -> None:
    made: list[str] = []
    monkeypatch.setattr("deploy.compose.docker.has_image", lambda _: False)
    monkeypatch.setattr("deploy.compose.docker.run", made.extend)
    project.shell, project.profiles = given, {profile}
    ComposeStack(project).start()
    words = dict(word.split("=", 1) for word in made if "=" in word)

    assert set(words.get("IMAGES", "").split()) == built
    assert words.get("IMAGE_PREFIX", "") == prefix


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (lambda: container("setup", "exited", 2), "setup ended with 2; the end of what it said:\nthe last word"),
        (lambda: container("rabbitmq", "restarting", 1), "rabbitmq ended with 1"),
        (lambda: container("minio"), "Compose could not start the stack: see above"),
    ],
)
def test_what_kept_the_stack_from_starting_is_shown(
    project: Scripted, monkeypatch: pytest.MonkeyPatch, given: Callable[[], Container], sentence: str
) -> None:
    monkeypatch.setattr(Container, "tail", lambda *_: "the last word")
    project.fails = True
    project.found = [given()]

    with pytest.raises(Unavailable) as refusal:
        ComposeStack(project).start()

    assert str(refusal.value).startswith(sentence)


def test_a_service_that_refuses_its_settings_is_not_waited_for(
    project: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 is a mistake that another start finds again."""
    monkeypatch.setattr(Container, "tail", lambda *_: "error: FEDQ_S3_URL: is no URL")
    project.found = [container("aggregator", "restarting", BadInput.exit_code)]

    with pytest.raises(Unavailable, match="aggregator ended with 2; the end of what it said:\nerror: FEDQ_S3_URL"):
        ComposeStack(project).start()


def test_from_this_machine_the_servers_are_on_its_own_ports(project: Scripted) -> None:
    found = ComposeStack(project).environment()
    values = variables.read(project.variables)

    assert found["FEDQ_S3_URL"] == f"http://127.0.0.1:{values['S3_PORT']}"
    assert found["FEDQ_REGISTRY_URL"] == f"http://127.0.0.1:{values['REGISTRY_PORT']}"
    assert found["FEDQ_RABBITMQ_URL"] == f"http://127.0.0.1:{values['RABBITMQ_PORT']}"
    assert found["FEDQ_AMQP_URL"].endswith(f":{values['RABBITMQ_PASSWORD']}@127.0.0.1:{values['AMQP_PORT']}/fedq")
    assert found["FEDQ_REDIS_URL"].endswith(f"@127.0.0.1:{values['REDIS_PORT']}/0")


def test_status_says_what_is_down_and_how_it_comes_back(project: Scripted) -> None:
    project.found = [container("redis", "exited", 137), container("minio"), container("setup", "exited")]
    text = overview.as_text(ComposeStack(project))

    assert "scripted-redis-1  exited (137)" in text
    assert "scripted-minio-1  up" in text
    assert "setup" not in text, "it has done its work"
    assert "`make up` starts it again" in text


def test_status_for_programs_holds_no_password(project: Scripted) -> None:
    project.found = [container("redis", "exited", 137)]
    text = overview.as_json(ComposeStack(project))
    secrets = {value for name, value in variables.read(project.variables).items() if "PASSWORD" in name}

    assert json.loads(text)["containers"] == [
        {"name": "scripted-redis-1", "service": "redis", "state": "exited", "health": ""}
    ]
    assert json.loads(text)["urls"]["s3"].startswith("http://127.0.0.1:")
    assert not [secret for secret in secrets if secret in text]


def test_the_settings_for_this_machine_come_and_go_with_the_stack(
    project: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ".fedq/env"

    assert runner.up(project) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(ComposeStack(project).environment().items()) <= set(variables.read(file).items())

    project.variables.unlink()  # what runs can be stopped without it
    assert runner.down(project, purge=False) == 0
    assert not file.exists()


def test_the_settings_of_another_stack_stay(project: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".fedq").mkdir()
    (tmp_path / ".fedq/env").write_text("FEDQ_S3_URL=http://elsewhere:9000\n")
    runner.down(project, purge=True)

    assert (tmp_path / ".fedq/env").exists()
    assert project.commands == [("--profile", "*", "down", "--remove-orphans", "--volumes")]


class Store(BaseHTTPRequestHandler):
    """An object store as far as `make up` asks it what it is."""

    answers: ClassVar[list[int]]

    def do_GET(self) -> None:
        status = self.answers.pop(0) if self.path == "/minio/health/live" else 404
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("answers", "own"),
    [([200], True), ([403], False), ([503, 200], True), ([503, 404], False)],
    ids=["MinIO", "another", "MinIO that starts", "another that starts"],
)
def test_new_variables_hold_a_key_that_the_store_can_make(
    project: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[int], own: bool
) -> None:
    """Also where the first start did not come so far, and nowhere else: what a person wrote stays."""
    monkeypatch.setattr(Store, "answers", answers, raising=False)
    with HTTPServer(("127.0.0.1", 0), Store) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        values = {"S3_PORT": str(store.server_port)}
        mine = {name: value for name, value in variables.read(project.variables).items() if name.endswith("_PORT")}
        project.variables.unlink()
        project.found = [container("minio")]
        stack = ComposeStack(project, mine | values)
        project.fails = True
        with pytest.raises(Unavailable):
            stack.start()
        project.fails = False
        ComposeStack(project).start()
        store.shutdown()
    first = variables.read(project.variables)
    keys = first["TRAINER_S3_ACCESS_KEY"], first["TRAINER_S3_SECRET_KEY"]

    assert (keys == (first["MINIO_ROOT_USER"], first["MINIO_ROOT_PASSWORD"])) is not own
    assert (keys[0] == "trainer") is own

    ComposeStack(project).start()
    assert variables.read(project.variables) == first
    assert answers == [], "asked once it is settled, a store is not asked again"
