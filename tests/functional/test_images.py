"""What images are built from, without building one."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.harness import ROOT

SCRIPT = ROOT / "deploy/images/requirements.py"
DOCKERFILE = (ROOT / "deploy/images/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    name.lower().replace("_", "-"): release
    for name, release in (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
}
EXTRAS = {"registry": ["registry"], "aggregator": ["aggregator"], "trainer": ["trainer", "lora"], "cli": ["cli"]}


def written(folder: Path, *wheels: str) -> dict[str, list[str]]:
    """The lines of each `requirements.txt`, where a folder has these wheels; written with nothing installed."""
    (folder / "wheels").mkdir()
    for name in wheels:
        (folder / "wheels" / name).touch()
    command = [
        sys.executable,
        "-S",
        str(SCRIPT),
        str(folder / "to"),
        str(folder / "wheels"),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return {file.parent.name: file.read_text().splitlines() for file in (folder / "to").glob("*/requirements.txt")}


def stage(name: str, parent: str = r"\S+") -> str:
    """What the Dockerfile does in a stage."""
    return re.split(rf"^FROM {parent} AS {name}$", DOCKERFILE, flags=re.MULTILINE)[1].split("\nFROM ")[0]


def test_an_image_installs_what_its_extras_ask_for_and_nothing_else(tmp_path: Path) -> None:
    """Each requirement of pyproject.toml, with the pin of constraints.txt."""
    found = written(tmp_path)

    for image, extras in EXTRAS.items():
        added = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
        asked = {*PROJECT["dependencies"], *added}
        assert len(found[image]) == len(asked)
        for line in asked:
            assert f"{line},=={PINS[re.split('[<>=]', line)[0]]}" in found[image]


def test_torch_is_installed_first_and_as_the_trainer_asks_for_it(tmp_path: Path) -> None:
    found = written(tmp_path)

    assert {re.split("[<>=]", line)[0] for line in found["torch"]} == {"torch", "torchvision", "numpy", "pillow"}
    assert set(found["torch"]) < set(found["trainer"])
    assert (tmp_path / "to/torch/constraints.txt").read_text() == ""  # what it is built from changes with these alone
    assert f"numpy=={PINS['numpy']}" in (tmp_path / "to/trainer/constraints.txt").read_text().splitlines()


def test_a_wheel_that_is_given_is_the_one_that_is_installed(tmp_path: Path) -> None:
    """One release of torch, with its torchvision, and of another package; where there are two, the pin stays."""
    found = written(
        tmp_path,
        "torch-2.9.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
        "torchvision-0.24.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
        "prometheus_client-0.22.1-py3-none-any.whl",
        "minio-7.2.20-py3-none-any.whl",
        "minio-7.2.21-py3-none-any.whl",
    )

    assert "torch>=2.6,<3,==2.9.0+cpu" in found["torch"]
    assert "torchvision>=0.21,<1,==0.24.0+cpu" in found["torch"]
    assert "prometheus-client>=0.21,<1,==0.22.1" in found["registry"]
    assert f"minio>=7.2.20,<8,=={PINS['minio']}" in found["aggregator"]


def test_a_torch_that_is_given_comes_with_its_own_torchvision_or_with_none(tmp_path: Path) -> None:
    """PyPI's is built for PyPI's torch: beside another it cannot be imported, nor what imports it where it is there."""
    found = written(tmp_path, "torch-2.9.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl")

    assert "torch>=2.6,<3,==2.9.0+cpu" in found["torch"]
    assert not [line for image in ("torch", "trainer") for line in found[image] if line.startswith("torchvision")]


def test_a_change_of_tools_or_texts_leaves_the_requirements_as_they_are(tmp_path: Path) -> None:
    """So that no package is installed again for it: the files are the same to the byte."""
    project = (ROOT / "pyproject.toml").read_text()
    changed = project.replace("line-length = 120", "line-length = 99").replace('"ruff>=0.14"', '"ruff>=0.15"')
    assert changed != project
    for name, text in {"before": project, "after": changed}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pyproject.toml").write_text(text)
        (folder / "constraints.txt").write_text((ROOT / "constraints.txt").read_text())
        subprocess.run([sys.executable, str(SCRIPT), "to"], cwd=folder, check=True)
    files = {
        name: {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name / "to").rglob("*.txt")}
        for name in ("before", "after")
    }

    assert files["before"] == files["after"]
    assert len(files["before"]) == 2 * (len(EXTRAS) + 1)


def test_requirements_may_be_written_again(tmp_path: Path) -> None:
    command = [sys.executable, "-S", str(SCRIPT), str(tmp_path / "to")]
    for _ in range(2):
        subprocess.run(command, cwd=ROOT, check=True)


def test_the_code_of_an_image_is_readable_whatever_the_umask_of_the_clone() -> None:
    """COPY keeps modes: all that an image runs comes from the one stage that opens it to its user."""
    copied = {
        part.split()[2] for part in DOCKERFILE.split("\nFROM ") if re.search("^COPY (?!--from)", part, re.MULTILINE)
    }

    assert copied == {"requirements", "code"}
    assert stage("code").split("\nRUN ")[1].startswith("chmod -R a+rX . ")


def test_an_image_begins_with_an_argument_or_a_stage() -> None:
    """No base image is named but as the default of an argument, and none is `latest`."""
    arguments = re.findall(r"^ARG (\w+)=", DOCKERFILE.split("\nFROM ")[0], re.MULTILINE)
    stages: list[str] = []
    for source, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE):
        assert source in stages or source.strip("${}") in arguments, source
        stages.append(name)

    assert len(stages) == DOCKERFILE.count("\nFROM ")
    assert {"registry", "aggregator", "trainer-cpu", "trainer-cuda", "cli"} <= set(stages)
    assert set(re.findall(r"from=([\w-]+)", DOCKERFILE)) <= set(stages)
    assert ":latest" not in DOCKERFILE


def test_another_commit_installs_nothing_again() -> None:
    """An argument is in the environment of each RUN below it, also in stages that begin there."""
    stages = [part for part in DOCKERFILE.split("\nFROM ")[1:] if re.search("VERSION|REVISION|CREATED", part)]

    assert len(stages) == 4
    for part in stages:
        assert "\nRUN" not in part
        assert not re.search(rf"^FROM {part.split()[2]} AS \S+\n(?!CMD)", DOCKERFILE, re.MULTILINE)


def test_trainers_differ_by_settings_alone() -> None:
    """What is between their FROM and the next one: the pool that they serve."""
    cpu, cuda = (
        DOCKERFILE.split(f"\nFROM trainer AS trainer-{kind}\n")[1].split("\n\n")[0] for kind in ("cpu", "cuda")
    )

    assert cpu == 'CMD ["--pool", "cpu"]'
    assert cuda == 'CMD ["--pool", "gpu"]'


@pytest.mark.parametrize("line", re.findall(r"^(?:ENTRYPOINT|CMD) .*$", DOCKERFILE, re.MULTILINE))
def test_no_shell_stands_between_docker_and_a_service(line: str) -> None:
    """Lists of words: a shell would keep the signals to itself."""
    words = json.loads(line.split(" ", 1)[1])

    assert line.startswith("CMD") or words[:4] == ["tini", "--", "python", "-m"]


def test_the_builder_is_sent_what_is_named_and_nothing_else() -> None:
    """Everything is left out, `.git`, `.env`, `.fedq` and `.venv` with it; what is let in, git has."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    kept = subprocess.run(
        ["git", "ls-files", "--error-unmatch", "--", *let_in], cwd=ROOT, check=False, capture_output=True
    )

    assert lines[0] == "*"
    assert lines[-1] == "**/__pycache__"
    assert kept.returncode == 0
    assert not {Path(name).parts[0] for name in let_in} & {".git", ".env", ".fedq", ".venv", "tests", "docs"}


@pytest.mark.parametrize("image", ["registry", "aggregator", "trainer", "cli"])
def test_an_image_holds_the_contract_and_its_own_service(image: str) -> None:
    """Of the code: shared/, the package file of services/, and one folder in it."""
    copied = re.findall(r"^COPY --from=code /app/(\S+)", stage(image), re.MULTILINE)

    assert copied == ["shared", "services/__init__.py", f"services/{image}", *(["deploy"] if image == "cli" else [])]
