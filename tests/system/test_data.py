"""Data that change, differ or cannot be trained on, in a federation of real processes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from shared import names
from tests.harness import SECONDS, Services, until


def table(file: Path, rows: int, *, columns: int = 2, swapped: bool = False) -> None:
    """Two classes that the first column tells apart."""
    rng = np.random.default_rng(rows)
    header = [f"c{number}" for number in range(columns)]
    lines = [",".join([*header, "label"])]
    for row in range(rows):
        values = [4 * (row % 2) + rng.random(), *rng.random(columns - 1)]
        lines.append(",".join([*(f"{value:.6f}" for value in values), str(row % 2 ^ swapped)]))
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def until_round(services: Services, job: str, number: int) -> None:
    """Returns once a round is committed."""
    blobs = services.servers.blobs()
    until(lambda: blobs.exists(names.manifest_blob(job, number)), SECONDS, f"round {number} of {job}")


def job(folder: Path, data: dict[str, Any]) -> str:
    document = {
        "name": "changing",
        "pool": "cpu",
        "model": {"name": "softmax"},
        "data": data,
        "train": {"epochs": 2},
        "rounds": {"count": 1},
    }
    file = folder / "job.yaml"
    file.write_text(json.dumps(document))
    return str(file)


def test_the_next_job_trains_on_what_the_files_hold_by_then(services: Services, tmp_path: Path) -> None:
    """On every trainer, without a restart; the job before is not changed by it."""
    data = tmp_path / "data"
    table(data / "t.csv", 200)
    services.settings = {"FEDQ_DATA_DIR": str(data)}
    services.all()
    file = job(tmp_path, {"name": "csv", "path": "t.csv", "clients": 4})
    found = {}
    for name, rows, columns in (("before", 200, 2), ("after1", 600, 4)):
        table(data / "t.csv", rows, columns=columns, swapped=name == "after1")
        services.fedq("start", file, "--watch", "--id", f"changing-{name}")
        blobs = services.servers.blobs()
        first, last = (blobs.get_json(names.manifest_blob(f"changing-{name}", number)) for number in (0, 1))
        found[name] = (first["inputs"]["shape"], last["weight"])

    assert found == {"before": ([2], 160), "after1": ([4], 480)}


def test_a_trainer_with_other_files_is_named_by_the_round(services: Services, tmp_path: Path) -> None:
    """Its shares would be others than those that the rest of the pool works out."""
    for place, rows in (("one", 200), ("other", 300)):
        table(tmp_path / place / "t.csv", rows)
    services.start("registry")
    services.start("aggregator")
    (first,) = services.trainers(1, FEDQ_DATA_DIR=str(tmp_path / "one"))
    file = job(tmp_path, {"name": "csv", "path": "t.csv", "clients": 4})
    # Of a job that has begun, whoever joins must have what it began with: round 0 is the first trainer's.
    services.fedq("start", file, "--set", "rounds.count=200", "--id", "changing-mixed1")
    until_round(services, "changing-mixed1", 1)
    services.trainers(1, FEDQ_DATA_DIR=str(tmp_path / "other"))
    services.stop(first)
    ended = services.ended("changing-mixed1")

    assert ended.status == "failed"
    shown = " ".join(services.fedq("show", "changing-mixed1").split())
    assert re.search(r"the data of trainer \S+ are not like those that the job began with: files of digest", shown)


def test_a_test_set_that_is_no_number_ends_the_job_before_anybody_trains(services: Services, tmp_path: Path) -> None:
    """With the place of the first one, in place of a loss that is NaN for ever."""
    services.all(trainers=1)
    file = job(tmp_path, {"name": "tests.system.odd_data:nan_test", "clients": 2})
    services.fedq("start", file, "--watch", "--id", "odd-test01", code=1)

    shown = " ".join(services.fedq("show", "odd-test01").split())
    assert "data: test() gave x with 1 value that is NaN" in shown
    assert "the first at [3, 1]" in shown
