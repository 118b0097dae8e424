"""Silos with files of their own: each trains on all of its file, and labels, columns and scales are the job's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from structlog.testing import capture_logs

from services.trainer.data import dataset, library
from services.trainer.data.dataset import inputs_of, refuse_others
from services.trainer.data.sharing import SharedOut
from services.trainer.data.source import StoredExamples, as_floats, normalised
from shared.errors import BadInput
from shared.events import Inputs, ModelUpdate, decode, encode
from shared.job import job_spec
from shared.job.job_spec import JobSpec

SILOS = ["north", "south", "west"]
TABLE = {
    "name": "csv",
    "path": "t.csv",
    "classes": ["well", "ill", "unknown"],
    "columns": ["age", "dose"],
    "statistics": {"mean": [50, 2], "deviation": [10, 0.5]},
    "test_fraction": 0,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of the machine that this is; nothing is loaded yet."""
    return at(tmp_path, monkeypatch)


def at(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes this machine the one that has `place` as its data folder."""
    place.mkdir(exist_ok=True)
    monkeypatch.setenv("FEDQ_DATA_DIR", str(place))
    dataset._loaded.clear()
    return place


def spec(data: dict[str, Any], **more: Any) -> JobSpec:
    base = {"name": "t", "model": {"name": "softmax"}, "rounds": {"count": 1}, "evaluate": {"every": 0}}
    return job_spec.parse({**base, "silos": SILOS, "data": data, **more})


def trained_on(job: JobSpec, silo: str) -> tuple[list[list[float]], list[str]]:
    """What a silo trains on at this machine: its features, and its labels by name."""
    found = dataset.load(job)
    assert isinstance(found, SharedOut)
    x, y = dataset.of_client(found, job, silo)
    return x.flatten(1).tolist(), [found.names[label] for label in y.tolist()]


def table(place: Path, rows: list[tuple[float, float, str]], columns: str = "age,dose,label") -> None:
    lines = [",".join(map(str, row)) for row in rows]
    (place / "t.csv").write_text("\n".join([columns, *lines]) + "\n")


# --- all of its file ----------------------------------------------------------------------------


def test_each_silo_trains_on_all_of_its_file_whichever_its_place_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on a third of it; a file may have any number of rows, fewer than there are silos too."""
    job = spec(TABLE)
    for silo, size in zip(SILOS, (40, 2, 7), strict=True):
        place = at(tmp_path / silo, monkeypatch)
        table(place, [(20 + row, 1, ("ill", "well")[row % 2]) for row in range(size)])
        x, labels = trained_on(job, silo)

        assert [round(50 + 10 * age) for age, _ in x] == [20 + row for row in range(size)]
        assert labels == [("ill", "well")[row % 2] for row in range(size)]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(2, 60), test=st.sampled_from([0, 0.2, 0.5]), local=st.sampled_from([0, 0.2, 0.5]))
def test_what_a_silo_trains_on_and_what_it_holds_out_are_its_file(
    tmp_path: Path, size: int, test: float, local: float
) -> None:
    """Each row once: trained on, held out for the server's evaluation, or for its own."""
    table(tmp_path, [(row, 1, ("ill", "well")[row % 2]) for row in range(size)])
    dataset._loaded.clear()
    dataset._sources.clear()
    job = spec({**TABLE, "test_fraction": test, "local_test": local, "scale": False, "statistics": None})
    found = dataset.load(job)
    parts = [dataset.of_client(found, job, "south"), dataset.held_by(found, job, "south"), dataset.of_test(found)]
    rows = [round(float(x[0])) for part in parts if part is not None for x in part[0]]

    assert sorted(rows) == list(range(size))
    assert (parts[2] is None) == (round(test * size) == 0)


def test_a_data_set_that_comes_with_no_file_is_shared_out_by_place_as_before() -> None:
    """What `fedq compose` starts silos for."""
    job = spec({"name": "digits", "test_fraction": 0.2})
    sizes = [len(dataset.of_client(dataset.load(job), job, silo)[1]) for silo in SILOS]

    assert sum(sizes) == 1438
    assert max(sizes) - min(sizes) <= 1


# --- labels -------------------------------------------------------------------------------------


def test_labels_are_numbered_as_the_job_declares_them_whatever_a_silo_has(folder: Path) -> None:
    """A silo that lacks some, or has them in another order, numbers the rest as all others do."""
    table(folder, [(1, 1, "unknown"), (2, 1, " well "), (3, 1, "unknown")])
    found = dataset.load(spec(TABLE))

    assert (found.classes, dataset.of_client(found, spec(TABLE), "west")[1].tolist()) == (3, [2, 0, 2])


def test_letters_that_look_the_same_are_the_same(folder: Path) -> None:
    """A keyboard composes an umlaut, and a Mac's files may not."""
    (folder / "t.csv").write_text("a\u0308ge,dose,label\n1,1,ho\u0308her\n")
    job = spec({**TABLE, "columns": ["\u00e4ge", "dose"], "classes": ["h\u00f6her", "x"]})

    assert dataset.of_client(dataset.load(job), job, "north")[1].tolist() == [0]


def test_a_label_that_is_spelled_differently_is_refused_with_what_differs(folder: Path) -> None:
    """In place of shifting the numbers of all others."""
    table(folder, [(1, 1, "ill"), (2, 1, "Well"), (3, 1, "Well"), (4, 1, "sane")])
    with pytest.raises(BadInput) as refused:
        dataset.load(spec(TABLE))

    assert str(refused.value) == (
        f"{folder}/t.csv has labels that data.classes does not declare: 'Well', 'sane'; "
        "declared: 'well', 'ill', 'unknown'; one of them differs in capitals or blanks alone; "
        "spell them as there, or declare them"
    )


def test_a_column_that_holds_no_labels_is_not_told_by_its_values(folder: Path) -> None:
    """A job may name any column, and what is refused is told to whoever gave it."""
    table(folder, [(row, 1, f"patient {row}") for row in range(40)])
    with pytest.raises(
        BadInput, match=r"has 40 labels that data.classes does not declare; is data.label the column of"
    ):
        dataset.load(spec(TABLE))


def test_whole_numbers_are_labels_as_they_stand_in_the_table(folder: Path) -> None:
    """YAML reads them as numbers, and a table has text."""
    table(folder, [(1, 1, "10"), (2, 1, "9")])
    job = spec({**TABLE, "classes": [9, 10]})

    assert dataset.of_client(dataset.load(job), job, "north")[1].tolist() == [1, 0]


def test_a_pool_may_declare_its_classes_too(folder: Path) -> None:
    """Then a class that no row has is one all the same, and the order is the job's."""
    table(folder, [(1, 1, "ill"), (2, 1, "well")])
    job = spec({**TABLE, "clients": 2}, silos=None, pool="cpu")
    found = dataset.load(job)

    assert found.classes == 3
    assert sorted(dataset.of_client(found, job, client)[1].item() for client in job.clients) == [0, 1]


def test_an_archive_has_as_many_classes_as_the_job_says(folder: Path) -> None:
    """A silo that lacks the last ones builds the same model as all others."""
    np.savez(folder / "t.npz", x=np.zeros((4, 2)), y=np.array([0, 2, 1, 0]))
    data = {"name": "npz", "path": "t.npz", "test_fraction": 0}

    assert dataset.load(spec({**data, "classes": 5})).classes == 5
    named = dataset.load(spec({**data, "classes": ["a", "b", "c"]}))
    assert isinstance(named, SharedOut)
    assert named.names == ("a", "b", "c")
    with pytest.raises(BadInput, match=r"t.npz has labels that data.classes does not declare: '2'; dec"):
        dataset.load(spec({**data, "classes": 2}))


def test_folders_of_images_are_the_classes_that_are_declared(folder: Path) -> None:
    """One may be missing or empty; one that is not declared, with images in it, is refused."""
    for name in ("dog", "cow"):
        (folder / "pets" / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "pets/dog/a.png")
    data = {"name": "images", "path": "pets", "size": 4, "test_fraction": 0, "classes": ["cat", "cow", "dog"]}
    job = spec(data)

    assert dataset.of_client(dataset.load(job), job, "north")[1].tolist() == [2]
    with pytest.raises(BadInput, match=r"pets has labels that data.classes does not declare: 'dog'"):
        dataset.load(spec({**data, "classes": ["cat", "cow"]}))


# --- columns and what they are scaled by --------------------------------------------------------


def test_columns_go_in_the_order_of_the_job_and_are_scaled_by_what_it_says(folder: Path) -> None:
    """Whatever their order in the file, whatever else it holds, and whatever its own mean is."""
    (folder / "t.csv").write_text("name,dose,label,age\nAda,3,ill,70\nBob,1,well,40\n")

    assert trained_on(spec(TABLE), "north") == ([[2, 2], [-1, -2]], ["ill", "well"])


def test_a_missing_column_is_named(folder: Path) -> None:
    """With those that are there: one may be spelled differently."""
    (folder / "t.csv").write_text("Age,dose,label\n1,3,ill\n")
    sentence = r"t.csv has no column age among its 3; one of them differs in capitals or blanks alone"
    with pytest.raises(BadInput, match=sentence):
        dataset.load(spec(TABLE))


def test_a_label_that_differs_in_blanks_alone_is_said_to(folder: Path) -> None:
    """In the sentence that people read, several blanks have become one."""
    (folder / "t.csv").write_text("age,dose,label\n1,3,not  ill\n1,3,well\n")
    with pytest.raises(BadInput, match="declared: 'not ill', 'well'; one of them differs in capitals or blanks alone;"):
        dataset.load(spec({**TABLE, "classes": ["not ill", "well"]}))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"columns": ["age", "label"]}, "columns are the features, and label is the column of labels"),
        ({"drop": ["name"]}, "columns names all features: leave drop out"),
        ({"scale": False}, "statistics are what features are scaled by, and scale is false: leave one of them out"),
        ({"columns": None}, "statistics are in the order of columns: give columns too"),
        ({"columns": ["age"]}, "statistics are of 2 features, and columns names 1"),
        ({"statistics": {"mean": [1], "deviation": [1, 1]}}, "data.statistics: mean has 1 numbers and deviation 2"),
        ({"statistics": {"mean": [1, 1], "deviation": [1, 0]}}, "deviation.1: 0 is not allowed"),
        ({"classes": ["ill"]}, "a job tells two classes apart, or more"),
        ({"classes": ["ill", "ill"]}, "ill is given twice"),
        ({"columns": ["age", "age"]}, "age is given twice"),
    ],
)
def test_what_does_not_fit_in_a_job_file_is_named(changed: dict[str, Any], sentence: str) -> None:
    """Before anything is sent to a silo."""
    with pytest.raises(BadInput, match=sentence):
        spec({**TABLE, **changed})


@pytest.mark.parametrize("classes", [1, 10_001])
def test_so_many_classes_there_cannot_be(classes: int) -> None:
    """One is nothing to tell apart."""
    with pytest.raises(BadInput, match="there are 2 to 10000 classes"):
        spec({"name": "npz", "path": "t.npz", "classes": classes})


# --- what all of them must look like ------------------------------------------------------------


def test_what_the_data_look_like_is_told(folder: Path) -> None:
    """A value v of the file is (v − offset) / scale to the model, by feature or channel."""
    table(folder, [(60, 3, "ill"), (40, 1, "well")])
    tabular = inputs_of(dataset.load(spec(TABLE)))
    assert tabular == Inputs(
        shape=(2,), classes=3, labels=("well", "ill", "unknown"), offset=(50.0, 2.0), scale=(10.0, 0.5)
    )
    digits = inputs_of(dataset.load(spec({"name": "digits"})))
    assert (digits.shape, digits.classes, digits.offset, digits.scale) == ((1, 8, 8), 10, None, (16.0,))
    own = inputs_of(Own(4))
    assert own == Inputs(shape=(4,), classes=2)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_pixels_that_are_normalised_are_told_by_channel(name: str) -> None:
    """The same numbers that are used: raw bytes through them are what the model sees."""
    known = library.TORCHVISION_SETS[name]
    prepare = normalised(known.mean, known.deviation)
    raw = np.arange(4 * len(known.mean) * 9, dtype=np.uint8).reshape(4, len(known.mean), 3, 3)
    assert prepare.offset is not None
    assert prepare.scale is not None
    offset, scale = (np.reshape(values, (1, -1, 1, 1)) for values in (prepare.offset, prepare.scale))

    assert np.allclose(prepare(raw), (raw - offset) / scale, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    features=st.sampled_from([1, 1000, 1024, 1025, 4000]), labels=st.lists(st.text("äx", min_size=150, max_size=200))
)
def test_an_event_holds_what_the_data_look_like_however_much_that_is(features: int, labels: list[str]) -> None:
    """Long lists are left out, and told to be none."""
    names = tuple(f"{number}{label}" for number, label in enumerate(["a", "b", *labels] * 30))
    numbers = tuple(number / 7 for number in range(features))
    source = StoredExamples(
        x=np.zeros((4, features), np.float32),
        y=np.zeros(4, np.int64),
        shape=(features,),
        names=names,
        prepare=replace(as_floats, offset=numbers, scale=numbers),
    )
    found = inputs_of(SharedOut(spec(TABLE).data, 1, 0, source, whole=True))  # type: ignore[arg-type]
    update = ModelUpdate(
        job="t-abc234", round=0, attempt=1, client="n", trainer="t", base=None, update=None, examples=1, inputs=found
    )

    assert decode("model-update", encode(update)) == update
    assert (found.scale is None) == (features > 1024)
    assert found.classes == len(names)


@pytest.mark.parametrize(
    ("first", "difference"),
    [
        ({"shape": (3,)}, r"shape \[2\] in place of \[3\]"),
        ({"labels": ("ill", "well", "unknown")}, r"labels \['well', 'ill', 'unknown'\] in place of \['ill', "),
        (
            {"scale": None, "offset": None},
            r"offset \[50.0, 2.0\] in place of none; scale \[10.0, 0.5\] in place of none",
        ),
        ({"classes": 4}, "classes 3 in place of 4"),
    ],
)
def test_data_that_are_not_like_the_first_are_refused(folder: Path, first: dict[str, Any], difference: str) -> None:
    """With what differs: the update would be of another model, or of other numbers."""
    table(folder, [(1, 1, "ill")])
    data = dataset.load(spec(TABLE))

    refuse_others(data, inputs_of(data), "north-1")
    with pytest.raises(BadInput, match=f"trainer north-1 are not like those that the job began with: {difference}"):
        refuse_others(data, inputs_of(data).model_copy(update=first), "north-1")


class Own:
    """Data of the user's own, as far as this is about them."""

    classes = 2

    def __init__(self, features: int) -> None:
        self.shape = (features,)

    def client(self, _name: str, _index: int) -> tuple[Any, Any]:
        return np.zeros((2, *self.shape)), np.array([0, 1])

    def test(self) -> None:
        return None


def test_owners_that_no_client_stands_for_are_told_in_the_trainers_log(folder: Path) -> None:
    """A pool of fewer clients than owners leaves their examples out, and not in silence."""
    rows = "".join(f"{3 * row},{row % 7},{'abcde'[row % 5]},{row % 2}\n" for row in range(20))
    (folder / "t.csv").write_text("age,dose,ward,label\n" + rows)
    natural = {"name": "natural", "key": "ward"}
    pool = {"name": "csv", "path": "t.csv", "clients": 3, "partition": natural, "test_fraction": 0}
    with capture_logs() as lines:
        found = dataset.load(spec(pool, silos=None, pool="cpu"))

    assert [line for line in lines if line["event"] == "owners left out"] == [
        {"event": "owners left out", "log_level": "warning", "owners": 5, "unused": 2, "first": "d"}
    ]
    assert isinstance(found, SharedOut)
    assert found.owners == ("a", "b", "c", "d", "e")
