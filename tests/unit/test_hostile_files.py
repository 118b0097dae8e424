"""Files from strangers: a reader of model files says what it holds or `Refused`, and nothing else."""

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.aggregation import weights
from shared.aggregation.weights import layout_of
from shared.errors import Refused

LAYOUT = layout_of({"fc.bias": ("F32", (3,)), "fc.weight": ("F32", (2, 3)), "seen": ("I64", ())})

numbers = st.integers() | st.floats(allow_nan=True, allow_infinity=True) | st.booleans() | st.integers(10**60)
anything = st.recursive(
    st.none() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*weights.DTYPES.values(), "BF16", "F64", ""]) | anything,
        "shape": st.lists(numbers, max_size=40) | anything,
        "data_offsets": st.lists(numbers, max_size=3) | anything,
    }
)


def crafted(header: bytes, data: bytes = b"") -> np.ndarray:
    return np.frombuffer(struct.pack("<Q", len(header)) + header + data, np.uint8)


def one(shape: str, name: str = "a") -> bytes:
    return f'{{"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}'.encode()


@given(st.dictionaries(st.text(max_size=12), entries | anything, max_size=5) | anything, st.binary(max_size=40))
@settings(deadline=None)
def test_any_header_is_read_or_refused(header: Any, data: bytes) -> None:
    """Whatever JSON a stranger writes, NaN, Infinity and lone surrogates included."""
    file = crafted(json.dumps(header).encode(), data)
    with suppress(Refused):
        weights.read_layout(file)
    with pytest.raises(Refused):
        weights.check_header(file, LAYOUT)


@given(st.integers(0, len(LAYOUT.header) - 1), st.integers(0, 255))
@settings(deadline=None)
def test_any_changed_byte_of_a_header_is_refused_or_another_layout(place: int, value: int) -> None:
    """A header is the one that its layout writes: what is read is what the bytes say, to the last one."""
    file = LAYOUT.empty_file()
    file[place] = value
    try:
        found = weights.read_layout(file)
    except Refused:
        return
    assert found.header == file[: len(found.header)].tobytes()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (one("[Infinity]"), "no whole number"),
        (one("[NaN]"), "no whole number"),
        (one("[1e400]"), "no whole number"),
        (one("[1.0]"), "no whole number"),
        (one("[true]"), "shape"),
        (one('["1"]'), "shape"),
        (one('"11"'), "shape"),
        (one(f"[{'9' * 8000}]"), "8000 digits"),
        (one(f"[{','.join(['1'] * 33)}]"), "shape"),
        (one("[1]", "\\ud800"), "printable"),
        (one("[1]", "\\u001b]0;owned"), "printable"),
        (one("[1]", "n" * 513), "printable"),
        (one("[1]", ""), "printable"),
        (b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}', "a model has F32"),
        (b'{"a":{"dtype":{},"shape":[1],"data_offsets":[0,4]}}', "a model has F32"),
        (b"[" * (weights.MAX_HEADER - 8), "not a safetensors file"),
        (b'{"a":' * 9000, "not a safetensors file"),
        (one("[1]")[:-1] + b"," + one("[1]")[1:], "laid out"),  # the same name twice
    ],
)
def test_what_json_allows_and_a_header_does_not(header: bytes, reason: str) -> None:
    """Each is refused in a sentence that has no control character and is no longer than a line or two."""
    with pytest.raises(Refused, match=reason) as caught:
        weights.read_layout(crafted(header, bytes(4)))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_tensors_are_counted_before_they_are_read() -> None:
    """A hundred thousand tensors without a value, in a header that is right otherwise."""
    many = layout_of({f"t{number}": ("F32", (0,)) for number in range(weights.MAX_TENSORS + 1)})
    with pytest.raises(Refused, match="more tensors than a model may have, 10000"):
        weights.read_layout(many.empty_file())


def test_as_many_tensors_as_are_allowed_are_read() -> None:
    """The bound is one that models may reach."""
    many = layout_of({f"t{number}": ("F32", (1, 1)) for number in range(weights.MAX_TENSORS)})
    assert weights.read_layout(many.empty_file()) == many
