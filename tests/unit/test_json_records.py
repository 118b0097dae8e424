"""Records of the object store: strict JSON when written, and never believed when read."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import names
from shared.errors import Refused
from shared.record import archive
from shared.s3 import json_records
from shared.s3.json_records import reading
from shared.s3.store import NotFound

JOB = "digits-abc234"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def tried(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What was read, and why it was refused; any other error is the test's."""
    try:
        return read(), None
    except Refused as refused:
        return None, str(refused)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=9), values, max_size=4))
def test_every_record_is_strict_json(record: dict[str, Any]) -> None:
    """Any parser reads it, and what is a finite number is the same number."""
    text = json_records.dumps(record)
    found = json.loads(text, parse_constant=no_constant)

    assert found == json_records.finite(record)
    assert json_records.loads("k", text.encode()) == found


def test_a_figure_that_is_no_number_is_null_and_read_back_as_nan() -> None:
    text = json_records.dumps({"metrics": {"loss": math.nan, "norm": -math.inf, "accuracy": 0.5}}, indent=2)
    found = json_records.loads("k", text.encode())

    assert found == {"metrics": {"loss": None, "norm": None, "accuracy": 0.5}}
    assert [math.isnan(value) for value in json_records.figures(found["metrics"]).values()] == [True, True, False]


def test_the_nan_of_an_earlier_writer_is_read_as_null() -> None:
    assert json_records.loads("k", b'{"loss": NaN, "a": -Infinity}') == {"loss": None, "a": None}


def test_a_number_that_no_float_holds_is_read_as_null() -> None:
    """JSON has it, and Python would make it infinite."""
    found = json_records.loads("k", b'{"a": 1e999, "b": [-1e999, 1e308, 1.5, 7]}')
    assert found == {"a": None, "b": [None, 1e308, 1.5, 7]}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()) | st.just(b"[" * 100_000))
def test_any_blob_is_a_record_or_refused_by_its_key(body: bytes) -> None:
    found, refusal = tried(lambda: json_records.loads("jobs/j/x.json", body))
    assert isinstance(found, dict) or refusal == "jobs/j/x.json: not a JSON object"


class Held:
    """A store that holds some records; what no test asks of it is not there."""

    def __init__(self, **kept: Any) -> None:
        self.kept = kept

    def get_json(self, key: str) -> Any:
        if key not in self.kept:
            raise NotFound(key)
        return self.kept[key]

    def exists(self, key: str) -> bool:
        return key in self.kept

    def folders(self, prefix: str) -> list[str]:
        return sorted({key.removeprefix(prefix).partition("/")[0] for key in self.kept})


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["wanted", "reason", "spec", "outcome", "rounds", "metrics"]), values))
def test_readers_of_a_job_refuse_what_is_no_such_record(found: dict[str, Any]) -> None:
    """Missing parts, parts of another kind, values nobody knows: the key is named, and nothing else is raised."""
    for key, read in (
        (names.wanted_blob(JOB), lambda store: archive.wanted(store, JOB)),
        (names.job_blob(JOB), lambda store: archive.spec(store, JOB)),
        (names.result_blob(JOB), lambda store: archive.result(store, JOB)),
    ):
        _, refusal = tried(lambda key=key, read=read: read(Held(**{key: found})))
        assert refusal is None or refusal.startswith(f"{key} is no such record: ")
        assert refusal is None or refusal.isprintable()


@pytest.mark.parametrize(
    ("take", "reason"),
    [
        (lambda found: found["opened"], "opened is missing"),
        (lambda found: float(found["round"]), "float() argument must be"),
        (lambda found: found["cohort"]["x"], "indices must be"),
        (lambda found: found["round"].items(), "no attribute"),
    ],
)
def test_a_part_that_is_not_there_is_named_with_the_key(take: Any, reason: str) -> None:
    with pytest.raises(Refused) as caught, reading("jobs/j/manifest.json"):
        take({"round": None, "cohort": []})

    assert str(caught.value).startswith("jobs/j/manifest.json is no such record: ")
    assert reason in str(caught.value)
