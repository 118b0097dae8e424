"""Protocols of the user's own code: a type checker takes the examples for what they are, and finds what is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide" / "own_code.md"
EXAMPLES = """
from examples.hospital import data
from examples.own_model import residual
from examples.own_strategy import Nesterov
from shared.plugins import DataFactory, ModelFactory, ServerStrategy, StrategyFactory

_data: DataFactory = data
_model: ModelFactory = residual
_strategy: StrategyFactory = Nesterov
_object: ServerStrategy = Nesterov()
"""
WRONG = """
from collections.abc import Mapping

from torch import Tensor, nn

from shared.plugins import DataSet, LocalStep, ServerStrategy


class NoTest:
    shape = (3,)
    classes = 2

    def client(self, name: str, index: int) -> tuple[list[int], list[int]]:
        return [], []


class NoStep:
    state = ("momentum",)


def train(model: nn.Module, x: Tensor, y: Tensor) -> Mapping[str, float]:
    return {}


_data: DataSet = NoTest()
_strategy: ServerStrategy = NoStep()
_step: LocalStep = train
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says of three files: one run, because it reads all of torch."""
    folder = tmp_path_factory.mktemp("typed")
    (snippet,) = re.findall(r"## Types.*?```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    texts = {"guide": f"# mypy: disable-error-code=empty-body\n{snippet}", "taken": EXAMPLES, "wrong": WRONG}
    files = [folder / f"{name}.py" for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text)
    # What the examples' libraries lack in types is not what this is about.
    options = ["--strict", "--ignore-missing-imports", "--follow-imports=silent", "--explicit-package-bases"]
    command = [sys.executable, "-m", "mypy", *options, "--cache-dir", str(folder / "cache"), *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    return done.stdout + done.stderr


def test_examples_and_the_guide_are_what_the_protocols_say(said: str) -> None:
    """The snippet of the guide, and the code that the examples' job files name."""
    assert "wrong.py" in said
    assert "guide.py" not in said
    assert "taken.py" not in said


@pytest.mark.parametrize(("name", "protocol"), [("NoTest", "DataSet"), ("NoStep", "ServerStrategy")])
def test_a_type_checker_names_a_missing_member(said: str, name: str, protocol: str) -> None:
    """A data set without `test`, and a strategy without `step`."""
    assert f'expression has type "{name}", variable has type "{protocol}"' in said


def test_a_type_checker_names_a_local_step_that_does_not_take_what_it_is_given(said: str) -> None:
    """`client`, `round` and `seed` come with each call."""
    assert 'variable has type "LocalStep"' in said
