"""What `make demo` and `make test` install, and what is shown of it."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from deploy import __main__ as choosing
from deploy.native import bootstrap, installing

ROOT = Path(__file__).parents[2]
WHEEL = {
    "tiny.py": "",
    "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
    "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny-1.0.dist-info/RECORD": "tiny.py,,\ntiny-1.0.dist-info/METADATA,,\ntiny-1.0.dist-info/WHEEL,,\n"
    "tiny-1.0.dist-info/RECORD,,\n",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With pip, and in the folder above it a wheel."""
    folder = tmp_path_factory.mktemp("installing")
    venv.create(folder / "venv", with_pip=True)
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in WHEEL.items():
            wheel.writestr(name, text)
    return folder / "venv"


def test_what_is_installed_is_counted_and_pip_is_silent(environment: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Outside a terminal: a line at the beginning, and what came of it."""
    installing.install(environment, "tiny", "--no-index", "--find-links", str(environment.parent), "tiny")
    told = capfd.readouterr()

    assert told.out == ""
    assert told.err.splitlines()[:2] == [
        "Installing tiny; a first time fetches what pip has not kept ...",
        "  unpacking 1 packages",
    ]
    assert told.err.splitlines()[-1].startswith("Installed tiny: 1 packages in ")
    assert "Successfully" not in told.err
    subprocess.run([environment / "bin/python", "-c", "import tiny"], check=True)


def test_what_pip_says_is_shown_where_it_fails(environment: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All of it, warnings too."""
    with pytest.raises(SystemExit, match=r"^error: pip cannot install nothing: its words are above$"):
        installing.install(environment, "nothing", "--no-index", "no-package-has-this-name")

    assert "ERROR: No matching distribution found for no-package-has-this-name" in capfd.readouterr().err


def test_large_files_have_a_line_each(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a pip that is played, for nothing large is fetched in a test."""
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(
        "#!/bin/sh\ncat <<END\nCollecting torch<3,>=2.6 (from fedq==0.1.0)\n"
        "  Downloading torch-2.6.0-cp311-cp311-linux_x86_64.whl.metadata (28 kB)\n"
        "  Downloading torch-2.6.0-cp311-cp311-linux_x86_64.whl (766.7 MB)\n"
        "Collecting pika<1.5 (from fedq==0.1.0)\n  Using cached pika-1.4.4-py3-none-any.whl (155 kB)\n"
        "WARNING: of no use to anybody\nInstalling collected packages: pika, torch\nEND\n"
    )
    python.chmod(0o755)
    installing.install(tmp_path, "fedq")

    assert capfd.readouterr().err.splitlines()[:-1] == [
        "Installing fedq; a first time fetches what pip has not kept ...",
        "  package 1, torch-2.6.0 (766.7 MB)",
        "  unpacking 2 packages",
    ]


def test_one_environment_is_made_in_two_steps(tmp_path: Path) -> None:
    """The tests need more than what the stack runs on; what is installed is kept until the requirements change."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def would_install(target: str) -> list[str]:
        done = subprocess.run(
            ["make", "--dry-run", target, f"PYTHON={sys.executable}"],
            cwd=tmp_path, env={**os.environ, "MAKEFLAGS": ""}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [line.split()[-1] for line in done.stdout.splitlines() if "deploy.native.bootstrap" in line]

    assert [would_install(target) for target in ("unit", "test", "lint", "venv")] == [["all,dev"]] * 4
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.installed").touch()
    assert would_install("test") == []


def test_the_stack_of_processes_installs_what_it_runs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and again when the requirements have changed."""
    installed = []

    def fake(directory: Path, extras: str) -> None:
        """Stands for pip, which takes a minute; `deploy.native.bootstrap` is tested by each `make test`."""
        directory.mkdir(exist_ok=True)
        installed.append(extras)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bootstrap, "main", fake)
    for source in choosing.SOURCES:
        source.touch()
    choosing.fill()
    choosing.fill()
    assert installed == ["stack"]

    later = choosing.RUNS.stat().st_mtime + 1
    os.utime("constraints.txt", (later, later))
    choosing.fill()
    assert installed == ["stack", "stack"]
