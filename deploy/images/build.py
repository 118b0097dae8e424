"""Builds or pushes the container images: `python3 deploy/images/build.py build|push`, with the Makefile's variables.

Each variable of docs/guide/images.md comes from the environment, to which make exports it. This script needs Docker
and the standard library.
"""

import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

FILE = "deploy/images/Dockerfile"
ALL = "registry aggregator trainer-cpu trainer-cuda cli"
COLUMNS = r"table {{.Repository}}:{{.Tag}}\t{{.Size}}"


def build() -> None:
    """Builds each image of `IMAGES` under its tag, and lists them with their sizes."""
    prefix, tag = _given("IMAGE_PREFIX", "fedq"), _tag()
    common = {"VERSION": _version(), "REVISION": _revision(), "CREATED": _created()}
    if python := _given("PYTHON_IMAGE"):
        common["PYTHON_IMAGE"] = python
    if wheels := _given("WHEELS"):
        common["WHEELS"] = f"{prefix}/wheels:local"
        _docker_build("--quiet", "--tag", common["WHEELS"], "--file", "-", wheels, given="FROM scratch\nCOPY *.whl /\n")
    config = _given("PIP_CONF")
    secret = ["--secret", f"id=pip.conf,src={config}"] if config else []
    for image in _images():
        index = _given("TORCH_INDEX")
        if image == "trainer-cuda":
            index = os.environ.get("TORCH_INDEX_CUDA", index)  # an empty value means PyPI alone
        arguments = common | {"TORCH_INDEX": index}
        words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        print(f"{prefix}/{image}:{tag}", flush=True)
        _docker_build("--file", FILE, "--target", image, "--tag", f"{prefix}/{image}:{tag}", *words, *secret, ".")
    _run("docker", "images", "--filter", f"reference={prefix}/*:{tag}", "--format", COLUMNS)


def push() -> None:
    """Tags each image of `IMAGES` for `REGISTRY`, and pushes it there."""
    registry = _given("REGISTRY")
    if not registry:
        print("push: say where to, such as make push REGISTRY=host/name", file=sys.stderr)
        sys.exit(2)
    for image in _images():
        there = f"{registry}/{image}:{_tag()}"
        _run("docker", "tag", f"{_given('IMAGE_PREFIX', 'fedq')}/{image}:{_tag()}", there)
        _run("docker", "push", there)


def _given(name: str, default: str = "") -> str:
    return os.environ.get(name) or default


def _images() -> list[str]:
    return _given("IMAGES", ALL).split()


def _tag() -> str:
    return _given("IMAGE_TAG") or _version()


def _version() -> str:
    return str(tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"])


def _revision() -> str:
    return _git("describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*") or "unknown"


def _created() -> str:
    return _git("log", "-1", "--format=%cI") or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # the sources may come without their git history
        return ""


def _docker_build(*words: str, given: str | None = None) -> None:
    # Docker 20.10 has BuildKit, but uses it only if this variable is set.
    buildkit = os.environ | {"DOCKER_BUILDKIT": "1"}
    more = shlex.split(_given("DOCKER_BUILD_FLAGS"))
    subprocess.run(["docker", "build", *more, *words], env=buildkit, input=given, text=True, check=True)


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


COMMANDS: dict[str, Callable[[], None]] = {"build": build, "push": push}

if __name__ == "__main__":
    try:
        COMMANDS[sys.argv[1]]()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
