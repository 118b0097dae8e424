"""Containers for the tests: one project of Compose for all of them, removed with its volumes at the end.

They run by `make test-compose`, where a Docker Engine with Compose answers; `make test` leaves them out.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.compose import docker
from shared.errors import Unavailable
from tests.compose.containers import TRAINERS, Containers, Federation
from tests.harness import ROOT

_measured: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300, func_only=True))  # building images takes what it takes


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker Engine with Compose; to have none is a failure here, for these tests were asked for."""
    try:
        docker.check()
    except Unavailable as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def images(engine: None) -> None:
    """fedq's images, of the code that is here: layers that are still right are kept."""
    command = ["make", "--no-print-directory", "images", "IMAGES=registry aggregator trainer-cpu cli"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="session")
def containers(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Servers and services, two trainers among them."""
    found = Containers(tmp_path_factory.mktemp("compose"))
    try:
        found.start()
        yield found
    finally:
        found.remove()


@pytest.fixture
def federation(containers: Containers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    """The stack, whole and with two trainers, whatever the test before did to it."""
    for name in [name for name in os.environ if name.startswith("FEDQ_")]:
        monkeypatch.delenv(name)
    found = Federation(containers, tmp_path)
    if not containers.whole():
        containers.up()
    found.trained(TRAINERS)
    yield found
    found.close()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Notes a figure for the end of the run."""
    return lambda sentence: _measured.append(f"{request.node.name}: {sentence}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measured:
        terminalreporter.section("measured")
        for line in _measured:
            terminalreporter.line(line)
