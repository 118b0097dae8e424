"""The command lines by which `make images` and `make push` call Docker, seen by a program that stands in for it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import ROOT

DOCKER = """#!/bin/sh
echo "$@" >> "$DOCKER_LOG"
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    program = tmp_path / "docker"
    program.write_text(DOCKER)
    program.chmod(0o755)
    return tmp_path / "log"


def make(log: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # A `make` around these tests hands its own variables on.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "TORCH_"))}
    environment = own | {"PATH": f"{log.parent}:{os.environ['PATH']}", "DOCKER_LOG": str(log)}
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("more", "cuda"), [((), "a"), (("TORCH_INDEX_CUDA=b",), "b"), (("TORCH_INDEX_CUDA=",), "")], ids=str
)
def test_each_image_has_its_index(log: Path, more: tuple[str, ...], cuda: str) -> None:
    words = ("IMAGES=cli trainer-cuda", "IMAGE_PREFIX=me", "IMAGE_TAG=1", "TORCH_INDEX=a", *more)
    done = make(log, "images", *words)
    cli, trainer, listed = log.read_text().splitlines()

    assert (done.returncode, done.stdout) == (0, "me/cli:1\nme/trainer-cuda:1\n"), done.stderr
    assert "--target cli --tag me/cli:1" in cli
    assert cli.endswith("TORCH_INDEX=a .")
    assert trainer.endswith(f"TORCH_INDEX={cuda} .")
    assert listed.startswith("images --filter reference=me/*:1")


def test_a_push_needs_a_registry(log: Path) -> None:
    done = make(log, "push")

    assert done.returncode == 2
    assert "push: say where to, such as make push REGISTRY=host/name" in done.stderr
    assert not log.exists()


def test_images_are_pushed_under_the_name_of_the_registry(log: Path) -> None:
    make(log, "push", "REGISTRY=h/n", "IMAGES=cli", "IMAGE_TAG=1")

    assert log.read_text() == "tag fedq/cli:1 h/n/cli:1\npush h/n/cli:1\n"
