"""What a client keeps, in a file and back, and on a silo's disk."""

import os
from pathlib import Path

import numpy as np
import pytest

from services.trainer.slot.client_state import ClientState, OnDisk
from shared.aggregation import weights
from shared.errors import BadInput, Refused
from shared.events import StateRef

MODEL = weights.layout_of({"w": ("F32", (3,)), "n": ("I64", ())})


def test_a_state_comes_back_from_its_file() -> None:
    """Vectors and the client's own tensors, of any dtype; nothing gives no file."""
    state = ClientState(
        control=np.arange(3, dtype=np.float32),
        personal={"head.w": np.ones((2, 2), np.float32), "norm.count": np.array(7, np.int64)},
    )
    file = state.pack()
    assert file is not None
    found = ClientState.unpack(file, MODEL)
    np.testing.assert_array_equal(found.control, state.control)
    assert found.residual is None
    assert {name: tensor.tolist() for name, tensor in found.personal.items()} == {
        "head.w": [[1.0, 1.0], [1.0, 1.0]],
        "norm.count": 7,
    }
    assert ClientState().pack() is None


@pytest.mark.parametrize("name", ["control", "residual"])
def test_a_state_of_another_model_is_refused(name: str) -> None:
    file = ClientState(**{name: np.zeros(4, np.float32)}).pack()  # type: ignore[arg-type]
    assert file is not None
    with pytest.raises(Refused, match=f"of another model: its {name} has shape \\[4\\]"):
        ClientState.unpack(file, MODEL)
    with pytest.raises(Refused, match="not a safetensors file"):
        ClientState.unpack(np.zeros(20, np.uint8), MODEL)


def states(number: int) -> np.ndarray:
    file = ClientState(control=np.full(3, number, np.float32)).pack()
    assert file is not None
    return file


def test_a_disk_keeps_the_last_few_states_and_those_in_use(tmp_path: Path) -> None:
    """For the silo's user alone, and each under its digest."""
    keeper = OnDisk(tmp_path)
    first = keeper.save("job", "north", states(0))
    os.utime(next((tmp_path / "north" / "job").iterdir()), (0, 0))
    assert keeper.load("job", "north", first) is not None
    refs = [keeper.save("job", "north", states(number)) for number in range(1, 8)]
    folder = tmp_path / "north" / "job"
    assert {path.name for path in folder.iterdir()} == {
        f"state-{ref.digest[:12]}.safetensors" for ref in (first, *refs)
    }
    os.utime(folder / f"state-{first.digest[:12]}.safetensors", (0, 0))
    keeper.save("job", "north", states(9))
    assert keeper.load("job", "north", first) is None
    assert (folder.stat().st_mode & 0o777, next(folder.iterdir()).stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_disk_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "north").touch()
    with pytest.raises(BadInput, match=r"FEDQ_STATE_DIR: .* cannot be made"):
        OnDisk(tmp_path).save("job", "north", states(0))
    assert OnDisk(tmp_path).load("job", "south", StateRef(size=1, digest="a" * 64)) is None
