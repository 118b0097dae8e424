"""The data that clients train on: the digits, and what the user's own must be."""

import sys
import types
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from services.trainer.data import dataset
from services.trainer.data.digits import Digits
from shared import jobs
from shared.errors import BadInput
from shared.jobs import JobSpec


def spec(data: dict[str, Any], **more: Any) -> JobSpec:
    where = {} if "silos" in more else {"pool": "cpu"}
    return jobs.parse(
        {"name": "t", "model": {"name": "softmax"}, "data": data, "rounds": {"count": 1}, **where, **more}
    )


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
    dataset._loaded.clear()
    return found


def test_digits_are_those_of_scikit_learn() -> None:
    """We read the file that sklearn reads, without sklearn."""
    wanted = load_digits()
    digits = Digits(jobs.Digits(clients=1, test_fraction=0), seed=0)
    x, y = digits.client("client-0", 0)

    assert np.array_equal(x, (wanted.images[:, None] / 16).astype(np.float32))
    assert np.array_equal(y, wanted.target)
    assert (x.dtype, y.dtype, x.shape[1:]) == (np.float32, np.int64, digits.shape)
    assert digits.test() is None


def test_the_test_set_is_held_out_and_does_not_depend_on_the_partition() -> None:
    """No client trains on what the model is judged by."""
    one = Digits(jobs.Digits(clients=4), seed=3)
    other = Digits(jobs.Digits(clients=10, partition=jobs.Dirichlet(alpha=0.5)), seed=3)
    x, y = one.test() or pytest.fail("no test set")

    assert len(y) == round(0.2 * 1797)
    assert sum(len(one.client("c", index)[1]) for index in range(4)) == 1797 - len(y)
    assert np.array_equal(x, (other.test() or (None,))[0])


def test_a_data_set_is_loaded_once() -> None:
    """Rounds after the first pay nothing for it; another seed is another data set."""
    job = spec({"name": "digits", "clients": 5})

    assert dataset.load(job) is dataset.load(job)
    assert dataset.load(job) is not dataset.load(job.model_copy(update={"seed": 1}))
    assert len(dataset._loaded) <= dataset.KEPT


def test_clients_are_found_by_name() -> None:
    """A pool's by their number, silos by their place in the job file."""
    pool = spec({"name": "digits", "clients": 20})
    silos = spec({"name": "digits", "clients": 2}, silos=["north", "south-1"])

    assert [dataset.index_of(pool, name) for name in pool.clients] == list(range(20))
    assert dataset.index_of(silos, "south-1") == 1
    for job, name in ((pool, "client-20"), (pool, "north"), (silos, "client-0")):
        with pytest.raises(BadInput, match=f"{name} is none of the job's"):
            dataset.index_of(job, name)


def test_own_data_gets_its_args_and_the_seed_where_it_wants_it(module: types.ModuleType) -> None:
    """`args` are the job file's; the seed is passed to who names it."""
    seen: list[dict[str, Any]] = []

    def make(width: int, seed: int) -> Own:
        seen.append({"width": width, "seed": seed})
        return Own()

    module.make = make  # type: ignore[attr-defined]
    found = dataset.load(spec({"name": "own_data:make", "args": {"width": 3}, "clients": 1}, seed=9))
    x, y = dataset.of_client(found, "client-0", 0)

    assert seen == [{"width": 3, "seed": 9}]
    assert (tuple(x.shape), str(x.dtype), str(y.dtype)) == ((4, 2), "torch.float32", "torch.int64")


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (Own(x=np.zeros((4, 3))), r"x of shape \[4, 3\]; its shape says \(n, 2\)"),
        (Own(y=np.array([0, 1])), r"y of shape \[2\] and torch.int64; it is one integer for each of 4"),
        (Own(y=np.zeros(4)), r"y of shape \[4\] and torch.float64"),
        (Own(y=np.array([0, 1, 2, 3])), r"labels from 0 to 3; there are 3 classes"),
        (Own(x=np.zeros((0, 2)), y=np.zeros(0, np.int64)), r"no examples for client-0"),
        (Own(x=["a", "b"]), r"no array of numbers"),
    ],
)
def test_own_data_that_does_not_fit_is_refused_with_a_sentence(own: Own, sentence: str) -> None:
    """What came, and what it should have been."""
    with pytest.raises(BadInput, match=sentence):
        dataset.of_client(own, "client-0", 0)


def test_own_data_without_its_members_is_refused(module: types.ModuleType) -> None:
    """The missing ones are named."""
    module.make = lambda: types.SimpleNamespace(shape=(1,), client=print)  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"SimpleNamespace without test, classes"):
        dataset.load(spec({"name": "own_data:make", "clients": 1}))


def test_a_module_or_attribute_that_is_not_there_is_named() -> None:
    """The commonest mistake of all."""
    with pytest.raises(BadInput, match=r"data.name: this trainer has no module nowhere; install it"):
        dataset.load(spec({"name": "nowhere:make", "clients": 1}))
    with pytest.raises(BadInput, match=r"data.name: the module json has no nothing"):
        dataset.load(spec({"name": "json:nothing", "clients": 1}))
