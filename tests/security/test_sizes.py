"""A blob's size is what somebody says of it: it is held to what job and node allow before a byte is kept for it."""

from pathlib import Path
from typing import Any

import pytest

from services.trainer.slot.model_cache import Cache
from services.trainer.train_task import check_sizes, train_tasks
from shared.errors import Refused
from shared.events import BlobRef, EvaluateModel, RoundStart, StateRef
from tests.by_hand import Federation, digits

JOB = "digits-abc234"
GIB = 1 << 30


def blob(size: int, job: str = JOB) -> BlobRef:
    return BlobRef(key=f"jobs/{job}/rounds/0001/model-000000000000.safetensors", size=size, digest="0" * 64)


def test_a_forged_base_of_six_gibibytes_reserves_nothing(federation: Federation) -> None:
    """A58: refused by the job's limit, and where a forged job allows all, by the node's own."""
    federation.start("--client", "north", FEDQ_CACHE_MB="64")
    for number, (limits, reason) in enumerate(
        (({}, "limits.max_model_mb is 1024"), ({"max_model_mb": 2**20}, "FEDQ_CACHE_MB lets this trainer keep 64")), 1
    ):
        spec = digits(data={"name": "own_job:Ward"}, pool=None, silos=["north"], select={"name": "all"}, limits=limits)
        federation.ask(number, "north", base=blob(6 * GIB, federation.job), spec=spec, group="north")
        assert reason in (federation.update().error or "")
    assert sum(path.stat().st_blocks * 512 for path in (federation.directory / "cache").rglob("*")) < 1 << 20


@pytest.mark.parametrize(
    "part",
    [
        {"base": blob(GIB + 1)},
        {"delta": blob(GIB + 1)},
        {"server": blob(4 * GIB + 1)},
        {"states": (StateRef(size=4 * GIB + 1, digest="0" * 64),)},
    ],
    ids=lambda part: next(iter(part)),
)
def test_each_part_of_an_order_has_its_bound(part: dict[str, Any]) -> None:
    """A58: what is kept beside the model as well; a model of the longest there may be passes."""
    asked = {
        "job": JOB, "group": "cpu", "round": 1, "attempt": 1, "cohort": ("client-1",), "spec": digits(),
        "deadline": 0.0, "base": blob(GIB), "delta": blob(GIB), "server": blob(4 * GIB),
        "states": (StateRef(size=4 * GIB, digest="0" * 64),),
    }  # fmt: skip
    (fine,), (long,) = (list(train_tasks(RoundStart.model_validate(event), 0)) for event in (asked, asked | part))

    check_sizes(fine)
    with pytest.raises(Refused, match=r"limits\.max_model_mb is 1024"):
        check_sizes(long)


def test_a_model_to_evaluate_has_its_bound() -> None:
    """A58: of an evaluation too."""
    event = EvaluateModel(job=JOB, group="cpu", round=1, model=blob(GIB + 1), spec=digits())
    with pytest.raises(Refused, match=r"the model has 1024 MB; limits\.max_model_mb is 1024"):
        check_sizes(event)


def test_a_file_of_the_cache_that_was_changed_is_fetched_again(servers: Any, tmp_path: Path) -> None:
    """One flipped byte, by the disk or by another process of the node; looked for once by each that opens it."""
    content, blobs = bytes(range(256)) * 4096, servers.blobs()
    ref = blobs.put(f"jobs/{JOB}/rounds/0001/model", content)
    assert Cache(tmp_path, GIB, blobs).get(ref).tobytes() == content
    (path,) = tmp_path.glob("*.safetensors")
    with path.open("r+b") as file:
        file.seek(777_777)
        file.write(b"\x00" if content[777_777] else b"\x01")
    second, third = Cache(tmp_path, GIB, blobs), Cache(tmp_path, GIB, blobs)

    assert second.get(ref).tobytes() == content
    assert second.received == len(content)
    assert third.get(ref).tobytes() == content
    assert third.received == 0
