"""The user's own data: what is right is taken whatever it came in, and what is wrong is named by its member."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.trainer.data.own import OwnData
from shared.errors import BadInput

X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
Y = np.array([0, 1, 2])


def own(x: Any = X, y: Any = Y, shape: Any = (2,), classes: Any = 3, test: Any = None) -> OwnData:
    given = SimpleNamespace(client=lambda _name, _index: (x, y), test=lambda: test, shape=shape, classes=classes)
    return OwnData(given, "my:data")


NUMBERS = st.sampled_from(
    ["?", "i1", "<i2", ">i2", "<i8", ">i8", "u1", ">u4", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]
)


@st.composite
def odd_arrays(draw: st.DrawFn) -> np.ndarray:
    """Numbers that float32 holds, of any dtype and byte order, in any memory layout."""
    dtype = np.dtype(draw(NUMBERS))
    elements = {"allow_nan": False, "min_value": -1000, "max_value": 1000} if dtype.kind == "f" else {}
    found = draw(arrays.arrays(dtype, (draw(st.integers(1, 4)), 3, 2), elements=elements or None))
    if draw(st.booleans()):
        found = np.asfortranarray(found)
    if draw(st.booleans()):
        found = found[::-1, ::-1, ::-1]
    if draw(st.booleans()):
        found = np.repeat(found, 2, axis=2)[..., ::2]
    if draw(st.booleans()):
        found.flags.writeable = False
    return found


@settings(deadline=None)
@given(odd_arrays())
def test_any_array_of_numbers_is_what_its_plain_copy_is(x: np.ndarray) -> None:
    """Whatever its byte order, its strides and whether it may be written to; so are lists and tensors of it."""
    plain = np.ascontiguousarray(x.astype(x.dtype.newbyteorder("="))).astype(np.float32)
    y = np.zeros(len(x), np.int64)
    for given_x in (x, x.tolist(), torch.from_numpy(plain)):
        found, labels = own(given_x, y, shape=(3, 2)).client("client-0", 0)

        assert np.array_equal(found, plain)
        assert (found.dtype, found.flags.c_contiguous, found.flags.writeable) == (np.float32, True, True)
        assert not np.shares_memory(found, x)
        assert (labels.dtype, labels.shape) == (np.int64, (len(x),))


@settings(deadline=None)
@given(st.sampled_from(["?", "i1", "u2", ">u2", "<i4", ">i8", "u8"]), st.booleans(), st.booleans())
def test_labels_of_any_integers_are_taken(dtype: str, column: bool, backwards: bool) -> None:
    """One for each example; a column of a table is one for each too."""
    y = np.array([0, 1, 1]).astype(dtype)
    y = y[:, None] if column else y
    _, labels = own(y=y[::-1] if backwards else y).client("client-0", 0)

    assert labels.tolist() == ([1, 1, 0] if backwards else [0, 1, 1])
    assert (labels.dtype, labels.flags.c_contiguous) == (np.int64, True)


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor(X, dtype=torch.bfloat16),
        torch.tensor(X, requires_grad=True),
        torch.tensor(X).t().contiguous().t(),
        np.ma.masked_array(X, mask=np.zeros((3, 2), bool)),
        np.array(X.tolist(), dtype=object),
        tuple(map(tuple, X.tolist())),
    ],
)
def test_numbers_in_any_wrapping_are_numbers(x: Any) -> None:
    """Half of torch's kinds have no counterpart in NumPy; a table of pandas may be an array of objects."""
    assert np.array_equal(own(x).client("client-0", 0)[0], X)


@pytest.mark.parametrize("shape", [(2,), [2], np.array([2]), torch.Size([2]), 2, np.int64(2)])
@pytest.mark.parametrize("classes", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_members_are_taken_in_any_form_that_is_a_number(shape: Any, classes: Any) -> None:
    """A single size is the shape of one row."""
    found = own(shape=shape, classes=classes)

    assert (found.shape, found.classes) == ((2,), 3)
    assert {type(found.classes), *map(type, found.shape)} == {int}


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"shape": "5"}, r"the member shape of what my:data gave is '5' \(str\); it is the shape of one example"),
        ({"shape": 2.5}, r"shape of what my:data gave is '2.5' \(float\)"),
        ({"shape": None}, r"shape of what my:data gave is 'None' \(NoneType\)"),
        ({"shape": (2, -1)}, r"shape of what my:data gave is '\(2, -1\)' \(tuple\)"),
        ({"classes": "3"}, r"the member classes of what my:data gave is '3' \(str\); it is how many classes there are"),
        ({"classes": ["a", "b"]}, r"classes of what my:data gave is \"\['a', 'b'\]\" \(list\)"),
        ({"classes": 3.0}, r"classes of what my:data gave is '3.0' \(float\)"),
        ({"classes": 0}, r"classes of what my:data gave is '0' \(int\)"),
        ({"classes": 10**9}, r"classes of what my:data gave is '1000000000' .*such as 10, at most 1000000"),
    ],
)
def test_a_member_that_is_no_number_is_named(members: dict[str, Any], sentence: str) -> None:
    """With what it is and what it should be, before anything is trained."""
    with pytest.raises(BadInput, match=sentence):
        own(**members)


@pytest.mark.parametrize(
    ("x", "count", "place"),
    [
        (np.where(X == 4, np.nan, X), "1 value that is", "1, 1"),
        (np.where(X > 2, -np.inf, X), "4 values that are", "1, 0"),
        (X * 1e38, "3 values that are", "1, 1"),
        (torch.tensor([[1.0, float("nan")]] * 3), "3 values that are", "0, 1"),
    ],
)
def test_a_value_that_is_no_number_is_found_before_training(x: Any, count: str, place: str) -> None:
    """In whatever a client trains on, and in the test set: how many there are and where the first one is."""
    words = rf"gave x with {count} NaN, infinite or beyond float32 .* the first at \[{place}\]"
    with pytest.raises(BadInput, match=r"data: client\('client-7', 7\) " + words):
        own(x).client("client-7", 7)
    with pytest.raises(BadInput, match=r"data: test\(\) " + words):
        own(test=(x, Y)).test()


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"x": X, "y": Y}, r"gave a dict; it gives a pair \(x, y\)"),
        ((X,), r"gave a tuple; it gives a pair"),
        ((X, Y, Y), r"gave a tuple; it gives a pair"),
        ((X, ["a", "b", "c"]), "gave y of <U1, which is no array of numbers"),
        ((X, [0, 1]), r"gave y of shape \[2\] and int64; it is one integer for each of 3 examples"),
        ((X, np.eye(3)), r"gave y of shape \[3, 3\] and float64; .* give y.argmax\(1\)"),
        ((X, np.array([1, 2, 3])), "gave y with labels from 1 to 3; there are 3 classes, counted from 0"),
        (
            (X, np.array([0, 1, 2**64 - 1], np.uint64)),
            "gave y with labels from 0 to 18446744073709551615; there are 3",
        ),
        ((X.T, Y), r"gave x of shape \[2, 3\]; its member shape says \(n, 2\)"),
        (([[1, 2], [3]], Y), "gave x, which is no array of numbers: setting an array element"),
        ((np.array([[1, None]] * 3), Y), r"gave x with 3 values that are NaN, .* the first at \[0, 1\]"),
        ((np.array([[1, "a"]] * 3, dtype=object), Y), "gave x of <U21, which is no array of numbers"),
        ((X + 1j, Y), "gave x of complex128, which is no array of numbers"),
        ((np.zeros((3, 2), "M8[s]"), Y), r"gave x of datetime64\[s\], which is no array of numbers"),
        ((np.ma.masked_array(X, mask=X > 5), Y), "gave x with values that are masked"),
        ((None, Y), "gave x of object, which is no array of numbers"),
    ],
)
def test_what_cannot_be_trained_on_is_named(found: Any, sentence: str) -> None:
    """The call, which of x and y, what came and what should have."""
    given = SimpleNamespace(client=lambda _name, _index: found, test=lambda: found, shape=(2,), classes=3)
    with pytest.raises(BadInput, match=r"^data: client\('a', 0\) " + sentence):
        OwnData(given, "my:data").client("a", 0)
    with pytest.raises(BadInput, match=r"^data: test\(\) " + sentence):
        OwnData(given, "my:data").test()


def test_what_the_users_data_raise_is_told_with_the_call() -> None:
    """A bare KeyError names nothing."""

    def client(name: str, _index: int) -> Any:
        return {}[name]

    given = SimpleNamespace(client=client, test=lambda: 1 // 0, shape=(2,), classes=3)
    with pytest.raises(BadInput, match=r"^data: client\('a', 0\) failed: KeyError: 'a'$"):
        OwnData(given, "my:data").client("a", 0)
    with pytest.raises(BadInput, match=r"^data: test\(\) failed: ZeroDivisionError: "):
        OwnData(given, "my:data").test()


def test_what_a_step_does_to_its_examples_is_gone_with_it() -> None:
    """Noise that is added in place would add up from round to round."""
    x = X.astype(np.float32)
    data = own(x)
    found, labels = data.client("client-0", 0)
    found += 1
    labels[:] = 0

    assert np.array_equal(x, X)
    assert data.client("client-0", 0)[1].tolist() == [0, 1, 2]


def test_a_member_that_fails_is_named() -> None:
    """It may be a property, of data that are not loaded yet."""

    class Late:
        classes = 3
        shape = property(lambda _self: 1 // 0)

        def client(self, _name: str, _index: int) -> Any: ...

        def test(self) -> None: ...

    with pytest.raises(BadInput, match=r"the member shape of what my:data gave failed: ZeroDivisionError: "):
        OwnData(Late(), "my:data")
