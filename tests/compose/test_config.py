"""The compose file by itself: every profile is complete, and what is missing is said by name."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from deploy.compose import docker, variables
from tests.compose.containers import said
from tests.harness import ROOT

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


@pytest.mark.parametrize("place", ["file", "shell"])
def test_the_images_are_those_of_what_is_to_start(filled: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """A profile in `.env` or in the shell adds its own; the tag of the shell comes before the file's."""
    project = docker.Project("fedq-test", filled)
    before = set(project.images())
    if place == "file":
        filled.write_text(filled.read_text() + 'COMPOSE_PROFILES="gpu" # of this machine\n')
    else:
        monkeypatch.setenv("COMPOSE_PROFILES", "gpu")

    assert not {image for image in before if image.startswith(("fedq/trainer-cuda", "grafana"))}
    assert set(project.images()) - before == {"fedq/trainer-cuda:0.1.0"}

    monkeypatch.setenv("IMAGE_PREFIX", "mine")
    assert {"mine/cli:0.1.0", "mine/trainer-cuda:0.1.0"} < set(project.images())


def test_the_guides_file_for_a_server_elsewhere_is_understood(filled: Path) -> None:
    """No MinIO, and whoever uses the object store is told where it is."""
    file = filled.with_name("elsewhere.yaml")
    file.write_text(
        "# " + (ROOT / "docs/guide/compose.md").read_text().split("```yaml\n# elsewhere.yaml: ")[1].split("```")[0]
    )
    command = config(filled, "*", "--format", "json")
    command[4:4] = ["--file", str(file)]
    services = json.loads(said(*command))["services"]
    told = {one.get("environment", {}).get("FEDQ_S3_URL", "none") for one in services.values()}

    assert "minio" not in services
    assert told == {"https://s3.example.org", "none"}


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_variable_is_named(filled: Path, name: str) -> None:
    """In one sentence that says where to set it; empty is missing too, as in an example that nobody filled in."""
    for line in ("", f"{name}="):
        text = re.sub(rf"^{name}=.*$", line, filled.read_text(), flags=re.MULTILINE)
        file = filled.with_name("lacking")
        file.write_text(text)
        done = subprocess.run(config(file, "*", "-q"), capture_output=True, text=True, check=False)

        # Of its second use Compose may warn before it fails.
        told = [line for line in done.stderr.splitlines() if "level=warning" not in line]

        assert done.returncode != 0
        assert len(told) == 1
        assert f"required variable {name} is missing" in told[0]
        assert ".env" in told[0]


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
