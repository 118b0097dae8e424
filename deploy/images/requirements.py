"""Writes pip's requirements for each image: `python requirements.py FOLDER [WHEELS]`.

It reads pyproject.toml and constraints.txt from the working directory. In FOLDER it creates a folder for each of
`EXTRAS` and one for torch, each with requirements.txt and, for transitive dependencies, constraints.txt. A package
with exactly one release in the folder WHEELS is pinned to that release. If WHEELS has torch but not torchvision,
torchvision is left out, because a build that does not match torch's cannot be imported. The script uses only the
standard library, because it runs before anything is installed.
"""

import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXTRAS = {"registry": ["registry"], "aggregator": ["aggregator"], "trainer": ["trainer", "lora"], "cli": ["cli"]}
TORCH = ("torch", "torchvision", "numpy", "pillow")  # a separate image layer: gigabytes that seldom change


def main(folder: Path, wheels: Path | None = None) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    given = releases(file.name for file in wheels.glob("*.whl")) if wheels else {}
    pins = pinned(Path("constraints.txt").read_text().split(), given)
    for name, extras in EXTRAS.items():
        lines = requirements(project, extras, pins)
        if "torch" in given and "torchvision" not in given:
            lines = [line for line in lines if package(line) != "torchvision"]
        _write(folder / name, lines, pins)
        if name == "trainer":
            _write(folder / "torch", [line for line in lines if package(line) in TORCH], {})


def requirements(project: dict[str, Any], extras: list[str], pins: dict[str, str]) -> list[str]:
    """Requirements of every service and of the given extras, each with its pin: `numpy>=1.26,<3,==2.4.6`."""
    added = [line for extra in extras for line in project["optional-dependencies"][extra]]
    lines = {*project["dependencies"], *added}
    return sorted(f"{line},=={pins[package(line)]}" if package(line) in pins else line for line in lines)


def pinned(constraints: list[str], given: dict[str, set[str]]) -> dict[str, str]:
    """The release of each package: its only given release, or else the one in the constraints."""
    pins = {package(name): release for name, release in (line.split("==") for line in constraints)}
    return pins | {name: only for name, (only, *others) in given.items() if not others}


def releases(wheels: Iterable[str]) -> dict[str, set[str]]:
    """The releases of each package, by the names of their files."""
    found = defaultdict(set)
    for name, release in (file.split("-")[:2] for file in wheels):
        found[package(name)].add(release)
    return found


def package(requirement: str) -> str:
    """The name of the package of a requirement or a wheel, normalized as package indexes write it."""
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def _write(folder: Path, requirements: list[str], pins: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, lines in {
        "requirements.txt": requirements,
        "constraints.txt": [f"{name}=={release}" for name, release in pins.items()],
    }.items():
        (folder / file).write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
