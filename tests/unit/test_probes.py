"""Probes: `alive` is as old as the loop that turned least lately, `ready` is there while the process serves."""

import os
import threading
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.errors import BadInput
from shared.process.probes import Probes
from tests.harness import until

SOON = 60.0  #: seconds; for what takes a few milliseconds


def age(probes: Path) -> float:
    """Seconds since `alive` was touched."""
    return time.time() - (probes / "alive").stat().st_mtime


def turns(probes: Probes, count: int = 5) -> None:
    """Lets a loop of its own turn, waiting for nothing."""
    turning = probes.loop()
    for _ in range(count):
        turning.wait(threading.Event(), probes.interval)
    turning.end()


def test_a_process_lives_from_the_start_and_is_ready_when_it_says_so(tmp_path: Path) -> None:
    """And stops being ready at once when it is asked to stop, for good; at its end nothing is left."""
    folder = tmp_path / "made" / "here"
    with Probes(folder, 0.01) as probes:
        assert os.listdir(folder) == ["alive"]
        probes.serving()
        assert sorted(os.listdir(folder)) == ["alive", "ready"]
        probes.stopping()
        probes.serving()  # from a thread that was late
        assert os.listdir(folder) == ["alive"]
    assert os.listdir(folder) == []


def test_what_a_killed_process_left_says_nothing(tmp_path: Path) -> None:
    """A container that is started again finds its files, where the folder is the pod's."""
    (tmp_path / "ready").touch()
    (tmp_path / "alive").touch()
    os.utime(tmp_path / "alive", (0, 0))
    Probes(tmp_path)

    assert os.listdir(tmp_path) == ["alive"]
    assert age(tmp_path) < SOON


def test_one_loop_that_hangs_is_seen_though_others_turn(tmp_path: Path) -> None:
    """`alive` stays at its last turn, however often it is touched."""
    probes = Probes(tmp_path, 0.01)
    hanging = probes.loop()
    before = time.time()
    hanging.turned()
    last = time.time()
    turns(probes)
    assert before - 0.01 < (tmp_path / "alive").stat().st_mtime < last + 0.01  # two clocks, and rounding

    hanging.turned()
    turns(probes, 1)
    assert (tmp_path / "alive").stat().st_mtime > last + 0.03


def test_a_loop_that_has_ended_is_not_expected_to_turn(tmp_path: Path) -> None:
    """As when Celery's loop ends, while slots finish and heartbeats go on."""
    probes = Probes(tmp_path, 0.01)
    ended = probes.loop()
    ended.end()
    began = time.time()
    turns(probes)

    assert (tmp_path / "alive").stat().st_mtime > began + 0.02


def test_a_loop_that_waits_turns_meanwhile(tmp_path: Path) -> None:
    """However long it waits, and it hears at once what it waits for."""
    probes, happened = Probes(tmp_path, 0.01), threading.Event()
    answers: list[bool] = []
    began = time.time()
    waiting = threading.Thread(target=lambda: answers.append(probes.loop().wait(happened, 3600)))
    waiting.start()
    until(lambda: (tmp_path / "alive").stat().st_mtime > began + 0.05, SOON, "turns of a loop that waits")
    happened.set()
    waiting.join(SOON)

    assert answers == [True]
    assert probes.loop().wait(threading.Event(), 0.05) is False


def test_a_loop_that_turns_quickly_seldom_touches(tmp_path: Path) -> None:
    """A system call a turn would cost more than the turn."""
    probes = Probes(tmp_path, 60)
    turning = probes.loop()
    turning.turned()
    (tmp_path / "alive").unlink()
    for _ in range(1000):
        turning.turned()

    assert os.listdir(tmp_path) == []


def test_files_that_cannot_be_written_end_no_loop(tmp_path: Path) -> None:
    """Whoever looks at them will end the process; it says why, once."""
    folder = tmp_path / "probes"
    probes = Probes(folder, 0.01)
    (folder / "alive").unlink()
    folder.rmdir()
    with capture_logs() as logged:
        turns(probes, 20)
        probes.serving()

    (line,) = logged
    assert line["reason"].startswith("FEDQ_PROBE_DIR: ")


def test_a_folder_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    """It is found at the start."""
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"^FEDQ_PROBE_DIR: .*file/probes cannot be written: Not a directory$"):
        Probes(tmp_path / "file" / "probes")


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops turn all the same."""
    monkeypatch.chdir(tmp_path)
    with Probes() as probes:
        probes.serving()
        probes.loop().turned()
        assert os.listdir(tmp_path) == []
