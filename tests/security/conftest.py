"""A federation for tests of the trainer: its processes end with the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.by_hand import Federation, Servers


@pytest.fixture
def federation(servers: Servers, tmp_path: Path) -> Iterator[Federation]:
    """A job's other half; its trainers do not outlive the test."""
    found = Federation(servers, tmp_path)
    yield found
    for process in found.processes:
        process.kill()
        process.wait()
