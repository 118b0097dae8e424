"""What lies in a node's cache may be anything; a model is what its digest says, or it is fetched."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.trainer.slot.model_cache import Cache, Shortcut
from shared.events import BlobRef
from tests.simulation.fakes import FakeBlobs

GIB = 1 << 30
CONTENT = bytes(range(256)) * 16
SPOILT: dict[str, Callable[[Path], Any]] = {
    "short": lambda path: path.write_bytes(CONTENT[1:]),
    "empty": lambda path: path.write_bytes(b""),
    "changed": lambda path: path.write_bytes(b"x" + CONTENT[1:]),
    "another file": lambda path: path.symlink_to("/etc/passwd"),
    "itself": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
    "no folder": lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_file_that_is_not_the_models_is_fetched(tmp_path: Path, what: str) -> None:
    """The folder taken away among them, as by who tidies /tmp."""
    blobs: Any = FakeBlobs()
    ref = blobs.put("model", CONTENT)
    cache = Cache(tmp_path / "cache", GIB, blobs)
    SPOILT[what](tmp_path / "cache" / f"{ref.digest}.safetensors")

    assert cache.get(ref).tobytes() == CONTENT
    assert cache.received == len(CONTENT)


@pytest.mark.parametrize("what", ["another file", "itself", "a folder"])
def test_what_is_no_file_of_the_cache_stays_and_hinders_nobody(tmp_path: Path, what: str) -> None:
    """Though it has the name of one, and the cache is full."""
    blobs: Any = FakeBlobs()
    ref = blobs.put("model", CONTENT)
    strange = tmp_path / "cache" / f"{'0' * 64}.safetensors"
    part = strange.with_suffix(".part")
    part.mkdir(parents=True)
    part.parent.chmod(0o700)
    cache = Cache(tmp_path / "cache", len(CONTENT), blobs)
    SPOILT[what](strange)

    assert cache.get(ref).tobytes() == CONTENT
    assert strange.is_symlink() or strange.is_dir()


def test_an_empty_blob_is_one(tmp_path: Path) -> None:
    """Nothing can be mapped of it."""
    blobs: Any = FakeBlobs()
    ref = blobs.put("model", b"")
    cache = Cache(tmp_path / "cache", GIB, blobs)
    (tmp_path / "cache" / f"{ref.digest}.safetensors").touch()

    assert cache.get(ref).tobytes() == b""


def test_a_difference_that_is_longer_than_all_models_reserves_nothing(tmp_path: Path) -> None:
    """The model is fetched whole."""
    blobs: Any = FakeBlobs()
    before, ref = blobs.put("before", CONTENT), blobs.put("model", CONTENT[::-1])
    cache = Cache(tmp_path, GIB, blobs)
    cache.get(before)
    huge = BlobRef(key="delta", size=2**53, digest="0" * 64)
    shortcut = Shortcut(before.digest, huge, lambda previous, _: np.flip(previous))

    assert cache.get(ref, shortcut).tobytes() == CONTENT[::-1]


def test_a_long_jobs_models_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are: each new one looks at all that are there, before its round is trained."""
    monkeypatch.setattr("services.trainer.slot.model_cache.MOST", 3)
    blobs: Any = FakeBlobs()
    cache = Cache(tmp_path, GIB, blobs)
    refs = [blobs.put(f"model-{number}", bytes([number]) * 8) for number in range(9)]
    for number, ref in enumerate(refs):
        assert cache.get(ref).tobytes() == bytes([number]) * 8
        os.utime(tmp_path / f"{ref.digest}.safetensors", (number, number))

    kept = {path.stem for path in tmp_path.glob("*.safetensors")}
    assert kept == {ref.digest for ref in refs[-3:]}
