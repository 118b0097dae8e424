"""Records of the bucket that somebody has changed by hand: whatever they say, they are read or refused."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli.report import history, results, rows
from services.cli.verify import snapshot
from shared import names
from shared.errors import Refused
from shared.job import job_spec
from shared.record import archive
from shared.s3 import json_records
from shared.s3.store import Blobs, NotFound

JOB = "t-abc234"
SPEC = job_spec.parse(
    {"name": "t", "model": {"name": "softmax"}, "data": {"name": "digits", "clients": 2}, "rounds": {"count": 1},
     "pool": "cpu"}
)  # fmt: skip
MODEL = {"key": f"jobs/{JOB}/rounds/0001/model-{'0' * 12}.safetensors", "size": 8, "digest": "0" * 64}
RECORDS: dict[str, dict[str, Any]] = {
    names.job_blob(JOB): {"job": JOB, "spec": SPEC.model_dump(mode="json")},
    names.manifest_blob(JOB, 1): {
        "job": JOB, "round": 1, "attempt": 1, "cohort": ["client-0", "client-1"], "model": MODEL,
        "updates": [
            {"client": "client-0", "blob": MODEL, "examples": 3, "norm": 1.0, "timings": {"total": 1.0},
             "metrics": {"a": 1.0}},
        ],
        "rejected": {"client-1": "holds NaN"}, "unanswered": [],
        "metrics": {"client_loss": 1.5}, "traffic": {"files": 1, "up": 8, "up_plain": 8, "down": 0}, "seconds": 1.5,
    },
    names.evaluation_blob(JOB, 1): {
        "model": "0" * 64, "examples": 5, "metrics": {"loss": 0.5}, "traffic": {"down": 8},
        "clients": {"client-0": {"loss": 0.5, "examples": 5}},
    },
    names.result_blob(JOB): {
        "job": JOB, "outcome": "finished", "reason": "", "rounds": 1, "metrics": {"loss": 0.5}, "model": MODEL,
        "seconds": 2.5, "started": 1.0, "ended": 3.5,
    },
}  # fmt: skip
ODD = [None, True, -1, 10**400, 1.5, float("inf"), "", "\ud800\x1b[2J", [], [None], [{}], {}, {"\ud800": [{}]}]


class Kept:
    """A store that holds these records and nothing else, in place of one whose records a test would have to change."""

    def __init__(self, found: dict[str, dict[str, Any]]) -> None:
        self._texts = {key: json.dumps(record).encode() for key, record in found.items()}

    def get_json(self, key: str) -> dict[str, Any]:
        if key not in self._texts:
            raise NotFound(f"{key} is not there")
        return json_records.loads(key, self._texts[key])

    def get(self, ref: Any) -> Any:
        raise NotFound(f"{ref.key} is not there")

    def folders(self, _prefix: str) -> list[str]:
        return ["0001"]

    def exists(self, key: str) -> bool:
        return key in self._texts


def read_all(found: dict[str, dict[str, Any]]) -> None:
    """Reads what `show`, `results`, `watch`, `verify` and the tables read."""
    blobs = cast(Blobs, Kept(found))
    spec = history.spec(blobs, JOB)
    assert spec is None or spec.keys() == SPEC.model_dump().keys()
    rounds = history.rounds(blobs, JOB, 1)
    rows.save(rounds, Path(os.devnull))
    results._traffic(rounds)
    for past in rounds:
        list(past.committed.lists())
        list(past.events())
        assert all(isinstance(value, float) for value in past.figures.values())
        assert all(isinstance(value, int) for value in past.traffic.values())
        assert all(isinstance(value, float) for own in past.evaluated.values() for value in own.values())
    history.end(blobs, JOB)
    history.record(blobs, JOB)
    snapshot.final(blobs, archive.result(blobs, JOB))


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    entries: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in entries:
        yield (*path, name)
        yield from places(inner, (*path, name))


def test_records_as_they_are_written_are_read() -> None:
    """The rest of these tests say something because this one passes."""
    read_all(RECORDS)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(places(RECORDS))), st.sampled_from([*ODD, "gone"]))
def test_no_record_is_more_than_refused(place: tuple[str, ...], value: Any) -> None:
    """A46: each part of each record missing, or of another kind: `Refused`, or it changes nothing that is read."""
    found = copy.deepcopy(RECORDS)
    within: Any = found
    for name in place[:-1]:
        within = within[name]
    if value == "gone":
        del within[place[-1]]
    else:
        within[place[-1]] = value
    if not all(isinstance(record, dict) for record in found.values()):
        return
    said = f"jobs/{JOB}/"
    try:
        read_all(found)
    except Refused as refused:
        said = str(refused)
    assert said.startswith(f"jobs/{JOB}/")


@pytest.mark.parametrize("field", ["started", "ended", "metrics"])
def test_an_end_is_refused_by_whoever_reads_it_first(field: str) -> None:
    """A46: `rm`, `stop` and `start --resume` read of a job that Redis has lost how it ended, and nothing else."""
    found = copy.deepcopy(RECORDS)
    found[names.result_blob(JOB)][field] = {"loss": 10**400} if field == "metrics" else 10**400
    with pytest.raises(Refused, match=r"result\.json is no such record: int too large"):
        history.record(cast(Blobs, Kept(found)), JOB)


@pytest.mark.parametrize("count", [-1, "8", 1.5, 10**400, True])
def test_bytes_that_are_none_are_refused(count: Any) -> None:
    """What is summed up over the rounds is looked at where it is read."""
    found = copy.deepcopy(RECORDS)
    found[names.manifest_blob(JOB, 1)]["traffic"]["up"] = count
    with pytest.raises(Refused, match=r"traffic.up: no number of files or bytes"):
        read_all(found)


#: The records of a job that has not ended: what is wanted of an ended one is not asked.
LIVE = {key: record for key, record in RECORDS.items() if key != names.result_blob(JOB)}


@pytest.mark.parametrize("request_", [{"wanted": ["paused"]}, {"wanted": "asleep"}, {"reason": "mine"}])
def test_a_damaged_request_is_refused(request_: dict[str, Any]) -> None:
    """It would go on into Redis, which takes words alone."""
    with pytest.raises(Refused, match=r"wanted\.json is no such record: wanted is"):
        history.record(cast(Blobs, Kept(LIVE | {names.wanted_blob(JOB): request_})), JOB)


def test_a_damaged_request_keeps_nobody_from_an_ended_job() -> None:
    """`rm` and `start --resume` work on it all the same."""
    record = history.record(cast(Blobs, Kept(RECORDS | {names.wanted_blob(JOB): {"wanted": "asleep"}})), JOB)

    assert record is not None
    assert record.status == "finished"


@pytest.mark.parametrize(("reason", "shown"), [("a\x1b[31mb", "a\ufffd[31mb"), (5, "5")])
def test_the_reason_of_a_request_only_shows(reason: Any, shown: str) -> None:
    """A terminal obeys nothing of it."""
    found: dict[str, Any] = dict(LIVE)
    found[names.wanted_blob(JOB)] = {"wanted": "paused", "reason": reason}
    record = history.record(cast(Blobs, Kept(found)), JOB)

    assert record is not None
    assert (record.status, record.detail, record.wanted.reason) == ("paused", shown, shown)
