"""Archives of NumPy and the files of LEAF and MNIST, as other programs write them and as disks leave them."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.trainer.data import arrays, leaf, library
from services.trainer.data.source import StoredExamples
from shared.errors import BadInput
from shared.job.catalog.data import Npz
from tests.datasets import idx, leaf_file, mnist_files, write, writer

X = np.arange(24).reshape(4, 3, 2)
Y = np.array([0, 1, 2, 1])


def read(folder: Path, key: str | None = None, **given_arrays: Any) -> StoredExamples:
    np.savez(folder / "t.npz", **given_arrays)
    return arrays.read(folder / "t.npz", Npz(path="t.npz"), key)


# --- archives -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "<i2", ">i2", ">u4", "<i8", ">u8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]
)
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda x: x[::-1, ::-1]])
def test_numbers_of_any_type_and_layout_are_themselves(tmp_path: Path, dtype: str, layout: Any) -> None:
    """What another machine or program wrote is no other number."""
    x = layout(X.astype(dtype))
    source = read(tmp_path, x=x, y=Y)
    found, labels = source.examples(np.arange(4))

    assert np.array_equal(found, x.astype(np.float32))
    assert (found.dtype, found.flags.c_contiguous, source.x.dtype.isnative) == (np.float32, True, True)
    assert source.x.itemsize <= 4
    assert labels.tolist() == Y.tolist()


@pytest.mark.parametrize("y", [Y[:, None].astype(np.uint8), Y.astype(">i8"), Y[::-1][::-1]])
def test_labels_in_a_column_are_labels(tmp_path: Path, y: np.ndarray) -> None:
    """So are those of MedMNIST's archives."""
    assert read(tmp_path, x=X, y=y).y.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("owners", [np.array(["b", "a"] * 2), np.array([b"b", b"a"] * 2), np.array([["b"], ["a"]] * 2)])
def test_owners_are_words_whatever_they_are_kept_as(tmp_path: Path, owners: np.ndarray) -> None:
    """Bytes are what older programs make of words."""
    assert (read(tmp_path, "site", x=X, y=Y, site=owners).owners == np.array(["b", "a"] * 2)).all()


def _with(value: float, dtype: str = "f8") -> np.ndarray:
    x = X.astype(dtype)
    x[2, 1, 0] = value
    return x


@pytest.mark.parametrize(
    ("given_arrays", "sentence"),
    [
        ({"x": _with(np.nan)}, r"t.npz: x is an array with 1 value that is NaN, .* first at \[2, 1, 0\]"),
        ({"x": _with(np.inf, "f4")}, r"x is an array with 1 value that is NaN, infinite"),
        ({"x": _with(np.nan, "f2")}, r"x is an array with 1 value that is NaN"),
        ({"x": _with(1e39)}, r"x is an array with 1 value that is NaN, infinite or beyond float32"),
        ({"x": X[:, 0, 0]}, r"x has shape \[4\] and int64; it is numbers \(n, …\): give x\[:, None\]"),
        ({"x": X[:, :0]}, r"x has shape \[4, 0, 2\]"),
        ({"x": X + 1j}, r"x has shape \[4, 3, 2\] and complex128"),
        ({"y": np.eye(4)}, r"y is an array of shape \[4, 4\] and float64; .* give y.argmax\(1\)"),
        (
            {"y": np.array([0, 1, 2, 10**9])},
            "y has labels up to 1000000000 for 4 examples; number the classes from 0 without gaps",
        ),
        ({"site": np.array(["a", " ", "b", ""])}, r"site names no owner at \[1\] \(2 such places\)"),
        ({"site": np.array([0.5, 1, 2, np.nan])}, r"site has shape \[4\] and float64; it is one owner"),
        (
            {"site": np.array(["a"])},
            r"site has shape \[1\] and <U1; it is one owner, a whole number or a word, for each",
        ),
        ({"y": np.array([{}] * 4)}, "y holds objects, which would have to be unpickled; save numbers or words"),
    ],
)
def test_what_is_wrong_in_an_archive_is_named(tmp_path: Path, given_arrays: dict[str, Any], sentence: str) -> None:
    """The array, the place, and what it should be."""
    with pytest.raises(BadInput, match=sentence):
        read(tmp_path, "site", **{"x": X, "y": Y, "site": Y, **given_arrays})


def test_any_zip_is_read_or_refused_without_a_word_of_it(tmp_path: Path) -> None:
    """A job may name any file of a silo's folder."""
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("hunter2secret.txt", "hunter2secret")
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00hunter2secret\n  ")
        archive.writestr("y", "hunter2secret")
    for x, y in (("x", "z"), ("x", "y"), ("y", "y")):
        with pytest.raises(BadInput) as caught:
            arrays.read(tmp_path / "t.npz", Npz(path="t.npz", x=x, y=y), None)
        assert "hunter2secret" not in str(caught.value)
    (tmp_path / "t.npz").unlink()
    (tmp_path / "t.npz").mkdir()
    with pytest.raises(BadInput, match=r"t.npz is no file"):
        arrays.read(tmp_path / "t.npz", Npz(path="t.npz"), None)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.data())
def test_a_damaged_archive_is_read_or_refused(tmp_path: Path, is_compressed: bool, data: st.DataObject) -> None:
    """Whatever bytes are wrong in it, or missing at its end."""
    buffer = io.BytesIO()
    (np.savez_compressed if is_compressed else np.savez)(buffer, x=X.astype(np.float32), y=Y)
    content = bytearray(buffer.getvalue())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "t.npz"
    file.write_bytes(content)
    source, sentence = None, ""
    try:
        source = arrays.read(file, Npz(path="t.npz"), None)
    except BadInput as refused:
        sentence = str(refused)

    assert sentence.startswith(str(file)) or source is not None
    assert source is None or np.isfinite(source.examples(np.arange(len(source.y)))[0]).all()


# --- LEAF and MNIST -----------------------------------------------------------------------------


def test_hidden_files_are_none_of_leafs(tmp_path: Path) -> None:
    """macOS leaves one beside each file of an archive."""
    write(tmp_path, {"train/a.json": leaf_file({"f1": writer(4, 1)}), "train/._a.json": b"\0\5\x16\7"})

    assert len(leaf.femnist(tmp_path).y) == 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (leaf_file({"hunter2secret": ([["hunter2secret"] * 784], [1])}), "LEAF's: user 1: ValueError"),
        (leaf_file({"hunter2secret": ([[0.5] * 784], ["hunter2secret"])}), "y are whole numbers"),
        (leaf_file({"hunter2secret": ([[float("nan")] * 784], [1])}), "pixels are numbers from 0 to 1"),
        (leaf_file({"hunter2secret": ([[0.5] * 784, [0.5]], [1, 1])}), "x are images of 784 numbers each"),
        (b'{"users": ["hunter2secret"], "user_data": {}}', "LEAF's: user_data lacks user 1 of users"),
        (b'{"users": ["hunter2secret"], "user_data": []}', "LEAF's: user_data lacks user 1 of users"),
        (b"[" * 100_000, "is no file of LEAF's: RecursionError"),
        (b"hunter2secret", "is no file of LEAF's: it is no JSON, or it is cut off"),
        (b'\xff"hunter2secret"', "is no file of LEAF's: it is no JSON, or it is cut off"),
    ],
)
def test_a_file_that_is_none_of_leafs_is_refused_without_a_word_of_it(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    """It may be any file of a silo's folder."""
    write(tmp_path, {"all_data.json": content})
    with pytest.raises(BadInput, match=sentence) as caught:
        leaf.femnist(tmp_path)
    assert "hunter2secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("train-labels-idx1-ubyte", idx(np.arange(40)), "a label 39 of 10 classes"),
        (
            "t10k-images-idx3-ubyte",
            idx(np.zeros((10, 14, 14))),
            r"images of \[1, 28, 28\] to train on and of \[1, 14, 14\]",
        ),
        ("t10k-labels-idx1-ubyte", idx(np.zeros((10, 1))), "damaged"),
        ("train-images-idx3-ubyte", idx(np.zeros((40, 28, 28)))[:-1], "damaged"),
        ("train-images-idx3-ubyte", idx(np.zeros((0, 28, 28))), "damaged"),
    ],
)
def test_parts_that_are_not_of_one_data_set_are_refused(
    tmp_path: Path, file: str, content: bytes, sentence: str
) -> None:
    """A file of another data set under the name of one of MNIST's."""
    write(tmp_path, {**mnist_files("MNIST"), f"MNIST/raw/{file}": content})
    with pytest.raises(BadInput, match=sentence):
        library.read_torchvision("mnist", tmp_path, False)
