"""The fault matrix: real servers and processes, one fault a row, and what must hold after it.

A row that does not say that its fault fired fails. `make faults` runs all of them and writes the guide's table; a plain
run takes the fixed ones and a sample drawn from the commit.
"""

import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Servers, plain
from tests.faults.federation import Federation, Row
from tests.harness import ROOT

SAMPLE = 3  #: rows of a plain run, beside the fixed ones
RESULTS = ROOT / ".fedq" / "faults.jsonl"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(name, promises, fixed=False): a row of the fault matrix")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rows = [item for item in items if item.get_closest_marker("row")]
    if config.getoption("--faults") == "all" or not plain(config):
        return  # all of them, or the ones that were asked for by name
    fixed = [item for item in rows if item.get_closest_marker("row").kwargs.get("fixed")]  # type: ignore[union-attr]
    others = [item for item in rows if item not in fixed]
    kept = {*fixed, *random.Random(_commit()).sample(others, min(SAMPLE, len(others)))}  # noqa: S311 - not a secret
    items[:] = [item for item in items if item not in rows or item in kept]
    config.hook.pytest_deselected(items=[item for item in rows if item not in kept])


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--faults") == "all":
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("")


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or time.strftime("%Y-%m-%d")


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """This test's line of the table; the test fails where its fault did not fire."""
    marker = request.node.get_closest_marker("row")
    parameter = request.node.callspec.id if hasattr(request.node, "callspec") else ""
    own = Row(marker.args[0].replace("{}", parameter), promises=marker.args[1])
    yield own
    assert own.fired, f"the fault of {own.name!r} did not fire"
    if request.config.getoption("--faults") == "all":
        line = {"row": own.name, "fired": own.fired, "promises": own.promises, "recovery": own.recovery}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.fixture
def federation(servers: Servers, tmp_path: Path) -> Iterator[Federation]:
    """A registry and two trainers, and the means to hurt them; aggregators are the test's."""
    found = Federation(servers, tmp_path)
    found.begin()
    yield found
    found.close()
