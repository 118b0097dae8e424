"""A job names data below the folder that a trainer's owner names, and nothing else on the owner's machine."""

from pathlib import Path
from typing import Any

import pytest

from services.trainer.data import dataset
from services.trainer.data.sharing import SharedOut
from shared.errors import BadInput
from shared.job import job_spec
from shared.job.job_spec import JobSpec


def spec(data: dict[str, Any]) -> JobSpec:
    return job_spec.parse(
        {
            "name": "t",
            "pool": "cpu",
            "model": {"name": "softmax"},
            "data": {"clients": 1, **data},
            "rounds": {"count": 1},
            "evaluate": {"every": 0},
        }
    )


def loaded(data: dict[str, Any]) -> SharedOut:
    found = dataset.load(spec(data))
    assert isinstance(found, SharedOut)
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trainer's folder of data; nothing is loaded yet."""
    monkeypatch.setenv("FEDQ_DATA_DIR", str(tmp_path / "data"))
    dataset._loaded.clear()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/t.csv").write_text("a,label\n1,0\n2,1\n3,0\n")
    return tmp_path / "data"


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.csv", "a/../../secret.csv", "", " ", "a\0b", "\x1b[2J"])
@pytest.mark.parametrize(
    "data",
    [
        {"name": "csv", "path": "?"},
        {"name": "npz", "path": "?"},
        {"name": "images", "path": "?"},
        {"name": "mnist", "folder": "?"},
        {"name": "femnist", "folder": "?"},
    ],
)
def test_a_job_file_names_data_below_the_folder_of_each_trainer(data: dict[str, Any], path: str) -> None:
    """A50: where that folder is, is the trainer's owner's to say."""
    with pytest.raises(BadInput, match=r"data\.\w+: .* path below FEDQ_DATA_DIR"):
        spec({key: path if value == "?" else value for key, value in data.items()})


def test_a_link_leads_nowhere_else(folder: Path) -> None:
    """A50: links in the folder stay in it."""
    (folder.parent / "secret.csv").write_text("DB_PASSWORD=hunter2\n1\n")
    (folder / "out.csv").symlink_to(folder.parent / "secret.csv")
    (folder / "round").symlink_to(folder / "round")
    (folder / "in.csv").symlink_to("t.csv")

    assert loaded({"name": "csv", "path": "in.csv"}).shape == (1,)
    with pytest.raises(BadInput, match=r"data.path: out.csv leads out of this trainer's FEDQ_DATA_DIR; put"):
        loaded({"name": "csv", "path": "out.csv"})
    with pytest.raises(BadInput, match="round"):
        loaded({"name": "csv", "path": "round"})


def test_the_folder_itself_may_be_a_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A50: its owner made it."""
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.setenv("FEDQ_DATA_DIR", str(folder.parent / "link"))

    assert loaded({"name": "csv", "path": "t.csv"}).shape == (1,)
