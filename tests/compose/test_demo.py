"""`make demo` in containers."""

import re
import subprocess
from collections.abc import Callable

import pytest

from tests.compose.containers import SECONDS, now, said
from tests.harness import ROOT


@pytest.mark.usefixtures("images")
def test_the_demo_trains_to_a_good_model_and_leaves_nothing(measured: Callable[[str], None]) -> None:
    """The last line says so; containers, volumes and networks are those of before."""
    before = things()
    began = now()
    done = subprocess.run(
        ["make", "--no-print-directory", "demo", "STACK=compose"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=2 * SECONDS,
    )  # fmt: skip
    took = now() - began
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    last = done.stdout.strip().splitlines()[-1]
    found = re.fullmatch(r"accuracy (0\.\d{3}) after 15 rounds \((\d+\.\d) s\)", last)

    assert found, last
    assert float(found[1]) >= 0.95
    assert things() == before
    measured(f"accuracy {found[1]}, training {found[2]} s, all in all {took:.0f} s")


def things() -> dict[str, set[str]]:
    """Projects of the demo, by what Docker keeps of them; other projects may come and go meanwhile."""
    kinds = {"container": ("--all",), "volume": (), "network": ()}
    wanted = ("--filter", "label=com.docker.compose.project")
    formats = {"container": "{{.Names}}", "volume": "{{.Name}}", "network": "{{.Name}}"}
    return {
        kind: {
            name
            for name in said("docker", kind, "ls", *more, *wanted, "--format", formats[kind]).split()
            if name.startswith("fedq-demo-")
        }
        for kind, more in kinds.items()
    }
