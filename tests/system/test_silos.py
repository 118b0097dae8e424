"""Silos with files of their own, each a process with a data folder of its own, through real servers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from shared import names
from tests.harness import SECONDS, Services, until

pytestmark = pytest.mark.timeout(300)

COLUMNS = "age,dose,outcome"


def rows(size: int, labels: tuple[str, str] = ("well", "ill"), seed: int = 0) -> list[str]:
    """Patients who are ill where age and dose are high, in a table's columns."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(size):
        ill = number % 2
        age, dose = rng.normal((40, 1) if not ill else (65, 3), (6, 0.4))
        found.append(f"{age:.2f},{dose:.3f},{labels[ill]}")
    return found


def begin(services: Services, folder: Path, silos: list[str]) -> None:
    """Starts an aggregator, and a trainer for each silo with a data folder of its own; all are there afterwards."""
    services.start("registry")
    services.start("aggregator")
    for silo in silos:
        own = {"FEDQ_DATA_DIR": str(folder / silo), "FEDQ_STATE_DIR": str(folder / f"{silo}-state")}
        services.start("trainer", "--client", silo, role="trainer", FEDQ_THREADS="1", **own)
    roster = services.servers.roster()
    until(lambda: len(roster.alive()) == len(silos), SECONDS, "all silos to be there", detail=services.tails)


def tabulated(services: Services, folder: Path, tables: dict[str, tuple[str, list[str]]]) -> None:
    """Silos with a table each: its header, and its rows."""
    for silo, (columns, lines) in tables.items():
        (folder / silo).mkdir()
        (folder / silo / "patients.csv").write_text("\n".join([columns, *lines]) + "\n")
    begin(services, folder, list(tables))


def job(folder: Path, silos: list[str], rounds: dict[str, Any], **more: Any) -> str:
    document = {
        "name": "wards",
        "model": {"name": "softmax"},
        "data": {
            "name": "csv",
            "path": "patients.csv",
            "label": "outcome",
            "classes": ["well", "ill"],
            "columns": ["age", "dose"],
            "statistics": {"mean": [52, 2], "deviation": [14, 1.1]},
        }
        | more.pop("data", {}),
        "train": {"epochs": 2, "batch_size": 8, "optimizer": {"lr": 0.5}},
        "rounds": {"count": 3, "deadline": "60s", **rounds},
        "silos": silos,
        **more,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return str(folder / "job.yaml")


def test_silos_train_on_all_of_their_tables_and_one_that_does_not_fit_is_named(
    services: Services, tmp_path: Path
) -> None:
    """One label spelled differently, one column missing: the reasons are in the record, and the others learn."""
    tables = {
        "big": (COLUMNS, rows(90)),
        "small": (
            "dose,outcome,ward,age",
            [",".join((*row.split(",")[1:], "w", row.split(",")[0])) for row in rows(21)],
        ),
        "tiny": (COLUMNS, rows(2, seed=2)),
        "misspelt": (COLUMNS, rows(30, ("well", "Ill"))),
        "narrow": ("age,outcome", [",".join(row.split(",")[::2]) for row in rows(30)]),
    }
    tabulated(services, tmp_path, tables)
    file = job(tmp_path, list(tables), {"minimum": 3})
    out = services.fedq("start", file, "--id", "wards-aaaaaa", "--watch")

    blobs = services.servers.blobs()
    first = blobs.get_json(names.manifest_blob("wards-aaaaaa", 0))
    assert first["inputs"] == {
        "shape": [2],
        "classes": 2,
        "labels": ["well", "ill"],
        "offset": [52.0, 2.0],
        "scale": [14.0, 1.1],
        "digest": None,
    }
    for number in (1, 2, 3):
        manifest = blobs.get_json(names.manifest_blob("wards-aaaaaa", number))
        # A fifth of each table is held out; of two rows, none is.
        assert {one["client"]: one["examples"] for one in manifest["updates"]} == {"big": 72, "small": 17, "tiny": 2}
        refused = manifest["rejected"]
        assert refused.keys() == {"misspelt", "narrow"}
        assert "has labels that data.classes does not declare: 'Ill'; declared: 'well', 'ill'" in refused["misspelt"]
        assert "has no column dose among its 2" in refused["narrow"]
    evaluation = blobs.get_json(names.evaluation_blob("wards-aaaaaa", 3))
    assert evaluation["examples"] in (18, 4)
    assert evaluation["metrics"]["accuracy"] > 0.9
    assert "after 3 rounds" in out.splitlines()[-1]
    assert services.json("verify", "wards-aaaaaa")["holds"] is True


def test_a_test_set_is_found_where_one_silo_alone_has_it_and_its_want_is_said(
    services: Services, tmp_path: Path
) -> None:
    """The silos that come first in the list hold out nothing; then nobody does."""
    tables = {"first": (COLUMNS, rows(2, seed=1)), "second": (COLUMNS, rows(2, seed=2)), "last": (COLUMNS, rows(40))}
    tabulated(services, tmp_path, tables)
    services.fedq("start", job(tmp_path, list(tables), {}), "--id", "wards-bbbbbb", "--watch")
    blobs = services.servers.blobs()
    for number in range(4):
        found = blobs.get_json(names.evaluation_blob("wards-bbbbbb", number))
        assert (found["examples"], found["round"]) == (8, number)
    assert services.json("show", "wards-bbbbbb")["detail"] == ""

    said = "no silo that is there has a test set, and the model was not measured on any"
    file = job(tmp_path, ["first", "second"], {})
    out = services.fedq("start", file, "--id", "wards-cccccc", "--watch")
    assert said in out.splitlines()[-1]
    shown = services.json("show", "wards-cccccc")
    assert (shown["status"], shown["detail"].startswith(said)) == ("finished", True)
    faults = [line for line in services.servers.ledger().log("wards-cccccc") if line["fault"] == "not-evaluated"]
    assert [line["detail"].startswith(said) for line in faults] == [True]
    assert said in services.fedq("show", "wards-cccccc")
    assert said in services.fedq("results", "wards-cccccc")
    assert not blobs.exists(names.evaluation_blob("wards-cccccc", 3))


def test_a_silo_whose_pixels_are_scaled_otherwise_is_named(services: Services, tmp_path: Path) -> None:
    """Bytes are divided by 255 and other numbers are not: what the data look like is compared with what began."""
    kinds = {"bytes-1": np.uint8, "bytes-2": np.uint8, "floats": np.float32}
    for silo, kind in kinds.items():
        (tmp_path / silo).mkdir()
        x = np.random.default_rng(0).integers(0, 256, (12, 1, 4, 4)).astype(kind)
        np.savez(tmp_path / silo / "scans.npz", x=x, y=np.arange(12) % 2)
    begin(services, tmp_path, list(kinds))
    document = {
        "name": "scans",
        "model": {"name": "softmax"},
        "data": {"name": "npz", "path": "scans.npz", "classes": 2},
        "rounds": {"count": 1, "minimum": 1, "deadline": "60s"},
        "silos": list(kinds),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    services.fedq("start", str(tmp_path / "job.yaml"), "--id", "scans-aaaaaa", "--watch")
    blobs = services.servers.blobs()
    began = blobs.get_json(names.manifest_blob("scans-aaaaaa", 0))
    manifest = blobs.get_json(names.manifest_blob("scans-aaaaaa", 1))

    others = {"floats"} if began["inputs"]["scale"] == [255.0] else {"bytes-1", "bytes-2"}
    assert manifest["rejected"].keys() == others
    assert all("not like those that the job began with: scale" in reason for reason in manifest["rejected"].values())
