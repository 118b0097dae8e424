"""A model that begins with a given file: it goes up with its job, from where the job file lies."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from shared import names
from shared.events import BlobRef
from tests.conftest import Servers
from tests.scripted import Fedq

JOB = "begun-aaaaaa"


@pytest.fixture
def fedq(servers: Servers, tmp_path: Path) -> Fedq:
    return Fedq(servers.environment(), tmp_path)


def write(folder: Path, start: str = "base.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "job.yaml"
    file.write_text(
        f"name: begun\nmodel: {{name: softmax, start: {start}}}\ndata: {{name: digits, clients: 2}}\n"
        "rounds: {count: 1}\npool: cpu\n"
    )
    return file


def test_the_file_lies_beside_the_job_when_it_is_announced(fedq: Fedq, servers: Servers, tmp_path: Path) -> None:
    """Found from the job file's folder, not from where the command was given; with its digest, for the trainers."""
    file = write(tmp_path / "jobs")
    tensors = {"head.weight": np.ones((10, 64), np.float32), "head.bias": np.zeros(10, np.float32)}
    (file.parent / "base.safetensors").write_bytes(save(tensors))

    assert fedq("start", str(file), "--id", JOB).code == 0
    size, about = servers.blobs().stat(names.start_blob(JOB))
    assert (size, len(about["digest"])) == ((file.parent / "base.safetensors").stat().st_size, 64)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), (b"\x80\x04pickle", "is no safetensors file"), (b"", "is no safetensors")],
)
def test_a_file_that_is_none_is_said_before_anything_is_done(
    fedq: Fedq, servers: Servers, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """By validate as by start, and no job is left behind."""
    file = write(tmp_path / "jobs")
    if content is not None:
        (file.parent / "base.safetensors").write_bytes(content)

    for command in (("validate", str(file)), ("start", str(file), "--id", JOB)):
        done = fedq(*command)
        assert done.code == 2
        assert done.err.startswith("error: model.start: ")
        assert reason in done.err
    assert servers.ledger().job(JOB) is None
    assert not servers.blobs().list(f"jobs/{JOB}/")


def test_what_was_put_up_is_what_was_given(fedq: Fedq, servers: Servers, tmp_path: Path) -> None:
    """To the bit."""
    file = write(tmp_path / "jobs")
    tensors = {"head.weight": np.full((10, 64), 0.25, np.float32), "head.bias": np.arange(10, dtype=np.float32)}
    (file.parent / "base.safetensors").write_bytes(save(tensors))
    fedq("start", str(file), "--id", JOB)
    client, key = servers.blobs(), names.start_blob(JOB)
    size, about = client.stat(key)
    found = load(client.get(BlobRef(key=key, size=size, digest=about["digest"])).tobytes())
    assert all(np.array_equal(found[name], tensor) for name, tensor in tensors.items())
