"""Compression: what a file holds, what it leaves out, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared.aggregation import fold, weights
from shared.aggregation.compression.encoding import Encoding, encode_with_feedback, rebuild, shrink
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.fold import Fold, Grid
from shared.aggregation.weights import TILE, File, Flat, layout_of
from shared.errors import BadInput, Refused
from shared.job.catalog.compression import Bf16, EncodingSpec, Int4, Int8, TopK

GRID = Grid(max_abs=16.0, max_weight=2**20, updates=8)

LOSSY = [Bf16(), Int8(block=64), Int4(block=64), TopK(ratio=0.1)]
EVERY: list[EncodingSpec | None] = [None, *LOSSY]
SIZES = [1, 2, 7, 64, 65, 1000, TILE, 2 * TILE + 77]  # also where neither blocks, bytes nor tiles come out even

# Numbers as they come, and as they should not: subnormal, equal, zero, negative zero, huge.
vectors = arrays.arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**120), 2.0**120, width=32))
small = arrays.arrays(np.float32, st.integers(1, 200), elements=st.floats(-16, 16, width=32))
lossy = st.one_of(
    st.just(Bf16()),
    st.sampled_from([8, 24, 256]).map(lambda block: Int8(block=block)),
    st.sampled_from([8, 24, 256]).map(lambda block: Int4(block=block)),
    st.floats(0.001, 0.5).map(lambda ratio: TopK(ratio=ratio)),
)


def name_of(value: object) -> str:
    return getattr(value, "name", str(value))


def encoding_for(spec: EncodingSpec | None, size: int) -> Encoding:
    return encoding_of(spec, layout_of({"w": ("F32", (size,))}))


def encoded(encoding: Encoding, values: Flat) -> File:
    file = encoding.layout.empty_file()
    encoding.encode(values, file)
    return file


def decoded(encoding: Encoding, file: File) -> Flat:
    out = np.full(encoding.size, np.nan, np.float32)
    encoding.decode_into(file, out)
    return out


def there_and_back(spec: EncodingSpec | None, values: Flat) -> Flat:
    encoding = encoding_for(spec, values.size)
    return decoded(encoding, encoded(encoding, values))


def normal(size: int, seed: int = 0) -> Flat:
    return np.random.default_rng(seed).normal(0, 0.01, size).astype(np.float32)


def scales_of(spec: Int8 | Int4, values: Flat) -> Flat:
    """The scale of each value."""
    encoding = encoding_for(spec, values.size)
    scales = encoding.layout.views(encoded(encoding, values))["scales"]
    return np.repeat(scales, spec.block)[: values.size]


# --- what a file costs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "times"), [(Bf16(), 1.99), (Int8(), 3.9), (Int4(), 7.7), (TopK(ratio=0.01), 25.0)], ids=name_of
)
def test_files_are_as_much_smaller_as_promised(spec: EncodingSpec, times: float) -> None:
    """At 50,000 parameters, header included."""
    plain = encoding_for(None, 50_000).layout.file_size

    assert plain / encoding_for(spec, 50_000).layout.file_size >= times


@pytest.mark.parametrize("spec", EVERY, ids=name_of)
@pytest.mark.parametrize("size", SIZES)
def test_the_layout_is_all_of_the_file(spec: EncodingSpec | None, size: int) -> None:
    """What is encoded has the header and the bytes that a receiver expects before it has received any."""
    encoding = encoding_for(spec, size)
    file = encoded(encoding, normal(size))

    weights.check_header(file, encoding.layout)
    assert encoding.size == size


def test_uncompressed_updates_are_the_models_tensors() -> None:
    """Without compression nothing changes: the file is the one that the layout of updates describes."""
    updates = layout_of({"fc.bias": ("F32", (3,)), "fc.weight": ("F32", (2, 3)), "seen": ("I64", ())}).of_updates()
    encoding = encoding_of(None, updates)
    file = encoded(encoding, np.arange(9, dtype=np.float32))

    assert encoding.layout == updates
    assert updates.views(file)["fc.weight"].tolist() == [[3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (Bf16(), {"values": [0x40E0, 0xC0E0, 0x3F80, 0x0000, 0xC000]}),
        (Int8(block=8), {"codes": [127, -127, 18, 0, -36], "scales": [np.float32(7 / 127)]}),
        (Int4(block=8), {"codes": [0x97, 0x01, 0x0E], "scales": [1.0]}),  # the first of two in the lower half
        (TopK(ratio=0.5), {"places": [0, 1, 4], "values": [7.0, -7.0, -2.0]}),
    ],
    ids=name_of,
)
def test_each_format_is_what_it_was(spec: EncodingSpec, found: dict[str, list[float]]) -> None:
    """Stored files and other programs depend on it."""
    encoding = encoding_for(spec, 5)
    views = encoding.layout.views(encoded(encoding, np.array([7, -7, 1, 0, -2], np.float32)))

    assert {name: view.tolist() for name, view in views.items()} == found


# --- what it leaves out ---------------------------------------------------------------------


@given(vectors)
def test_plain_values_come_back_as_they_are(values: Flat) -> None:
    assert there_and_back(None, values).tobytes() == values.tobytes()


@given(vectors, st.sampled_from([Int8(block=8), Int8(block=24), Int4(block=8), Int4(block=24)]))
def test_integers_are_off_by_half_a_scale_at_most(values: Flat, spec: Int8 | Int4) -> None:
    """And no decoded value is larger than the largest of its block, which a limit may have been set for."""
    scales = scales_of(spec, values).astype(np.float64)
    found = there_and_back(spec, values)
    smallest = float(np.finfo(np.float32).tiny) * 128  # a block of such values becomes zeros
    allowed = np.where(scales == 0, smallest, scales / 2 * (1 + 1e-5))

    assert (np.abs(values.astype(np.float64) - found) <= allowed).all()
    for start in range(0, values.size, spec.block):
        block = slice(start, start + spec.block)
        assert np.abs(found[block]).max() <= np.abs(values[block]).max()


@pytest.mark.parametrize(("spec", "top"), [(Int8(block=8), 127), (Int4(block=8), 7)], ids=name_of)
def test_scales_are_the_largest_value_over_the_largest_integer(spec: Int8 | Int4, top: int) -> None:
    """Each block has its own, and ties are rounded to even."""
    values = np.array([top, 0.5, 1.5, -0.5, -1.5, 2.5, -2.5, -3, 0, 0, 0, -2 * top], np.float32)

    assert scales_of(spec, values).tolist() == [1.0] * 8 + [2.0] * 4
    assert there_and_back(spec, values).tolist() == [top, 0, 2, 0, -2, 2, -2, -3, 0, 0, 0, -2 * top]


@pytest.mark.parametrize("spec", [Int8(block=8), Int4(block=8)], ids=name_of)
@pytest.mark.parametrize("value", [2e-43, 1e-45, 1e-38])
def test_values_too_small_to_divide_become_zeros(spec: Int8 | Int4, value: float) -> None:
    """Their scale would be subnormal, so coarse that integers would not fit; the blocks beside them are not touched."""
    values = np.array([value, -value] * 4 + [1, -1] * 4, np.float32)

    np.testing.assert_array_equal(there_and_back(spec, values)[:8], np.zeros(8))
    np.testing.assert_allclose(there_and_back(spec, values)[8:], [1, -1] * 4, rtol=1e-6)


@given(small, st.floats(0.001, 0.5))
def test_topk_keeps_the_largest_and_of_equals_the_first(values: Flat, ratio: float) -> None:
    """Against a sort that is stable by construction."""
    count = max(1, math.ceil(ratio * values.size))
    kept = sorted(range(values.size), key=lambda place: (-abs(float(values[place])), place))[:count]
    expected = np.zeros_like(values)
    expected[kept] = values[kept]
    encoding = encoding_for(TopK(ratio=ratio), values.size)
    file = encoded(encoding, values)

    assert encoding.layout.views(file)["places"].tolist() == sorted(kept)
    np.testing.assert_array_equal(decoded(encoding, file), expected)


def test_topk_takes_equals_across_tiles_in_order() -> None:
    """Equal values in several tiles: the first k, whatever a partition did with them."""
    encoding = encoding_for(TopK(ratio=0.5), 3 * TILE)
    file = encoded(encoding, np.ones(3 * TILE, np.float32))

    np.testing.assert_array_equal(encoding.layout.views(file)["places"], np.arange(3 * TILE // 2))


@pytest.mark.parametrize("spec", EVERY, ids=name_of)
@pytest.mark.parametrize("size", SIZES)
def test_zeros_stay_zeros(spec: EncodingSpec | None, size: int) -> None:
    assert not there_and_back(spec, np.zeros(size, np.float32)).any()


@given(small, lossy)
def test_the_same_values_give_the_same_bytes(values: Flat, spec: EncodingSpec) -> None:
    """Whatever the buffer held before, and whatever was encoded in between."""
    encoding = encoding_for(spec, values.size)
    first, second = encoding.layout.empty_file(), encoding.layout.empty_file()
    start = len(encoding.layout.header)
    first[start:], second[start:] = 0x55, 0xAA
    encoding.encode(values, first)
    encoding.encode(-values, second)
    encoding.encode(values, second)

    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [7, 2 * TILE + 77])
@pytest.mark.parametrize("spec", EVERY, ids=name_of)
def test_what_is_not_finite_is_not_encoded(spec: EncodingSpec | None, size: int, bad: float) -> None:
    """Wherever it stands, the last value included."""
    encoding = encoding_for(spec, size)
    values = normal(size)
    values[-1] = bad
    with pytest.raises(Refused, match="NaN or Inf"):
        encoding.encode(values, encoding.layout.empty_file())


def test_what_bfloat16_would_make_infinite_is_not_encoded() -> None:
    """The largest float32 lies beyond the largest bfloat16."""
    with pytest.raises(Refused, match="too large"):
        there_and_back(Bf16(), np.array([np.finfo(np.float32).max], np.float32))


# --- folded without being expanded ----------------------------------------------------------


@pytest.mark.parametrize("spec", EVERY, ids=name_of)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_fold_to_the_same_bits_as_the_whole(spec: EncodingSpec | None, size: int) -> None:
    """Checked, measured and added tile by tile, an encoded update is what it would be expanded."""
    encoding = encoding_for(spec, size)
    file = encoded(encoding, normal(size))
    whole, tiled = Fold(size, GRID), Fold(size, GRID)
    for running, update in ((whole, lambda: decoded(encoding, file)), (tiled, lambda: encoding.tiles(file))):
        running.add(update(), 3)
        running.add(update(), 7, scale=0.3)

    np.testing.assert_array_equal(tiled.sums, whole.sums)
    assert tiled.sums.any()
    assert (tiled.weight, tiled.count) == (whole.weight, whole.count)
    measured, expected = (
        fold.check(encoding.tiles(file), 1, GRID),
        fold.check(decoded(encoding, file), 1, GRID),
    )
    assert measured.max_abs == expected.max_abs
    assert measured.norm == pytest.approx(expected.norm, rel=1e-5)


@given(st.lists(st.tuples(small, lossy, st.integers(1, 2**20)), min_size=1, max_size=8), st.randoms())
def test_encoded_updates_fold_in_any_order(updates: list[tuple[Flat, EncodingSpec, int]], random: Any) -> None:
    """Updates in one encoding or another: the order in which they arrive changes no bit."""
    size = min(values.size for values, _, _ in updates)
    sums = []
    for _ in range(2):
        running = Fold(size, GRID)
        for values, spec, weight in updates:
            encoding = encoding_for(spec, size)
            running.add(encoding.tiles(encoded(encoding, values[:size])), weight)
        sums.append(running.sums.tobytes())
        random.shuffle(updates)

    assert sums[0] == sums[1]


@pytest.mark.parametrize("spec", EVERY, ids=name_of)
def test_no_tile_is_larger_than_a_tile(spec: EncodingSpec | None) -> None:
    """However large the blocks are: what folds them has buffers of one size."""
    specs = [spec, spec.model_copy(update={"block": 32768})] if isinstance(spec, Int8 | Int4) else [spec]
    for one in specs:
        encoding = encoding_for(one, 3 * TILE + 5)
        file = encoded(encoding, normal(encoding.size))

        assert max(values.size for _, values in encoding.tiles(file)) <= TILE


# --- what a hostile client may send ---------------------------------------------------------


def forged(spec: EncodingSpec, array: str, values: object, size: int = 100) -> tuple[Encoding, File]:
    """A good file, in which an array begins otherwise."""
    encoding = encoding_for(spec, size)
    file = encoded(encoding, normal(size))
    lies = np.atleast_1d(np.asarray(values))
    encoding.layout.views(file)[array][: lies.size] = lies
    return encoding, file


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1e-30, 3e38])
@pytest.mark.parametrize("spec", [Int8(block=64), Int4(block=64)], ids=name_of)
def test_an_impossible_scale_is_refused(spec: EncodingSpec, scale: float) -> None:
    """Before any value is folded, whether it is measured, added or expanded."""
    encoding, file = forged(spec, "scales", [0.5, scale])
    running = Fold(encoding.size, GRID)
    with pytest.raises(Refused, match="scale"):
        fold.check(encoding.tiles(file), 1, GRID)
    with pytest.raises(Refused, match="scale"):
        running.add(encoding.tiles(file), 1)
    with pytest.raises(Refused, match="scale"):
        decoded(encoding, file)

    assert (running.count, running.weight, running.sums.any()) == (0, 0, False)


@pytest.mark.parametrize(
    "places",
    [[-1], [-(2**31)], [5, 5], [7, 6], [*range(9), 100], [*range(9), 2**31 - 1], [0] * 10, [2**31 - 1, -(2**31)]],
    ids=str,
)
def test_impossible_places_are_refused(places: list[int]) -> None:
    """Out of range, not ascending, or twice: a fold that added there would write elsewhere, or lose a value."""
    encoding, file = forged(TopK(ratio=0.1), "places", places)
    running = Fold(encoding.size, GRID)
    with pytest.raises(Refused, match="places"):
        running.add(encoding.tiles(file), 1)

    assert not running.sums.any()


def test_places_out_of_order_across_tiles_are_refused() -> None:
    """The last tile begins where the one before has been."""
    encoding = encoding_for(TopK(ratio=0.5), 4 * TILE)
    file = encoded(encoding, np.ones(4 * TILE, np.float32))
    encoding.layout.views(file)["places"][TILE] = 3
    with pytest.raises(Refused, match="places"):
        next(encoding.tiles(file))


@pytest.mark.parametrize(
    ("spec", "array", "value", "reason"),
    [
        (Bf16(), "values", 0x7FC0, "NaN or Inf"),
        (Bf16(), "values", 0xFF80, "NaN or Inf"),
        (Bf16(), "values", 0x4188, "limits.max_abs"),  # 17
        (Int8(block=64), "scales", 2.0**120, "limits.max_abs"),
        (Int4(block=64), "scales", 2.0**120, "limits.max_abs"),
        (Int8(block=64), "codes", -128, "limits.max_abs"),  # with a scale of 16/127, below
        (TopK(ratio=0.1), "values", math.nan, "NaN or Inf"),
        (TopK(ratio=0.1), "values", -math.inf, "NaN or Inf"),
        (TopK(ratio=0.1), "values", -17.0, "limits.max_abs"),
    ],
    ids=str,
)
def test_limits_hold_for_what_is_decoded(spec: EncodingSpec, array: str, value: object, reason: str) -> None:
    """A value that only decoding shows is held to the job's limits."""
    encoding, file = forged(spec, array, value)
    if array == "codes":
        encoding.layout.views(file)["scales"][:] = 16 / 127
    with pytest.raises(Refused, match=reason):
        fold.check(encoding.tiles(file), 1, GRID)


def test_the_norm_is_that_of_what_is_decoded() -> None:
    """Two values of ten that travel: their norm counts."""
    encoding = encoding_for(TopK(ratio=0.2), 10)
    file = encoded(encoding, np.array([3, 1, 1, -4, 1, 1, 1, 1, 1, 1], np.float32))

    assert fold.check(encoding.tiles(file), 1, GRID).norm == 5.0
    with pytest.raises(Refused, match=r"limits\.max_norm"):
        fold.check(encoding.tiles(file), 1, GRID, max_norm=4.9)


@given(st.data(), lossy, st.integers(1, 100))
def test_no_bytes_crash_the_decoder(data: st.DataObject, spec: EncodingSpec, size: int) -> None:
    """Under the right header any bytes are either refused, or values that expand and fold alike."""
    encoding = encoding_for(spec, size)
    file = encoding.layout.empty_file()
    body = encoding.layout.data_size
    file[-body:] = np.frombuffer(data.draw(st.binary(min_size=body, max_size=body)), np.uint8)
    running = Fold(size, GRID)
    try:
        fold.check(encoding.tiles(file), 1, GRID)
    except Refused:
        return
    running.add(encoding.tiles(file), 1)
    expanded = Fold(size, GRID)
    expanded.add(decoded(encoding, file), 1)

    assert running.sums.tobytes() == expanded.sums.tobytes()


@pytest.mark.parametrize("sent", LOSSY, ids=name_of)
@pytest.mark.parametrize("expected", EVERY, ids=name_of)
def test_an_update_in_another_encoding_is_refused(sent: EncodingSpec, expected: EncodingSpec | None) -> None:
    """The header says so, before a value is read."""
    if sent == expected:
        return
    with pytest.raises(Refused):
        weights.check_header(encoded(encoding_for(sent, 100), normal(100)), encoding_for(expected, 100).layout)


def test_topk_refuses_more_places_than_it_can_count() -> None:
    """Its places are int32."""
    with pytest.raises(BadInput, match="31 bits"):
        encoding_for(TopK(), 2**31)


# --- error feedback -------------------------------------------------------------------------


@pytest.mark.parametrize("spec", LOSSY, ids=name_of)
def test_nothing_is_lost_with_error_feedback(spec: EncodingSpec) -> None:
    """Σ decoded + residual = Σ values: what a round leaves out, a later one carries."""
    size, rounds = 500, 40
    encoding, residual = encoding_for(spec, size), np.zeros(size, np.float32)
    meant, sent, file = np.zeros(size), np.zeros(size), encoding.layout.empty_file()
    for number in range(rounds):
        values = normal(size, seed=number)
        before = values.copy()
        encode_with_feedback(encoding, values, residual, file)
        meant += values
        sent += decoded(encoding, file)
        assert values.tobytes() == before.tobytes()

    np.testing.assert_allclose(sent + residual, meant, atol=1e-6)


@pytest.mark.parametrize("spec", LOSSY, ids=name_of)
def test_error_feedback_brings_the_mean_to_its_goal(spec: EncodingSpec) -> None:
    """The same update again and again: the mean of what was decoded converges to it, and does not without feedback."""
    values, rounds = normal(500), 100
    encoding, residual = encoding_for(spec, 500), np.zeros(500, np.float32)
    fed, plain, file = np.zeros(500), np.zeros(500), encoding.layout.empty_file()
    for _ in range(rounds):
        encode_with_feedback(encoding, values, residual, file)
        fed += decoded(encoding, file)
        encode_with_feedback(encoding, values, None, file)
        plain += decoded(encoding, file)
    error, without = (float(np.linalg.norm(total / rounds - values)) for total in (fed, plain))

    assert error < without / 5


@given(small, small, lossy)
def test_the_residual_is_what_is_left(values: Flat, residual: Flat, spec: EncodingSpec) -> None:
    """Bit by bit: (values + residual) − decoded."""
    size = min(values.size, residual.size)
    values, residual = values[:size], residual[:size].copy()
    encoding = encoding_for(spec, size)
    file = encoding.layout.empty_file()
    total = values + residual
    encode_with_feedback(encoding, values, residual, file)

    assert file.tobytes() == encoded(encoding, total).tobytes()
    np.testing.assert_array_equal(residual, total - decoded(encoding, file))


def test_a_refused_update_leaves_the_residual_as_it_was() -> None:
    """A client that diverged once begins the next round with what it had."""
    encoding, residual = encoding_for(Int8(), 9), normal(9)
    before, values = residual.copy(), normal(9)
    values[4] = np.nan
    with pytest.raises(Refused):
        encode_with_feedback(encoding, values, residual, encoding.layout.empty_file())

    assert residual.tobytes() == before.tobytes()


# --- models as differences ------------------------------------------------------------------


@given(small, small, st.one_of(st.none(), lossy), st.booleans())
def test_a_rebuilt_model_has_the_committed_bits(old: Flat, new: Flat, spec: EncodingSpec | None, keeps: bool) -> None:
    """Whoever has the old model's bits and the file has the new one's: old + decoded, on both sides."""
    size = min(old.size, new.size)
    old, new = old[:size], new[:size].copy()
    before, wanted = old.copy(), new - old
    encoding = encoding_for(spec, size)
    file = encoding.layout.empty_file()
    residual = np.full(size, 0.25, np.float32) if keeps else None
    if residual is not None:
        wanted += residual
    shrink(old, new, encoding, residual, file)
    received = old.copy()
    rebuild(received, file, encoding)

    assert received.tobytes() == new.tobytes()
    assert old.tobytes() == before.tobytes()
    assert file.tobytes() == encoded(encoding, wanted).tobytes()


@pytest.mark.parametrize("spec", LOSSY, ids=name_of)
def test_a_model_stays_near_the_path_it_would_have_taken(spec: EncodingSpec) -> None:
    """Fifty rounds of differences, with a residual: the model is off by what the last ones left out, and no more."""
    size, rounds = 2000, 50
    encoding = encoding_for(spec, size)
    start = normal(size, seed=99)
    followed, exact, received = start.copy(), start.astype(np.float64), start.copy()
    residual, file = np.zeros(size, np.float32), encoding.layout.empty_file()
    for number in range(rounds):
        step = normal(size, seed=number) + np.float32(0.01)
        exact += step
        old = followed.copy()
        followed += step
        shrink(old, followed, encoding, residual, file)
        rebuild(received, file, encoding)

    assert received.tobytes() == followed.tobytes()
    np.testing.assert_allclose(followed + residual, exact, atol=1e-5)
    moved = float(np.linalg.norm(exact - start))
    assert float(np.linalg.norm(followed - exact)) < moved * (0.15 if isinstance(spec, TopK) else 0.003)


def test_what_is_no_parameter_is_not_touched() -> None:
    """A model's counters are not part of its flat array: a difference leaves them to the model that carries them."""
    layout = layout_of({"fc": ("F32", (70,)), "seen": ("I64", (2,)), "on": ("BOOL", (3,))})
    file = layout.empty_file()
    layout.views(file)["seen"][:] = [-1, 2**60]
    layout.views(file)["on"][:] = [True, False, True]
    layout.flat(file)[:] = normal(70)
    old, new = layout.flat(file).copy(), normal(70, seed=1)
    encoding = encoding_of(Int8(block=8), layout.of_updates())
    delta = encoding.layout.empty_file()
    shrink(old, new, encoding, None, delta)
    rebuild(layout.flat(file), delta, encoding)

    assert layout.views(file)["seen"].tolist() == [-1, 2**60]
    assert layout.views(file)["on"].tolist() == [True, False, True]
    assert layout.flat(file).tobytes() == new.tobytes()


def test_a_model_that_diverged_is_refused_as_it_is() -> None:
    """Neither the model nor the residual is changed: the round can say what it holds."""
    old, new, residual = normal(9), normal(9, seed=1), normal(9, seed=2)
    new[3] = np.inf
    before = (new.tobytes(), residual.tobytes())
    encoding = encoding_for(Int8(), 9)
    with pytest.raises(Refused, match="NaN or Inf"):
        shrink(old, new, encoding, residual, encoding.layout.empty_file())

    assert (new.tobytes(), residual.tobytes()) == before


@pytest.mark.parametrize("spec", EVERY, ids=name_of)
def test_a_model_of_buffers_alone_is_encoded_too(spec: EncodingSpec | None) -> None:
    """Such as one that is frozen, and that a step of the user's own trains or gathers statistics in."""
    encoding = encoding_of(spec, layout_of({"mean": ("F32", (3,))}, {"mean"}))
    values, found = np.array([1, -2, 3], np.float32), np.empty(3, np.float32)
    encoding.decode_into(encoded(encoding, values), found)

    assert found.tolist() == values.tolist()
