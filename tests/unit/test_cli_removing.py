"""What `fedq rm` takes for a job that can be removed, where the bucket alone knows of it."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.cli.jobs import removing
from services.cli.report import history, tables
from shared import names
from shared.errors import BadInput
from shared.job import job_spec
from tests.simulation.fakes import FakeBlobs

JOB = "t-abc234"
SPEC = job_spec.parse(
    {"name": "t", "model": {"name": "softmax"}, "data": {"name": "digits", "clients": 2}, "rounds": {"count": 1},
     "pool": "cpu"}
)  # fmt: skip


class Forgetful:
    """A ledger that was emptied: it knows no job."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    def job(self, _job: str) -> None:
        return None

    def jobs(self) -> list[Any]:
        return []

    def remove(self, job: str) -> str:
        self.removed.append(job)
        return "ok"


def servers() -> Any:
    return SimpleNamespace(blobs=FakeBlobs(), ledger=Forgetful(), bus=SimpleNamespace(delete=lambda _queue: None))


@pytest.mark.parametrize("key", [names.job_blob(JOB), names.result_blob(JOB), names.wanted_blob(JOB)])
@pytest.mark.parametrize("text", [b"{", b"[]", b"", b"\xff"])
def test_a_job_whose_records_are_damaged_is_removed(key: str, text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """No command could go on with it, and nothing else would take it away."""
    found = servers()
    found.blobs.put_json(names.job_blob(JOB), {"job": JOB, "spec": SPEC.model_dump(mode="json")})
    found.blobs.put(key, text)
    found.blobs.put(names.job_blob("t-abc235"), b"another's")
    removing.remove(found, [JOB], [], yes=True)

    assert list(found.blobs.held) == [names.job_blob("t-abc235")]
    assert found.ledger.removed == [JOB]
    assert capsys.readouterr().out.startswith(f"removed {JOB}: ")


def test_a_job_that_may_go_on_is_not_removed() -> None:
    """Its records are as they should be, and say of no end."""
    found = servers()
    found.blobs.put_json(names.job_blob(JOB), {"job": JOB, "spec": SPEC.model_dump(mode="json")})
    with pytest.raises(BadInput, match=f"job {JOB} is queued: end it with"):
        removing.remove(found, [JOB], [], yes=True)
    assert found.blobs.held


def test_several_statuses_in_one_word_are_explained() -> None:
    """Commas are what many other programs take."""
    with pytest.raises(BadInput, match=r"--status failed,stopped is not known; .*; give --status once for each$"):
        removing.check_statuses(["failed,stopped"])


def test_a_job_of_unknown_age_is_listed_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    """One that Redis had lost before its first round: no record says when it was started."""
    blobs = FakeBlobs()
    blobs.put_json(names.job_blob(JOB), {"job": JOB, "spec": SPEC.model_dump(mode="json")})
    found = history.record(blobs, JOB)  # type: ignore[arg-type]
    ledger = SimpleNamespace(jobs=lambda: [found], now=lambda: 1796067535.0)
    tables.jobs(SimpleNamespace(ledger=ledger), [], None, False)  # type: ignore[arg-type]

    assert " d " not in capsys.readouterr().out
