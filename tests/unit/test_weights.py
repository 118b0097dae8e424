"""Model files: safetensors' format, wrapped and never copied."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from shared.aggregation import weights
from shared.aggregation.weights import layout_of
from shared.errors import Refused

LAYOUT = layout_of({"fc.bias": ("F32", (3,)), "fc.weight": ("F32", (2, 3)), "seen": ("I64", ()), "on": ("BOOL", (2,))})


def model_file() -> np.ndarray:
    file = LAYOUT.empty_file()
    for value, view in enumerate(LAYOUT.views(file).values()):
        view[...] = value
    return file


def crafted(header: object, data: bytes = b"") -> np.ndarray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return np.frombuffer(struct.pack("<Q", len(text)) + text + data, np.uint8)


def test_the_reference_library_reads_our_files() -> None:
    """safetensors itself gives back the same tensors."""
    file = model_file()
    found = load(file.tobytes())

    assert found.keys() == {"fc.bias", "fc.weight", "seen", "on"}
    for name, view in LAYOUT.views(file).items():
        np.testing.assert_array_equal(found[name], view)


def test_a_layout_is_read_back() -> None:
    """Reading a file's header gives the layout that wrote it."""
    assert weights.read_layout(model_file()) == LAYOUT


def test_trained_parameters_are_one_flat_view() -> None:
    """Writing to the flat array writes to the tensors, in file order."""
    file = model_file()
    LAYOUT.flat(file)[:] = np.arange(9)

    assert LAYOUT.views(file)["fc.bias"].tolist() == [0, 1, 2]
    assert LAYOUT.views(file)["fc.weight"].tolist() == [[3, 4, 5], [6, 7, 8]]


def test_updates_hold_the_float32_tensors_alone() -> None:
    """An update has the model's trained tensors in the same order, and nothing else."""
    updates = LAYOUT.of_updates()

    assert [tensor.name for tensor in updates.tensors] == [tensor.name for tensor in LAYOUT.trained]
    assert updates.size == LAYOUT.size == 9


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    """Whatever is not our format is refused."""
    with pytest.raises(Refused):
        weights.read_layout(np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "not a safetensors file"),
        ([], "not a safetensors file"),
        ({"a": 1}, "not a safetensors file"),
        ({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, "F64"),
        ({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}, "a model has F32"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, "laid out"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "laid out"),
    ],
)
def test_a_lying_header_is_refused(header: object, reason: str) -> None:
    """Sizes and offsets are checked before anything is read by them."""
    with pytest.raises(Refused, match=reason):
        weights.read_layout(crafted(header, bytes(8)))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"fc.bias": ("F32", (3,))}, "tensor fc.weight is missing"),
        ({"fc.bias": ("F32", (3,)), "fc.weight": ("F32", (2, 3)), "x": ("F32", ())}, "tensor x is not in the model"),
        ({"fc.bias": ("F32", (3,)), "fc.weight": ("F32", (3, 2))}, "shape"),
        ({"fc.bias": ("I32", (3,)), "fc.weight": ("F32", (2, 3))}, "I32 instead of F32"),
    ],
)
def test_an_update_of_another_model_is_refused(tensors: dict, reason: str) -> None:
    """The reason names the tensor and what is wrong with it."""
    with pytest.raises(Refused, match=reason):
        weights.check_header(layout_of(tensors).empty_file(), LAYOUT.of_updates())


def test_a_truncated_update_is_refused() -> None:
    """The right header on too few bytes is not enough."""
    updates = LAYOUT.of_updates()
    with pytest.raises(Refused, match="bytes instead of"):
        weights.check_header(updates.empty_file()[:-4], updates)


def test_half_floats_lie_among_the_integers_of_their_width() -> None:
    """Compressed files hold bfloat16, as its bits; each array begins where its width asks."""
    layout = layout_of({"scales": ("F32", (3,)), "codes": ("U8", (5,)), "values": ("BF16", (7,))})
    views = layout.views(layout.empty_file())

    assert [tensor.name for tensor in layout.tensors] == ["scales", "values", "codes"]
    assert views["values"].dtype == np.uint16
    assert all(view.ctypes.data % view.itemsize == 0 for view in views.values())


def test_a_vectors_tiles_are_views_of_all_of_it() -> None:
    """Side by side, none larger than a tile."""
    flat = np.zeros(2 * weights.TILE + 5, np.float32)
    for place, tile in weights.tiles_of(flat):
        assert flat[place].size == tile.size <= weights.TILE
        np.add(tile, 1, out=tile)

    assert (flat == 1).all()


# --- buffers and other names ----------------------------------------------------------------

NAMED = layout_of(
    {"a.mean": ("F32", (2,)), "b": ("F32", (3,)), "c": ("F32", (1,)), "seen": ("I64", ())}, {"a.mean"}, {"d": "b"}
)


def test_buffers_lie_behind_the_parameters() -> None:
    """Both are one flat view, and updates have them in the same places."""
    file = NAMED.empty_file()
    NAMED.flat(file)[:] = np.arange(6)

    assert {name: view.tolist() for name, view in NAMED.views(file).items() if name != "seen"} == {
        "b": [0, 1, 2], "c": [3], "a.mean": [4, 5],
    }  # fmt: skip
    assert (NAMED.size, NAMED.parameters) == (6, 4)
    assert [tensor.name for tensor in NAMED.of_updates().tensors] == ["b", "c", "a.mean"]
    both = NAMED.of_updates(("control", "delta"))
    assert [tensor.name for tensor in both.tensors] == ["control.b", "control.c", "delta.b", "delta.c", "buffer.a.mean"]
    assert (both.size, both.parameters) == (10, 8)


def test_a_file_names_its_buffers_and_other_names() -> None:
    """In metadata that safetensors itself reads; a file that has neither has none."""
    for layout in (NAMED, NAMED.of_updates(), NAMED.of_updates(("control", "delta")), LAYOUT):
        assert weights.read_layout(layout.empty_file()) == layout
    header = json.loads(NAMED.header[8:])
    assert header["__metadata__"] == {"fedq.buffers": '["a.mean"]', "fedq.tied": '{"d":"b"}'}
    assert "__metadata__" not in json.loads(LAYOUT.header[8:])
    file = NAMED.empty_file()
    file[len(NAMED.header) :] = 0
    assert load(file.tobytes()).keys() == {"a.mean", "b", "c", "seen"}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"fedq.buffers": '["x"]'}, "names a buffer 'x'"),
        ({"fedq.buffers": '["n"]'}, "names a buffer 'n'"),
        ({"fedq.buffers": '{"a": 1}'}, "laid out"),
        ({"fedq.buffers": "[[]]"}, "unhashable"),
        ({"fedq.buffers": '["a", "a"]'}, "laid out"),
        ({"fedq.buffers": "[" * 100_000}, "not a safetensors file"),
        ({"fedq.buffers": 7}, "not a safetensors file"),
        ({"fedq.tied": '{"a": "a"}'}, "ties 'a' to 'a'"),
        ({"fedq.tied": '{"z": "x"}'}, "ties 'z' to 'x'"),
        ({"fedq.tied": '{"\\u001b[2J": "a"}'}, "printable"),
        ({"fedq.tied": '["a"]'}, "not a safetensors file"),
        ({"fedq.more": "a"}, "laid out"),
        ([], "laid out"),
        ("x", "not a safetensors file|laid out"),
    ],
)
def test_false_metadata_is_refused(metadata: object, reason: str) -> None:
    """Whatever it says of a file that has a float32 tensor a and an integer n."""
    tensors = {
        "n": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    with pytest.raises(Refused, match=reason):
        weights.read_layout(crafted({"__metadata__": metadata, **tensors}, bytes(16)))


def test_an_update_that_calls_a_parameter_a_buffer_is_refused() -> None:
    """It would be folded as something else than it is."""
    other = layout_of({"a.mean": ("F32", (2,)), "b": ("F32", (3,)), "c": ("F32", (1,))}, {"c"})
    with pytest.raises(Refused, match="its header is not the model's"):
        weights.check_header(other.empty_file(), NAMED.of_updates())
