"""The data that clients train on: how the catalog's are found and shared out, and what the user's own must be."""

import gzip
import hashlib
import json
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from services.trainer.data import dataset, leaf, library, split
from services.trainer.data.own import OwnData
from services.trainer.data.sharing import SharedOut, held_out
from shared.errors import BadInput
from shared.job import job_spec
from shared.job.job_spec import JobSpec
from tests.datasets import idx, leaf_file, mnist_files, write, writer


def spec(data: dict[str, Any], **more: Any) -> JobSpec:
    where = {} if "silos" in more else {"pool": "cpu"}
    rest = {"rounds": {"count": 1}, "evaluate": {"every": 0}}
    return job_spec.parse({"name": "t", "model": {"name": "softmax"}, "data": data, **rest, **where, **more})


def loaded(data: dict[str, Any], **more: Any) -> SharedOut:
    found = dataset.load(spec({"clients": 2, **data}, **more))
    assert isinstance(found, SharedOut)
    return found


def everything(data: SharedOut, clients: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The training examples of all clients."""
    parts = [data.client("", index) for index in range(clients)]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow: Callable[..., None]) -> Path:
    """The folder below which data sets are looked for; nothing is loaded yet. The user's own may come from here."""
    allow("own_data.", "nowhere.", "json.", f"{__name__}.")
    monkeypatch.setenv("FEDQ_DATA_DIR", str(tmp_path))
    dataset._loaded.clear()
    return tmp_path


# --- digits, and how any data set is loaded and shared out --------------------------------------


def test_digits_are_those_of_scikit_learn() -> None:
    """We read the file that sklearn reads, without sklearn."""
    wanted = load_digits()
    digits = loaded({"name": "digits", "clients": 1, "test_fraction": 0})
    x, y = digits.client("client-0", 0)

    assert np.array_equal(x, (wanted.images[:, None] / 16).astype(np.float32))
    assert np.array_equal(y, wanted.target)
    assert (x.dtype, y.dtype, x.shape[1:]) == (np.float32, np.int64, digits.shape)
    assert digits.test() is None


def test_silos_take_the_shares_of_a_pool_in_the_order_of_their_names_in_the_file() -> None:
    """The first silo has what client 0 of as many would have: whoever starts a silo again starts the same one."""
    data = {"name": "digits", "partition": {"name": "dirichlet", "alpha": 0.5}}
    silos = spec(data, silos=["slow-1", "fast-1", "fast-2"], seed=3)
    pool = spec({**data, "clients": 3}, seed=3)

    for place, silo in enumerate(("slow-1", "fast-1", "fast-2")):
        own, of_pool = (
            dataset.of_client(dataset.load(job), job, name) for job, name in ((silos, silo), (pool, f"client-{place}"))
        )
        assert torch.equal(own[0], of_pool[0])
        assert torch.equal(own[1], of_pool[1])
    more = spec(data, silos=["slow-1", "fast-1", "fast-2", "fast-3"], seed=3)
    assert len(dataset.of_client(dataset.load(more), more, "slow-1")[1]) != len(
        dataset.of_client(dataset.load(silos), silos, "slow-1")[1]
    )


def test_the_test_set_is_held_out_and_does_not_depend_on_the_partition() -> None:
    """No client trains on what the model is judged by."""
    one = loaded({"name": "digits", "clients": 4}, seed=3)
    other = loaded({"name": "digits", "clients": 10, "partition": {"name": "dirichlet", "alpha": 0.5}}, seed=3)
    x, y = one.test() or pytest.fail("no test set")

    assert len(y) == round(0.2 * 1797)
    assert sum(len(one.client("c", index)[1]) for index in range(4)) == 1797 - len(y)
    assert np.array_equal(x, (other.test() or (None,))[0])


def test_what_is_held_out_is_a_part_of_each_owner_who_keeps_one_at_least() -> None:
    """Else a natural share might be gone before it is given."""
    owners = np.repeat(["a", "b", "c", "d"], [100, 10, 2, 1])
    test, training = held_out(113, owners, 0.6, seed=1)

    assert sorted([*test, *training]) == list(range(113))
    assert [int((owners[test] == owner).sum()) for owner in "abcd"] == [60, 6, 1, 0]


def test_a_data_set_is_loaded_once() -> None:
    """Rounds after the first pay nothing for it; another seed is another data set."""
    job = spec({"name": "digits", "clients": 5})

    assert dataset.load(job) is dataset.load(job)
    assert dataset.load(job) is not dataset.load(job.model_copy(update={"seed": 1}))


def test_jobs_that_share_data_out_otherwise_have_its_arrays_in_common() -> None:
    """Memory holds them once, and no longer than a job does."""
    one = loaded({"name": "digits", "clients": 5, "partition": {"name": "shards"}}, seed=1)
    other = loaded({"name": "digits", "clients": 9, "test_fraction": 0.5, "local_test": 0.1}, seed=2)

    assert one is not other
    assert one.source is other.source
    for seed in range(3, 10):
        loaded({"name": "digits"}, seed=seed)
    assert len(dataset._loaded) == dataset.KEPT
    assert len(dataset._sources) == 1


def test_two_thousand_clients_may_draw_from_the_same_digits() -> None:
    """There are not enough for shares, and each client has its number of them all the same."""
    data = {"name": "digits", "clients": 2000, "partition": {"name": "iid", "size": 20}}
    job = spec(data)
    found = dataset.load(job)

    assert len(dataset.of_client(found, job, "client-1999")[1]) == 20
    with pytest.raises(BadInput, match=r"data.clients is 2000, but there are 1438 examples"):
        dataset.load(spec({**data, "partition": {"name": "iid"}}))


def test_clients_are_found_by_name() -> None:
    """A pool's by their number, silos by their place in the job file."""
    pool = spec({"name": "digits", "clients": 20})
    silos = spec({"name": "own_data:make"}, silos=["north", "south-1"])

    assert [dataset.index_of(pool, name) for name in pool.clients] == list(range(20))
    assert dataset.index_of(silos, "south-1") == 1
    for job, name in ((pool, "client-20"), (pool, "north"), (silos, "client-0")):
        with pytest.raises(BadInput, match=f"{name} is none of the job's"):
            dataset.index_of(job, name)


def test_a_client_holds_out_the_same_part_whenever_it_is_asked() -> None:
    """What it trains on and what it is judged by are disjoint, and together all that it has."""
    job = spec({"name": "digits", "clients": 10, "local_test": 0.25})
    whole = spec({"name": "digits", "clients": 10})
    found = dataset.load(job)
    x, y = dataset.of_client(found, job, "client-3")
    held = dataset.held_by(found, job, "client-3") or pytest.fail("nothing held out")
    all_x, all_y = dataset.of_client(dataset.load(whole), whole, "client-3")

    assert len(held[1]) == round(0.25 * len(all_y))
    rows = [tuple(row.flatten().tolist()) for row in torch.cat([x, held[0]])]
    assert sorted(rows) == sorted(tuple(row.flatten().tolist()) for row in all_x)
    dataset._loaded.clear()
    assert torch.equal(held[0], (dataset.held_by(dataset.load(job), job, "client-3") or (None,))[0])
    assert dataset.held_by(dataset.load(whole), whole, "client-3") is None
    assert len(y) + len(held[1]) == len(all_y)


@pytest.mark.parametrize(
    ("fraction", "size", "held"), [(0.01, 2, 1), (0.99, 2, 1), (0.5, 1, 0), (0.2, 10, 2), (0.99, 10, 9)]
)
def test_at_least_one_example_is_held_out_and_one_is_left(
    module: types.ModuleType, fraction: float, size: int, held: int
) -> None:
    """A client of one example has nothing to hold out."""
    module.make = lambda: Own(np.zeros((size, 2)), np.zeros(size, np.int64))  # type: ignore[attr-defined]
    job = spec({"name": "own_data:make", "clients": 1, "local_test": fraction})
    found = dataset.load(job)
    part = dataset.held_by(found, job, "client-0")

    assert (0 if part is None else len(part[1])) == held
    assert len(dataset.of_client(found, job, "client-0")[1]) == size - held


def test_a_slot_that_trains_digits_imports_no_torchvision() -> None:
    """It would cost a second and 160 MB in each; torch is a stand-in here, to save the time."""
    script = (
        "import sys, types; torch = types.ModuleType('torch'); torch.Tensor = object; sys.modules['torch'] = torch;"
        "from services.trainer.data import dataset, library; library.read_digits();"
        "print(*({'torchvision', 'PIL', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == ""


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"name": "mnist", "download": False}, "mnist/MNIST/raw/train-images-idx3-ubyte"),
        ({"name": "cifar100", "download": False, "folder": "tv"}, "tv/cifar-100-python/train"),
        ({"name": "femnist"}, "femnist"),
        ({"name": "shakespeare", "folder": "plays"}, "plays"),
        ({"name": "csv", "path": "a/b.csv"}, "a/b.csv"),
        ({"name": "npz", "path": "c.npz"}, "c.npz"),
        ({"name": "images", "path": "photos"}, "photos"),
    ],
)
def test_data_that_are_not_there_are_named_with_where_they_were_looked_for(
    folder: Path, data: dict[str, Any], path: str
) -> None:
    """One sentence, by which a person knows what to put where."""
    with pytest.raises(BadInput) as caught:
        loaded(data)

    assert str(caught.value).startswith(f"data.name is {data['name']}: this trainer has no {folder / path};")
    assert "\n" not in str(caught.value)


# --- MNIST and CIFAR ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_is_read_from_its_files_and_normalised(folder: Path, name: str, kind: str) -> None:
    """Kept as bytes, and made floats of mean 0 and deviation 1 (of the real data) for each client."""
    files = mnist_files(kind)
    write(folder / name, files)
    found = loaded({"name": name, "clients": 1})
    x, y = found.client("", 0)
    test_x, test_y = found.test() or pytest.fail("no test set")
    raw = np.frombuffer(files[f"{kind}/raw/train-images-idx3-ubyte"][16:], np.uint8).reshape(-1, 1, 28, 28)

    assert (found.shape, found.classes, len(found.names)) == ((1, 28, 28), 10, 10)
    known = library.TORCHVISION_SETS[name]
    assert np.allclose(x * known.deviation[0] + known.mean[0], raw / 255, atol=1e-6)
    assert (x.dtype, found.source.x.dtype, y.tolist()) == (np.float32, np.uint8, [i % 10 for i in range(40)])
    assert (test_x.shape, test_y.tolist()) == ((10, 1, 28, 28), list(range(10)))


def test_a_fraction_of_the_training_examples_is_drawn_once_for_all(folder: Path) -> None:
    """Clients share that out, and the test set stays whole."""
    write(folder / "mnist", mnist_files("MNIST"))
    found = loaded({"name": "mnist", "fraction": 0.5, "clients": 4})

    assert sum(len(found.labels(index)) for index in range(4)) == 20
    assert len(found.test_labels() if found.test_labels() is not None else []) == 10


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train-images-idx3-ubyte", idx(np.zeros((40, 28, 28)))[:5000]),
        ("train-images-idx3-ubyte", b"<html>"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(9))),
        ("t10k-labels-idx1-ubyte", b""),
    ],
)
def test_damaged_files_are_refused_with_their_folder(folder: Path, file: str, content: bytes) -> None:
    """A download that was cut off, or a page of an error saved as if it were data."""
    write(folder / "mnist", mnist_files("MNIST"))
    (folder / "mnist/MNIST/raw" / file).write_bytes(content)
    with pytest.raises(BadInput, match=rf"data.name is mnist: {folder}/mnist/MNIST/raw is damaged \(.+\), delete it"):
        loaded({"name": "mnist", "download": False})


def cifar_files(name: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """CIFAR's files with a few images in them, and their sums by name."""
    rng = np.random.default_rng(1)

    def batch(size: int, key: str) -> bytes:
        pixels = rng.integers(0, 256, (size, 3072)).astype(np.uint8)
        return pickle.dumps({"data": pixels, key: [place % 10 for place in range(size)]}, protocol=2)

    if name == "cifar10":
        files = {f"data_batch_{number}": batch(8, "labels") for number in range(1, 6)}
        files |= {"test_batch": batch(6, "labels")}
        files["batches.meta"] = pickle.dumps({"label_names": [f"class {number}" for number in range(10)]}, protocol=2)
    else:
        files = {"train": batch(40, "fine_labels"), "test": batch(6, "fine_labels")}
        files["meta"] = pickle.dumps({"fine_label_names": [f"class {number}" for number in range(100)]}, protocol=2)
    return files, {file: hashlib.md5(content, usedforsecurity=False).hexdigest() for file, content in files.items()}


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A small CIFAR whose sums torchvision takes for the right ones: its name and its folder."""
    from torchvision import datasets  # noqa: PLC0415 - two tests pay for it

    name: str = request.param
    files, sums = cifar_files(name)
    kind = getattr(datasets, name.upper())
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(kind, which, [[file, sums[file]] for file, _ in getattr(kind, which)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    write(folder / name / kind.base_folder, files)
    return name, folder / name / kind.base_folder


def test_cifar_is_read_from_its_files_and_normalised_by_channel(cifar: tuple[str, Path]) -> None:
    """Red, green and blue, each of 32×32 pixels, in the order of the file."""
    name, place = cifar
    found = loaded({"name": name, "clients": 1, "download": False})
    x, y = found.client("", 0)
    first = place / ("data_batch_1" if name == "cifar10" else "train")
    raw = pickle.loads(first.read_bytes())["data"].reshape(-1, 3, 32, 32)  # noqa: S301 - written above

    assert (found.shape, found.classes, found.names[7]) == ((3, 32, 32), int(name[5:]), "class 7")
    known = library.TORCHVISION_SETS[name]
    mean, deviation = (np.array(values).reshape(3, 1, 1) for values in (known.mean, known.deviation))
    assert np.allclose(x[: len(raw)] * deviation + mean, raw / 255, atol=1e-6)
    assert len(y) == 40
    assert len((found.test() or pytest.fail("no test set"))[1]) == 6


def test_a_cifar_with_another_sum_is_never_unpickled(cifar: tuple[str, Path], tmp_path: Path) -> None:
    """A pickle may run anything, so the sum is looked at first."""
    name, place = cifar
    victim = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (victim,)

    (place / ("test_batch" if name == "cifar10" else "test")).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadInput, match="is damaged"):
        loaded({"name": name, "download": False})
    assert not victim.exists()


# --- downloads ----------------------------------------------------------------------------------


def test_archives_that_are_there_are_unpacked_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no network copies torchvision's files: what is missing is made of them."""
    from torchvision.datasets import MNIST  # noqa: PLC0415

    archives = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files("MNIST").items()}
    sums = {Path(name).name: hashlib.md5(content).hexdigest() for name, content in archives.items()}  # noqa: S324
    monkeypatch.setattr(MNIST, "resources", [(file, sums[file]) for file, _ in MNIST.resources])
    monkeypatch.setattr(library.socket, "setdefaulttimeout", lambda _seconds: None)  # it is this process's here
    write(folder / "mnist", archives)

    def fetch(kind: str, where: Path) -> str:
        library.main(kind, where)
        return ""

    found = library.read_torchvision("mnist", folder / "mnist", True, fetch)
    assert len(found.y) == 40


def test_what_prevents_a_download_is_told_with_where_the_data_belong(folder: Path) -> None:
    """The sentence of data that are not there, and why."""
    with pytest.raises(BadInput) as caught:
        library.read_torchvision("mnist", folder, True, lambda _kind, _folder: "no route to host")

    assert (
        f"has no {folder}/MNIST/raw/train-images-idx3-ubyte; it could not be downloaded: no route to host; put"
        in str(caught.value)
    )


def test_a_download_ends_at_its_time_and_tells_the_last_line(folder: Path) -> None:
    """Nobody waits for ever, and what a process says is its last line."""
    python = (sys.executable, "-c")
    hangs = (*python, "import time; time.sleep(60)")
    fails = (*python, "raise SystemExit('first\\nno route to host')")

    assert library.fetch("MNIST", folder, hangs, 0.3) == "not done after 0.3 s"
    assert library.fetch("MNIST", folder, fails, 30) == "no route to host"
    assert library.fetch("MNIST", folder, (*python, "raise SystemExit(3)"), 30) == "its process ended with 3"
    assert library.fetch("MNIST", folder, (*python, "pass"), 30) == ""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("<urlopen error [Errno -2] Name or service not known>", "Name or service not known"),
        ("Error downloading x:\nTried http://a, got:\n<urlopen error timed out>\n", "timed out"),
        ("HTTP Error 403: Forbidden", "HTTP Error 403: Forbidden"),
        ("[Errno 13] Permission denied: '/data'", "Permission denied: '/data'"),
        ("", "RuntimeError"),
    ],
)
def test_the_reason_is_a_few_words(said: str, words: str) -> None:
    """Of urllib's brackets and torchvision's lines."""
    assert library._reason(RuntimeError(said)) == words


# --- LEAF ---------------------------------------------------------------------------------------


def test_femnist_goes_to_its_writers(folder: Path) -> None:
    """Each client is one of them, in the order of their names; pixels come back as they were."""
    writers = {"f02": writer(10, 2), "f01": writer(20, 1), "f03": writer(5, 61)}
    write(folder, {"femnist/all_data_0.json": leaf_file({"f02": writers["f02"]})})
    write(folder, {"femnist/all_data_1.json": leaf_file({name: writers[name] for name in ("f01", "f03")})})
    found = loaded({"name": "femnist", "clients": 3, "test_fraction": 0.2})

    assert (found.shape, found.classes, found.names[10], found.names[61]) == ((1, 28, 28), 62, "A", "z")
    assert [found.labels(index).tolist() for index in range(3)] == [[1] * 16, [2] * 8, [61] * 4]
    whole = loaded({"name": "femnist", "clients": 3, "test_fraction": 0})
    x, _ = whole.client("", 1)
    assert np.allclose(x.reshape(-1, 784), writers["f02"][0], atol=1e-7)
    assert whole.source.x.dtype == np.uint8
    with pytest.raises(BadInput, match=r"data.clients is 4, but the examples are of 3 owners"):
        loaded({"name": "femnist", "clients": 4})


def test_leafs_own_test_set_is_the_test_set(folder: Path) -> None:
    """Where its script has split the data, nothing more is held out."""
    write(folder, {"femnist/train/a.json": leaf_file({"f1": writer(10, 1)})})
    write(folder, {"femnist/test/a.json": leaf_file({"f1": writer(3, 1)})})
    found = loaded({"name": "femnist", "clients": 1, "test_fraction": 0.5})

    assert len(found.client("", 0)[1]) == 10
    assert len((found.test() or pytest.fail("no test set"))[1]) == 3


def test_shakespeare_is_characters_and_the_one_that_follows(folder: Path) -> None:
    """By LEAF's vocabulary of 80; a character that it lacks is taken for a space."""
    text = "To be, or not to be: that is the question; whether 'tis nobler in the mind to su"
    role = ([text, text[:79] + "é"], ["f", "\n"])
    write(folder, {"shakespeare/train/a.json": leaf_file({"HAMLET": role})})
    found = loaded({"name": "shakespeare", "clients": 1, "test_fraction": 0})
    x, y = found.client("", 0)

    assert len(leaf.VOCABULARY) == len(set(leaf.VOCABULARY)) == found.classes == 80
    assert (found.shape, x.dtype, x.shape) == ((80,), np.float32, (2, 80))
    assert "".join(leaf.VOCABULARY[int(token)] for token in x[0]) == text
    assert "".join(leaf.VOCABULARY[int(token)] for token in x[1]) == text[:79] + " "
    assert [leaf.VOCABULARY[token] for token in y] == ["f", "\n"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("femnist", b"not json", "is no file of LEAF's: it is no JSON, or it is cut off"),
        ("femnist", b"[]", "is no file of LEAF's: it is an object of users and user_data"),
        ("femnist", b'{"users": ["a"], "user_data": {}}', "is no file of LEAF's: user_data lacks user 1 of users$"),
        ("femnist", leaf_file({"a": ([[0.5] * 783], [1])}), "LEAF's: user 1: x are images of 784 numbers each"),
        ("femnist", leaf_file({"a": ([[0.5] * 784], [1, 2])}), "user 1: 1 x and 2 y"),
        ("femnist", leaf_file({"a": ([[2.0] * 784], [1])}), "pixels are numbers from 0 to 1"),
        ("femnist", leaf_file({"a": ([[0.5] * 784], [1.5])}), "y are whole numbers"),
        ("femnist", leaf_file({"a": ([[0.5] * 784], [62])}), "labels from 62 to 62; there are 62 classes"),
        ("femnist", leaf_file({"a": ([], [])}), "have no examples in them"),
        ("femnist", leaf_file({}), "have no examples in them"),
        ("shakespeare", leaf_file({"a": (["too short"], ["x"])}), "x are strings of 80 characters and y of one"),
        ("shakespeare", leaf_file({"a": (["x" * 80], ["xy"])}), "x are strings of 80 characters and y of one"),
        ("shakespeare", leaf_file({"a": ([[1] * 80], ["x"])}), "user 1: x and y are strings"),
        ("femnist", b'{"users": ["a", "a"], "user_data": {"a": 0}}', "users names user 2 twice"),
        (
            "femnist",
            b'{"users": ["a"], "user_data": {"a": 0, "b": 0}}',
            "user_data has 2 users, and users names 1 of them",
        ),
    ],
)
def test_a_file_that_is_none_of_leafs_is_named(folder: Path, name: str, content: bytes, sentence: str) -> None:
    """With what is wrong in it."""
    write(folder, {f"{name}/all_data.json": content})
    with pytest.raises(BadInput, match=sentence):
        loaded({"name": name, "clients": 1})


def test_a_user_in_two_of_leafs_files_is_named(folder: Path) -> None:
    """Files of an earlier run lie there yet: examples would count twice, and be in the test set too."""
    file = leaf_file({"a": ([[0.5] * 784], [1])})
    write(folder, {"femnist/all_data_1.json": file, "femnist/all_data_2.json": file})
    with pytest.raises(BadInput, match=r"all_data_2.json is no file of LEAF's: user 1 is in all_data_1.json too"):
        loaded({"name": "femnist", "clients": 1})


def test_a_folder_without_leafs_files_is_named(folder: Path) -> None:
    """A common mistake: the folder above."""
    (folder / "femnist").mkdir()
    with pytest.raises(BadInput, match=rf"{folder}/femnist holds none of LEAF's files: train/\*.json, or all_data"):
        loaded({"name": "femnist"})


# --- CSV ----------------------------------------------------------------------------------------

TABLE = "age,ward,id,weight,label\n" + "".join(
    f"{20 + row},{'abc'[row % 3]},{row},{0.5 * row},{('ill', 'well')[row % 2]}\n" for row in range(30)
)
PATIENTS = {"name": "csv", "path": "t.csv", "drop": ["ward", "id"], "test_fraction": 0}


def test_a_table_becomes_features_and_classes(folder: Path) -> None:
    """Scaled to mean 0 and deviation 1; words are classes in the order of the alphabet."""
    (folder / "t.csv").write_text(TABLE, encoding="utf-8-sig")
    found = loaded({**PATIENTS, "clients": 1})
    x, y = found.client("", 0)

    assert (found.shape, found.classes, found.names) == ((2,), 2, ("ill", "well"))
    assert np.allclose(x.mean(axis=0), 0, atol=1e-6)
    assert np.allclose(x.std(axis=0), 1, atol=1e-6)
    assert y.tolist() == [row % 2 for row in range(30)]
    raw, _ = loaded({**PATIENTS, "clients": 1, "scale": False}).client("", 0)
    assert raw[3].tolist() == [23, 1.5]


def test_a_table_may_be_shared_out_by_a_column(folder: Path) -> None:
    """Which is then no feature: a client would be told by it."""
    (folder / "t.csv").write_text(TABLE)
    data = {**PATIENTS, "drop": ["id"], "clients": 3, "scale": False, "partition": {"name": "natural", "key": "ward"}}
    found = loaded(data)

    assert found.shape == (2,)
    assert [found.client("", index)[0][:, 0].tolist() for index in range(3)] == [
        [20 + row for row in range(ward, 30, 3)] for ward in range(3)
    ]


def test_whole_numbers_are_classes_in_their_order_and_a_constant_column_is_no_division_by_zero(folder: Path) -> None:
    """10 comes after 9."""
    (folder / "t.csv").write_text("a,b,label\n1,7,10\n2,7,9\n3,7,-1\n\n")
    found = loaded({"name": "csv", "path": "t.csv", "clients": 1, "test_fraction": 0})
    x, y = found.client("", 0)

    assert (found.names, y.tolist(), x[:, 1].tolist()) == (("-1", "9", "10"), [2, 1, 0], [0, 0, 0])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "has no column label among its 2$"),
        ("a,label\n1,0\nx,1\n", "row 3, column a: text, which is no number; mend it, or name the column in data.drop"),
        ("a,label\n1,0\n,1\n", "row 3, column a: no value"),
        ("a,label\nnan,0\n2,1\n", "row 2, column a: a word for a missing value"),
        ("a,label\n1,0\n2\n", "row 3 has 1 values for 2 columns"),
        ("a,a,label\n1,0,2\n", "its first row gives columns 1 and 2 the same name"),
        ("a,label\n", "has no rows below its first"),
        ("", "is empty; its first row names the columns"),
        ("label\n1\n", "no column is left to learn from beside label"),
        ('a,label\n"1,2\n', "cannot be read as CSV: unexpected end of data"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_place(folder: Path, text: str, sentence: str) -> None:
    """Which row, which column."""
    (folder / "t.csv").write_text(text)
    with pytest.raises(BadInput, match=sentence):
        loaded({"name": "csv", "path": "t.csv"})


# --- NumPy archives -----------------------------------------------------------------------------


def test_an_archive_is_read_as_it_is_but_bytes_are_pixels(folder: Path) -> None:
    """Each kind of number is what it most likely is."""
    y = np.arange(12) % 3
    np.savez(folder / "t.npz", image=np.full((12, 3, 4, 4), 255, np.uint8), flat=np.full((12, 5), 7.5), y=y)
    image, flat = (
        loaded({"name": "npz", "path": "t.npz", "x": x, "clients": 1, "test_fraction": 0}) for x in ("image", "flat")
    )

    assert (image.shape, flat.shape, image.classes) == ((3, 4, 4), (5,), 3)
    assert (image.client("", 0)[0] == 1).all()
    assert (flat.client("", 0)[0] == 7.5).all()
    assert image.client("", 0)[1].tolist() == y.tolist()


def test_an_archive_may_be_shared_out_by_an_array(folder: Path) -> None:
    """Numbers go in their order."""
    np.savez(folder / "t.npz", x=np.arange(12)[:, None], y=np.arange(12) % 3, site=np.array([10, 9] * 6))
    data = {"name": "npz", "path": "t.npz", "test_fraction": 0, "partition": {"name": "natural", "key": "site"}}

    assert loaded(data).client("", 0)[0].flatten().tolist() == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros((4, 2))}, "has no array y among its 1"),
        ({"x": np.zeros(4), "y": np.zeros(4, int)}, r"x has shape \[4\] and float64; it is numbers"),
        ({"x": np.array([["a"]] * 4), "y": np.zeros(4, int)}, r"x has shape \[4, 1\] and <U1; it is numbers"),
        (
            {"x": np.zeros((4, 2)), "y": np.zeros(3, int)},
            r"y is an array of shape \[3\] and int64; it is one integer for",
        ),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, r"y is an array of shape \[4\] and float64; .* y.astype\(int\)"),
        (
            {"x": np.zeros((4, 2)), "y": np.array([0, -1, 0, 0])},
            "labels from -1 to 0; they are counted from 0",
        ),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, r"x has shape \[0, 2\] and float64; it is numbers"),
        (
            {"x": np.zeros((4, 2)), "y": np.array([0, 1, 2, 2**64 - 1], np.uint64)},
            "y is an array with labels from 0 to 18",
        ),
        ({"x": np.array([[{}]] * 4), "y": np.zeros(4, int)}, "no NumPy archive of plain arrays: x holds objects"),
    ],
)
def test_an_archive_that_cannot_be_used_is_refused(folder: Path, arrays: dict[str, Any], sentence: str) -> None:
    """What is there, and what should be; an array of objects would have to be unpickled, and never is."""
    np.savez(folder / "t.npz", **arrays)
    with pytest.raises(BadInput, match=sentence):
        loaded({"name": "npz", "path": "t.npz"})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text", pickle.dumps({"x": 1})])
def test_a_file_that_is_no_archive_is_refused(folder: Path, content: bytes) -> None:
    """Whatever lies there under its name."""
    (folder / "t.npz").write_bytes(content)
    with pytest.raises(BadInput, match=f"{folder}/t.npz is no NumPy archive of plain arrays"):
        loaded({"name": "npz", "path": "t.npz"})


def test_an_array_alone_is_no_archive(folder: Path) -> None:
    """`numpy.save` writes one array, and `numpy.savez` an archive."""
    with (folder / "t.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(BadInput, match="is no NumPy archive of plain arrays"):
        loaded({"name": "npz", "path": "t.npz"})


# --- folders of images --------------------------------------------------------------------------


def test_each_folder_is_a_class_and_each_image_a_square(folder: Path) -> None:
    """Whatever their size and kind; what is no image by its name is left alone."""
    for place, colour, size in (
        ("cat/a.png", "red", (40, 20)),
        ("cat/more/b.JPG", "red", (8, 8)),
        ("dog/c.bmp", "blue", (5, 9)),
    ):
        (folder / "pets" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(folder / "pets" / place)
    (folder / "pets/dog/notes.txt").write_text("no image")
    (folder / "pets/.hidden").mkdir()
    data = {"name": "images", "path": "pets", "size": 16, "clients": 1, "test_fraction": 0}
    found = loaded(data)
    x, y = found.client("", 0)

    assert (found.shape, found.names, y.tolist()) == ((3, 16, 16), ("cat", "dog"), [0, 0, 1])
    assert x[0].mean(axis=(1, 2)).tolist() == [1, 0, 0]
    assert x[2].mean(axis=(1, 2)).tolist() == [0, 0, 1]
    grey = loaded({**data, "grey": True})
    assert grey.shape == (1, 16, 16)
    assert np.allclose(grey.client("", 0)[0][0], 76 / 255)


def test_an_image_of_the_right_size_is_kept_pixel_by_pixel(folder: Path) -> None:
    """Rows from above, columns from the left."""
    raw = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        Image.fromarray(raw).save(folder / "pets" / name / "a.png")
    x, _ = loaded({"name": "images", "path": "pets", "size": 8, "clients": 1, "test_fraction": 0}).client("", 0)

    assert np.array_equal(np.rint(x[0] * 255), raw.transpose(2, 0, 1))


def test_folders_that_cannot_be_used_are_refused(folder: Path) -> None:
    """No classes, a class without images, and a file that is no image in spite of its name."""
    (folder / "pets").mkdir()
    with pytest.raises(BadInput, match=f"{folder}/pets has no folders; each class has one"):
        loaded({"name": "images", "path": "pets"})
    (folder / "pets/cat").mkdir()
    with pytest.raises(BadInput, match="there are no images in cat, and each folder is a class"):
        loaded({"name": "images", "path": "pets"})
    (folder / "pets/cat/a.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=f"{folder}/pets/cat/a.png is no image that can be read: cannot identify"):
        loaded({"name": "images", "path": "pets"})


# --- the user's own -----------------------------------------------------------------------------


class Own:
    """The smallest data set there can be."""

    shape = (2,)
    classes = 3

    def __init__(self, x: Any = None, y: Any = None) -> None:
        self.x = np.zeros((4, 2)) if x is None else x
        self.y = np.array([0, 1, 2, 0]) if y is None else y

    def client(self, _name: str, _index: int) -> tuple[Any, Any]:
        return self.x, self.y

    def test(self) -> None:
        return None


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of the user's, importable as `own_data`."""
    found = types.ModuleType("own_data")
    monkeypatch.setitem(sys.modules, "own_data", found)
    return found


OWN = {"name": "own_data:make", "clients": 1}


def test_own_data_gets_its_args_and_the_seed_where_it_wants_it(module: types.ModuleType) -> None:
    """`args` are the job file's; the seed is passed to who names it."""
    seen: list[dict[str, Any]] = []

    def make(width: int, seed: int) -> Own:
        seen.append({"width": width, "seed": seed})
        return Own()

    module.make = make  # type: ignore[attr-defined]
    job = spec({**OWN, "args": {"width": 3}}, seed=9)
    x, y = dataset.of_client(dataset.load(job), job, "client-0")

    assert seen == [{"width": 3, "seed": 9}]
    assert (tuple(x.shape), str(x.dtype), str(y.dtype)) == ((4, 2), "torch.float32", "torch.int64")


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (Own(x=np.zeros((4, 3))), r"x of shape \[4, 3\]; its member shape says \(n, 2\)"),
        (Own(y=np.array([0, 1])), r"y of shape \[2\] and int64; it is one integer for each of 4"),
        (Own(y=np.zeros(4)), r"y of shape \[4\] and float64; .* give y.astype\(int\)"),
        (Own(y=np.array([0, 1, 2, 3])), r"labels from 0 to 3; there are 3 classes"),
        (Own(x=np.zeros((0, 2)), y=np.zeros(0, np.int64)), r"no examples for client-0"),
        (Own(x=["a", "b"]), r"no array of numbers"),
    ],
)
def test_own_data_that_does_not_fit_is_refused_with_a_sentence(own: Own, sentence: str) -> None:
    """What came, and what it should have been."""
    with pytest.raises(BadInput, match=sentence):
        dataset.of_client(OwnData(own, "own_data:make"), spec(OWN), "client-0")


def test_own_data_without_its_members_is_refused(module: types.ModuleType) -> None:
    """The missing ones are named."""
    module.make = lambda: types.SimpleNamespace(shape=(1,), client=print)  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"SimpleNamespace without test, classes"):
        dataset.load(spec(OWN))


def test_a_module_or_attribute_that_is_not_there_is_named() -> None:
    """The commonest mistake of all."""
    with pytest.raises(BadInput, match=r"data.name: this process has no module nowhere; install it"):
        dataset.load(spec({"name": "nowhere:make", "clients": 1}))
    with pytest.raises(BadInput, match=r"data.name: the module json has no nothing"):
        dataset.load(spec({"name": "json:nothing", "clients": 1}))


# --- who gets what ------------------------------------------------------------------------------


def splits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of the command that counts."""
    monkeypatch.setattr(sys, "stdin", StringIO(text))
    monkeypatch.setenv("FEDQ_ALLOW", f"own_data.,os.,math.,{__name__}.")
    code = 0
    try:
        split.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_split_is_printed_as_counts_by_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that a client has, what it holds out too, so that the numbers add up to the data set."""
    job = spec({"name": "digits", "clients": 12, "local_test": 0.3, "partition": {"name": "classes", "n": 2}})
    code, out, err = splits(monkeypatch, capsys, job.model_dump_json())
    found = json.loads(out)

    assert (code, err, found["shape"], found["classes"]) == (0, "", [1, 8, 8], [str(digit) for digit in range(10)])
    assert list(found["clients"]) == list(job.clients)
    assert {sum(count > 0 for count in counts) for counts in found["clients"].values()} == {2}
    total = np.sum([*found["clients"].values(), found["test"]], axis=0)
    assert total.tolist() == np.bincount(load_digits().target).tolist()


def test_own_data_is_counted_too_and_may_print(
    module: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it prints goes to stderr, because stdout is JSON."""

    def make() -> Own:
        print("reading")  # noqa: T201
        return Own()

    module.make = make  # type: ignore[attr-defined]
    code, out, err = splits(monkeypatch, capsys, spec({**OWN, "local_test": 0.5}).model_dump_json())

    assert (code, err) == (0, "reading\n")
    assert json.loads(out) == {
        "classes": ["0", "1", "2"],
        "clients": {"client-0": [2, 1, 1]},
        "test": None,
        "shape": [2],
        "elsewhere": {},
        "owners": [],
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "error: the job on stdin is no JSON: Expecting value"),
        ("{}", "error: name: is missing; "),
        (
            spec({"name": "digits", "clients": 1500}).model_dump_json(),
            "error: data.clients is 1500, but there are 1438",
        ),
        (spec({"name": "os:abort_", "clients": 1}).model_dump_json(), "error: data.name: the module os has no abort_"),
        (
            spec({"name": "math:sqrt", "clients": 1}).model_dump_json(),
            "error: data.name: math:sqrt failed: TypeError",
        ),
    ],
)
def test_a_split_that_cannot_be_made_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    """Never a traceback: a person asked."""
    code, out, err = splits(monkeypatch, capsys, text)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)


@pytest.mark.parametrize("ending", [SystemExit(), SystemExit(0), KeyboardInterrupt()])
def test_own_code_that_ends_the_process_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ending: BaseException
) -> None:
    """A script imported as a module may end by sys.exit(), which would look like an answer."""

    def fail(_: Any) -> None:
        raise ending

    monkeypatch.setattr(split, "counts", fail)
    code, out, err = splits(monkeypatch, capsys, spec({"name": "digits", "clients": 2}).model_dump_json())

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {type(ending).__name__}")
