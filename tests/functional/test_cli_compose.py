"""A generated Compose file, given to Docker Compose."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from services.cli.ops import composing
from tests.unit.test_cli_compose import NUMBERS, generated


@pytest.mark.parametrize(("trainers", "slow", "medium"), NUMBERS)
def test_docker_compose_takes_it(trainers: int, slow: int, medium: int, tmp_path: Path) -> None:
    """Beside an .env with the passwords, and nothing else."""
    words = ["docker", "compose"]
    if (
        shutil.which("docker") is None
        or subprocess.run([*words, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no docker compose here to ask")
    (tmp_path / "my.yaml").write_text(generated(trainers, slow, medium))
    example = composing.TEMPLATE.with_name(".env.example").read_text()
    (tmp_path / ".env").write_text(re.sub(r"^(\w+)=$", r"\1=secret", example, flags=re.MULTILINE))
    asked = subprocess.run(
        [*words, "-f", "my.yaml", "--profile", "*", "config", "-q"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "", "")
