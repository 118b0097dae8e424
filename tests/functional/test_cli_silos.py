"""What the command line says of silos' data: each has its own, and a job file what they agree on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from services.cli.__main__ import app

TABLE = "name,age,dose,outcome\nAda,70,3,ill\nBob,40,1,well\nCy,42,1,well\nDi,33,2,no\nEd,30,1,well\n"
DRAFT: dict[str, Any] = {
    "name": "wards",
    "model": {"name": "softmax"},
    "data": {"name": "csv", "path": "patients.csv", "label": "outcome", "drop": ["name"]},
    "rounds": {"count": 2},
    "silos": ["north", "south"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of the silo at which the command runs."""
    monkeypatch.setenv("FEDQ_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FEDQ_ALLOW", "ward_data:Ward")
    (tmp_path / "patients.csv").write_text(TABLE)
    return tmp_path


def run(command: str, document: dict[str, Any], folder: Path, *arguments: str) -> Any:
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return CliRunner().invoke(app, [command, str(folder / "job.yaml"), *arguments])


def test_what_is_shown_at_a_silo_makes_of_a_draft_a_job(folder: Path) -> None:
    """Labels, columns and what they are scaled by, as they stand in a job file; until then, the job is refused."""
    refused = run("validate", DRAFT, folder)
    assert refused.exit_code == 2
    assert [line.split(": ")[1] for line in refused.stderr.splitlines()[1:]] == [
        "data.classes is missing",
        "data.columns is missing",
        "data.scale is true, and each silo would scale by its own rows",
    ]
    shown = run("data", DRAFT, folder)
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[:4] == [
        f"{folder}/patients.csv: 5 examples of shape 2, 1 of them held out (data.test_fraction)",
        "  ill: 1",
        "  no: 1",
        "  well: 3",
    ]
    said = yaml.safe_load("\n".join(lines[lines.index("in the job file, below data:, once all silos agree:") + 1 :]))
    assert said == {
        "classes": ["ill", "no", "well"],
        "columns": ["age", "dose"],
        "statistics": {"mean": [43.0, 1.6], "deviation": [14.1986, 0.8]},
    }
    agreed = DRAFT | {"data": {key: value for key, value in DRAFT["data"].items() if key != "drop"} | said}
    assert run("validate", agreed, folder).exit_code == 0
    assert "does not fit" not in run("data", agreed, folder).stdout


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"classes": ["ill", "well"]}, "has labels that data.classes does not declare: 'no'; declared: 'ill', "),
        ({"columns": ["age", "weight"], "drop": []}, "patients.csv has no column weight among its 4"),
    ],
)
def test_a_silo_sees_before_the_job_that_its_file_does_not_fit(
    folder: Path, changed: dict[str, Any], sentence: str
) -> None:
    """With what differs."""
    if "columns" in changed:
        (folder / "patients.csv").write_text(TABLE.replace("Ada", "1").replace("Bob", "2").replace("Cy", "3"))
    found = run("data", DRAFT | {"data": DRAFT["data"] | changed}, folder)

    assert sentence in found.output


def test_labels_that_must_be_declared_are_shown_once_they_are(folder: Path) -> None:
    """Such as numbers beside a word, or a word that stands for a missing value elsewhere; such a file fits."""
    (folder / "patients.csv").write_text("seen,outcome\n1700000000,3+\n1700000060,None\n1700000120,1\n")
    data = {"name": "csv", "path": "patients.csv", "label": "outcome", "test_fraction": 0}
    assert "declare" in run("data", DRAFT | {"data": data}, folder).stderr

    found = run("data", DRAFT | {"data": data | {"classes": ["1", "3+", "None"]}}, folder, "--json")
    assert found.exit_code == 0, found.stderr
    said = json.loads(found.stdout)
    assert (said["labels"], said["problem"]) == ({"1": 1, "3+": 1, "None": 1}, None)
    # As near as a small part of the deviation, of large numbers too.
    assert said["statistics"] == {"mean": [1700000060.0], "deviation": [48.9898]}


def test_archives_and_folders_of_images_are_shown_too(folder: Path) -> None:
    """As JSON, all of it."""
    np.savez(folder / "a.npz", x=np.zeros((5, 2)), y=np.array([0, 2, 1, 0, 2]))
    archive = run("data", DRAFT | {"data": {"name": "npz", "path": "a.npz", "test_fraction": 0}}, folder, "--json")
    assert json.loads(archive.stdout) == {
        "place": f"{folder}/a.npz",
        "examples": 5,
        "held_out": 0,
        "shape": [2],
        "labels": {"0": 2, "1": 1, "2": 2},
        "columns": None,
        "statistics": None,
        "problem": None,
    }
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "pets" / name / "a.png")
    images = {"name": "images", "path": "pets", "size": 4, "classes": ["cat"]}
    assert run("data", DRAFT | {"data": images}, folder).stderr.startswith("error: ")  # one class is none
    images["classes"] = ["cat", "fox"]
    found = json.loads(run("data", DRAFT | {"data": images}, folder, "--json").stdout)
    assert found["labels"] == {"cat": 1, "dog": 1}
    assert "does not declare: 'dog'" in found["problem"]


def test_where_no_silo_is_it_says_where_the_data_are(folder: Path) -> None:
    """In a sentence, and with the command."""
    (folder / "patients.csv").unlink()
    found = run("data", DRAFT, folder)

    assert (found.exit_code, found.stderr) == (
        2,
        f"error: each silo's data are only where it is, and there is no {folder}/patients.csv here: run this there, "
        "with FEDQ_DATA_DIR as its trainer has it\n",
    )
    assert "silos share nothing out" in run("data", DRAFT, folder, "--plot", str(folder / "a.png")).stderr


def test_of_data_of_ones_own_each_silo_shows_those_that_are_there(folder: Path) -> None:
    """In place of a bare KeyError of the first silo that has none here."""
    (folder / "ward_data.py").write_text(
        """
import numpy as np
class Ward:
    shape, classes = (2,), 2
    def client(self, name, index):
        size = {"north": 12}[name]
        return np.zeros((size, 2)), np.arange(size) % 2
    def test(self):
        return None
"""
    )
    own = DRAFT | {"data": {"name": "ward_data:Ward"}}
    found = run("data", own, folder)
    assert found.exit_code == 0, found.stderr
    assert "north" in found.stdout
    assert "south is not here: data: client('south', 1) failed: KeyError: 'south'" in found.stdout
    nowhere = run("data", own | {"silos": ["east", "west"]}, folder)
    assert (nowhere.exit_code, nowhere.stderr) == (
        2,
        "error: data: client('east', 0) failed: KeyError: 'east'; each silo's data are only where it is: run this "
        "there, with FEDQ_DATA_DIR as its trainer has it\n",
    )


def test_owners_of_a_natural_partition_are_named_and_so_are_those_who_are_left_out(folder: Path) -> None:
    """Nobody's examples are dropped in silence."""
    rows = "".join(f"{40 + row * 7 % 40},{'abcd'[row % 4]},{row % 2}\n" for row in range(40))
    (folder / "wards.csv").write_text("age,ward,label\n" + rows)
    data = {"name": "csv", "path": "wards.csv", "clients": 3, "partition": {"name": "natural", "key": "ward"}}
    pool = {key: value for key, value in DRAFT.items() if key != "silos"} | {"pool": "cpu", "data": data}
    found = run("data", pool, folder)
    lines = found.stdout.splitlines()

    assert "1 of 4 owners are left out: d" in lines
    assert [line.split()[:3] for line in lines[-4:]] == [
        ["client", "owner", "examples"],
        ["client-0", "a", "8"],
        ["client-1", "b", "8"],
        ["client-2", "c", "8"],
    ]
