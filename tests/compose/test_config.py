"""The compose file by itself: every profile is complete, and what is missing is said by name."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from deploy.compose import docker, variables
from tests.compose.containers import said

PROFILES = ("", "gpu", "observe", "tools", "*")
REQUIRED = sorted(set(re.findall(r"\$\{(\w+):\?", docker.FILE.read_text())))

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """An `.env` as `make up` writes it."""
    variables.make(tmp_path / ".env")
    return tmp_path / ".env"


def config(file: Path, profile: str, *words: str) -> list[str]:
    profiles = ["--profile", profile] if profile else []
    return ["docker", "compose", "--file", str(docker.FILE), "--env-file", str(file), *profiles, "config", *words]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_complete(filled: Path, profile: str) -> None:
    """With what the example leaves open filled in, Compose has nothing to say."""
    done = subprocess.run(config(filled, profile, "-q"), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_variable_is_named(filled: Path, name: str) -> None:
    """In one sentence that says where to set it; empty is missing too, as in an example that nobody filled in."""
    for line in ("", f"{name}="):
        text = re.sub(rf"^{name}=.*$", line, filled.read_text(), flags=re.MULTILINE)
        file = filled.with_name("lacking")
        file.write_text(text)
        done = subprocess.run(config(file, "*", "-q"), capture_output=True, text=True, check=False)

        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
        assert f"required variable {name} is missing" in done.stderr
        assert ".env" in done.stderr


def test_no_password_has_a_default() -> None:
    """What compose.yaml requires is in the example, empty but for names; so is what it takes from there otherwise."""
    example = variables.read(variables.EXAMPLE)
    named = set(re.findall(r"\$\{(\w+)", docker.FILE.read_text())) - {"PWD"}

    assert named == set(example)
    assert {name for name in REQUIRED if example[name]} == {"MINIO_ROOT_USER", "TRAINER_S3_ACCESS_KEY"}
    assert all(name in REQUIRED for name in example if re.search("PASSWORD|SECRET", name))


def test_every_port_is_of_this_machine_alone(filled: Path) -> None:
    """Of every profile: nothing listens on another address than 127.0.0.1."""
    services = json.loads(said(*config(filled, "*", "--format", "json")))["services"]
    published = {
        (name, port["target"]): port.get("host_ip")
        for name, service in services.items()
        for port in service.get("ports", ())
    }

    assert set(published.values()) == {"127.0.0.1"}
    assert {("rabbitmq", 15672), ("minio", 9001), ("registry", 8080), ("grafana", 3000)} <= published.keys()
