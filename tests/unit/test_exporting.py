"""The header of an exported model: more is said in it, and nothing else is changed."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from services.cli.report import results
from shared.aggregation import weights
from shared.events import BlobRef
from tests.rounds import past_round

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
tensors = st.dictionaries(st.text("abü.", min_size=1, max_size=6), shapes, min_size=1, max_size=4)


@settings(deadline=None)
@given(tensors, st.data(), st.dictionaries(st.sampled_from(["fedq.job", "fedq.model"]), st.text(), max_size=2))
def test_tensors_and_what_the_file_said_already_stay(
    found: dict[str, tuple[int, ...]], data: st.DataObject, about: dict[str, str]
) -> None:
    """A file with buffers names them in its metadata; safetensors reads the same values as before."""
    buffers = data.draw(st.sets(st.sampled_from(sorted(found))))
    layout = weights.layout_of({name: ("F32", shape) for name, shape in found.items()}, buffers)
    file = layout.empty_file()
    layout.flat(file)[:] = np.arange(layout.size)
    header, body = results._header(file, about)
    whole = np.frombuffer(header + body.tobytes(), np.uint8)

    assert len(header) % 64 == 0
    before, after = (json.loads(text[8:]) for text in (layout.header, header))
    metadata = after.pop("__metadata__", {})
    assert metadata == {**before.pop("__metadata__", {}), **about}
    assert after == before
    assert {name: value.tolist() for name, value in load(whole.tobytes()).items()} == {
        name: value.tolist() for name, value in layout.views(file).items()
    }


def test_all_values_are_strings() -> None:
    """Of a job whose data are described, and of one whose are not; the round is the one that made the model."""
    models = [BlobRef(key=f"jobs/a-aaaaaa/{number}", size=9, digest=f"{number:064x}") for number in range(3)]
    inputs = {
        "shape": [2],
        "classes": 2,
        "labels": ["nein", "ja"],
        "offset": [0.5, -1.0],
        "scale": None,
        "digest": None,
    }
    rounds = [
        past_round(number, model=model.model_dump(), **({"inputs": inputs} if number == 0 else {}))
        for number, model in enumerate(models)
    ]
    told = results.metadata_of("a-aaaaaa", {"model": {"name": "mlp", "hidden": [8]}}, rounds, models[1])

    assert all(isinstance(value, str) for value in told.values())
    assert json.loads(told["fedq.inputs"]) == inputs
    assert json.loads(told["fedq.model"]) == {"name": "mlp", "hidden": [8]}
    assert (told["fedq.round"], told["fedq.digest"], told["fedq.job"]) == ("1", models[1].digest, "a-aaaaaa")
    assert "fedq.inputs" not in results.metadata_of("a-aaaaaa", {"model": {}}, rounds[1:], models[1])
