"""Points at which tests end processes: what the setting may say, and when a point acts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import BadInput, Unavailable
from shared.process import failpoints
from shared.process.failpoints import failpoint


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_a_point_acts_when_it_is_reached_that_often() -> None:
    """And at no other time, nor does any other point."""
    failpoints.arm("trainer.taken=raise@2, trainer.told=raise")
    failpoint("trainer.taken")
    failpoint("trainer.fetched")
    with pytest.raises(Unavailable, match="failpoint"):
        failpoint("trainer.taken")
    failpoint("trainer.taken")
    with pytest.raises(Unavailable):
        failpoint("trainer.told")


def test_a_point_with_a_file_acts_once_in_all_processes(tmp_path: Path) -> None:
    """Whoever makes the file first."""
    for _ in range(2):  # as two processes
        failpoints.arm(f"trainer.taken=raise@1:{tmp_path / 'once'}")
        if not (tmp_path / "once").exists():
            with pytest.raises(Unavailable):
                failpoint("trainer.taken")
        failpoint("trainer.taken")


@pytest.mark.parametrize("text", ["trainer.takn=kill", "trainer.taken=stab", "trainer.taken=kill@0", "trainer.taken"])
def test_a_mistake_is_refused(text: str) -> None:
    """With what is allowed."""
    with pytest.raises(BadInput, match="FEDQ_FAILPOINT"):
        failpoints.arm(text)
