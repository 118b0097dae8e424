"""Compressed updates, read and rounded as torch and safetensors do."""

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared.aggregation.weights import Flat
from shared.job.catalog.compression import Bf16, EncodingSpec
from tests.unit.test_compression import EVERY, encoded, encoding_for, name_of, normal, there_and_back, vectors


@pytest.mark.parametrize("spec", EVERY, ids=name_of)
def test_the_reference_library_reads_compressed_files(spec: EncodingSpec | None) -> None:
    """safetensors itself finds the same arrays, bfloat16 among them."""
    encoding = encoding_for(spec, 100)
    file = encoded(encoding, normal(100))
    found = safetensors.torch.load(file.tobytes())

    assert found.keys() == encoding.layout.views(file).keys()
    for name, view in encoding.layout.views(file).items():
        bits = found[name].view(torch.uint16) if found[name].dtype == torch.bfloat16 else found[name]
        np.testing.assert_array_equal(bits.numpy(), view)


@given(vectors)
def test_bfloat16_rounds_as_torch_does(values: Flat) -> None:
    """Nearest, ties to even, bit for bit; so it is within 2^-8 of each value."""
    expected = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()

    assert there_and_back(Bf16(), values).tobytes() == expected.tobytes()


@given(arrays.arrays(np.uint16, 64), st.sampled_from([0x7FFF, 0x8000, 0x8001]))
def test_bfloat16_rounds_ties_to_even(upper: np.ndarray, lower: int) -> None:
    """Values half way between two, and next to it."""
    bits = upper.astype(np.uint32) << 16 | np.uint32(lower)
    values = bits.view(np.float32)
    values = values[np.abs(values) < 3e38]
    expected = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()

    assert there_and_back(Bf16(), values).tobytes() == expected.tobytes()
