"""Data on disk: read again when they changed, and only from below the folder that a trainer's owner names."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.trainer.data import dataset, source
from services.trainer.data.dataset import inputs_of, refuse_others
from services.trainer.data.sharing import SharedOut
from shared.errors import BadInput
from shared.events import Inputs
from shared.job import job_spec
from shared.job.job_spec import JobSpec
from tests.datasets import leaf_file, mnist_files, write, writer


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


def of_job(data: dict[str, Any], job: str) -> SharedOut:
    found = dataset.load(spec(data), job)
    assert isinstance(found, SharedOut)
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trainer's folder of data; nothing is loaded yet."""
    monkeypatch.setenv("FEDQ_DATA_DIR", str(tmp_path / "data"))
    dataset._loaded.clear()
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# --- what changed -------------------------------------------------------------------------------


def table(folder: Path, rows: int) -> None:
    (folder / "t.csv").write_text("a,label\n" + "".join(f"{row},{row % 2}\n" for row in range(rows)))


def archive(folder: Path, rows: int) -> None:
    np.savez(folder / "t.npz", x=np.zeros((rows, 2)), y=np.arange(rows) % 2)


def pictures(folder: Path, rows: int) -> None:
    for row in range(rows):
        (folder / f"pets/{row % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), row).save(folder / f"pets/{row % 2}/{row}.png")


def writers(folder: Path, rows: int) -> None:
    write(folder, {"femnist/train/a.json": leaf_file({"f1": writer(rows, 1)})})


def digits(folder: Path, rows: int) -> None:
    write(folder / "mnist", mnist_files("MNIST", train=rows))


KINDS = [
    ({"name": "csv", "path": "t.csv", "test_fraction": 0}, table),
    ({"name": "npz", "path": "t.npz", "test_fraction": 0}, archive),
    ({"name": "images", "path": "pets", "size": 4, "test_fraction": 0}, pictures),
    ({"name": "femnist", "test_fraction": 0}, writers),
    ({"name": "mnist", "download": False}, digits),
]


@pytest.mark.parametrize(("data", "make"), KINDS)
def test_a_new_job_trains_on_what_the_files_hold_now(folder: Path, data: dict[str, Any], make: Any) -> None:
    """And rounds of one job on what they held when it began; what did not change is not read again."""
    make(folder, 4)
    first = of_job(data, "one")
    assert of_job(data, "two") is first
    make(folder, 6)

    assert of_job(data, "one") is first
    second = of_job(data, "three")
    assert [len(first.client("", 0)[1]), len(second.client("", 0)[1])] == [4, 6]
    assert of_job(data, "three") is second


def test_a_file_of_the_same_size_is_another_once_it_was_written_again(folder: Path) -> None:
    """Labels that were swapped leave the size as it was."""
    data = {"name": "csv", "path": "t.csv", "test_fraction": 0}
    (folder / "t.csv").write_text("a,label\n1,0\n2,1\n")
    os.utime(folder / "t.csv", (1, 1))  # clocks of file systems tick in milliseconds
    before = of_job(data, "one").client("", 0)[1].tolist()
    (folder / "t.csv").write_text("a,label\n1,1\n2,0\n")

    assert (before, of_job(data, "two").client("", 0)[1].tolist()) == ([0, 1], [1, 0])


def test_a_file_that_is_gone_is_missed_by_the_next_job(folder: Path) -> None:
    """Rows that are no longer there must not be trained on."""
    table(folder, 4)
    data = {"name": "csv", "path": "t.csv"}
    of_job(data, "one")
    (folder / "t.csv").unlink()

    with pytest.raises(BadInput, match="this trainer has no"):
        of_job(data, "two")


def test_files_that_change_while_they_are_read_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-written file may look like a whole one."""
    table(folder, 4)
    read = dataset._read

    def slow(*arguments: Any) -> Any:
        found = read(*arguments)
        with (folder / "t.csv").open("a") as file:
            file.write("7,1\n")
        return found

    monkeypatch.setattr(dataset, "_read", slow)
    with pytest.raises(BadInput, match=r"t\.csv changes while it is read; start the job again when"):
        of_job({"name": "csv", "path": "t.csv"}, "one")


@pytest.mark.parametrize(("data", "make"), KINDS)
def test_a_trainer_with_other_files_than_the_job_began_with_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any], make: Any
) -> None:
    """Shares of other files would overlap, or leave examples out; the same files in another place are the same."""
    found = []
    for number, rows in enumerate((4, 4, 6)):
        place = tmp_path / f"trainer-{number}"
        place.mkdir()
        make(place, rows)
        (place / "notes.txt").write_text(f"{number}")
        monkeypatch.setenv("FEDQ_DATA_DIR", str(place))
        dataset._loaded.clear()
        found.append(of_job(data, "one"))
    first, same, other = found

    refuse_others(same, inputs_of(first), "cpu-2")
    with pytest.raises(
        BadInput, match=r"^the data of trainer cpu-3 are not like .* files of digest \w{10}.* in place of"
    ):
        refuse_others(other, inputs_of(first), "cpu-3")


def plays(folder: Path, _rows: int) -> None:
    lines = (["x" * 80, "y" * 80], ["\n", "z"])
    write(folder, {"shakespeare/train/a.json": leaf_file({"HAMLET": lines})})


@pytest.mark.parametrize(("data", "make"), [*KINDS, ({"name": "shakespeare", "test_fraction": 0}, plays)])
def test_data_are_like_what_their_own_record_says(folder: Path, data: dict[str, Any], make: Any) -> None:
    """A class may be named by a line feed, which a record does not hold as it is."""
    make(folder, 4)
    found = of_job(data, "one")

    refuse_others(found, Inputs.model_validate_json(inputs_of(found).model_dump_json()), "cpu-1")


def test_silos_have_files_of_their_own_to_begin_with(folder: Path) -> None:
    """There is nothing to compare."""
    table(folder, 4)
    document = spec({"name": "csv", "path": "t.csv"}).model_dump()
    declared = {"classes": ["0", "1"], "columns": ["a"], "scale": False, "clients": None}
    silos = job_spec.parse({**document, "pool": None, "silos": ["n", "s"], "data": {**document["data"], **declared}})
    first = dataset.load(silos, "one")
    table(folder, 6)

    refuse_others(dataset.load(silos, "two"), inputs_of(first), "s-1")


def test_what_programs_leave_behind_changes_nothing(folder: Path) -> None:
    """A look at a folder by a file manager or a notebook does not have its images read again."""
    pictures(folder, 4)
    before = source.stamp(folder, folder)
    write(
        folder,
        dict.fromkeys((".DS_Store", "pets/Thumbs.db", "pets/.ipynb_checkpoints/1.png", "__MACOSX/pets/x"), b"?"),
    )

    assert source.stamp(folder, folder) == before
    os.utime(folder / "pets/0/0.png", (1, 1))
    assert source.stamp(folder, folder) != before


def test_a_copy_with_the_time_and_size_of_what_it_replaces_is_another(folder: Path) -> None:
    """As `cp -p` and `rsync -t` write over a file."""
    table(folder, 4)
    os.utime(folder / "t.csv", (1, 1))
    before = source.stamp(folder / "t.csv", folder)
    until_the_clock_ticks(folder)
    (folder / "t.csv").write_bytes((folder / "t.csv").read_bytes()[::-1])
    os.utime(folder / "t.csv", (1, 1))

    assert source.stamp(folder / "t.csv", folder) != before


def until_the_clock_ticks(folder: Path) -> None:
    """Returns once the file system's clock shows another time; it does so in milliseconds."""
    file = folder / ".tick"
    file.touch()
    first = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == first:
        os.utime(file, (1, 1))
