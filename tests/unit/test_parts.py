"""Records that tell of each client: what is written is read again, whole or in pieces, however long it is."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import names
from shared.errors import Refused
from shared.record import parts
from shared.s3 import json_records
from shared.s3.store import MAX_RECORD, NotFound
from tests.simulation.fakes import FakeBlobs

KEY = names.manifest_blob("many-abc234", 7)
FIELDS = ("cohort", "carried", "updates", "rejected")

client = st.integers(0, 60).map("client-{:02d}".format)
clients = st.lists(client, unique=True, max_size=60)
documents = st.builds(
    lambda cohort, carried, updates, rejected: {
        "job": "many-abc234",
        "cohort": cohort,
        "carried": dict.fromkeys(carried, 3),
        "updates": [{"client": one, "said": "x" * size} for one, size in updates.items()],
        "rejected": {one: f"why {one}" for one in rejected},
        "metrics": {"loss": 0.5},
    },
    clients,
    clients,
    st.dictionaries(client, st.integers(0, 300), max_size=60),
    clients,
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is long from four clients on, and an object from a thousand bytes."""
    monkeypatch.setattr(parts, "FEW", 2)
    monkeypatch.setattr(parts, "MOST", 4)
    monkeypatch.setattr(parts, "LONGEST", 1000)


def stored(document: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The bucket, and what lies under the record's own key."""
    blobs: Any = FakeBlobs()
    head = parts.split(blobs, KEY, document, FIELDS)
    blobs.put_json(KEY, head)
    return blobs, head


def sorted_by_client(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says, without an order."""
    found = dict(document)
    found["cohort"] = sorted(found["cohort"])
    found["updates"] = sorted(found["updates"], key=lambda update: str(update["client"]))
    return found


@pytest.mark.usefixtures("small")
@given(document=documents)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_is_read(document: dict[str, Any]) -> None:
    """Whole; in pieces that hold all there is of their clients, in order, each short; and its counts without either."""
    blobs, head = stored(document)
    pieces = list(parts.pieces(blobs, KEY, head))
    told = [
        {*piece["cohort"], *piece["carried"], *piece["rejected"], *(update["client"] for update in piece["updates"])}
        for piece in pieces
    ]

    assert sorted_by_client(parts.whole(blobs, KEY)) == sorted_by_client(document)
    assert {field: parts.count(head, field) for field in FIELDS} == {field: len(document[field]) for field in FIELDS}
    assert all(max(before) < min(after) for before, after in itertools.pairwise(told))
    for ref, one in zip(head.get("parts", ()), told, strict=False):
        assert len(one) <= 4
        assert ref["size"] <= 1000 or len(one) == 1


def test_a_short_record_is_one_object_as_it_always_was() -> None:
    document = {"job": "many-abc234", "cohort": ["b", "a"], "updates": [{"client": "a"}], "rejected": {}}
    blobs, head = stored(document)

    assert head == document == blobs.get_json(KEY)
    assert list(blobs.held) == [KEY]
    assert list(parts.pieces(blobs, KEY, head)) == [document]


def test_few_clients_that_tell_much_are_cut_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is long is a matter of bytes too: nothing is written that is not read."""
    monkeypatch.setattr(parts, "LONGEST", 100_000)
    updates = [{"client": f"client-{number:03d}", "said": "x" * 1000} for number in range(parts.FEW + 1)]
    blobs, head = stored({"cohort": [], "updates": updates})

    assert len(head["parts"]) > 1
    assert parts.whole(blobs, KEY)["updates"] == updates


def cut() -> tuple[Any, dict[str, Any]]:
    return stored({"cohort": [f"client-{number}" for number in range(9)], "rejected": {}})


def other_key(blobs: Any, head: dict[str, Any]) -> None:
    head["parts"][0]["key"] = head["parts"][1]["key"]


def another_jobs(blobs: Any, head: dict[str, Any]) -> None:
    key = head["parts"][0]["key"]
    head["parts"][0]["key"] = key.replace("many", "other")
    blobs.held[head["parts"][0]["key"]] = blobs.held[key]


def other_bytes(blobs: Any, head: dict[str, Any]) -> None:
    key = head["parts"][0]["key"]
    blobs.held[key] = blobs.held[key][0].replace(b"client-0", b"client-X"), blobs.held[key][1]


def one_less(blobs: Any, head: dict[str, Any]) -> None:
    del head["parts"][-1]


def huge(blobs: Any, head: dict[str, Any]) -> None:
    head["parts"][0]["size"] = 1 << 40


def no_reference(blobs: Any, head: dict[str, Any]) -> None:
    head["parts"][0] = "there"


def no_counts(blobs: Any, head: dict[str, Any]) -> None:
    del head["counts"]


def counts_in_a_list(blobs: Any, head: dict[str, Any]) -> None:
    head["counts"] = [[field, count] for field, count in head["counts"].items()]


def no_field(blobs: Any, head: dict[str, Any]) -> None:
    text = json.dumps({"cohort": []}).encode()
    head["parts"][0] = parts._put(blobs, KEY, 0, text).model_dump()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "spoil", [other_key, another_jobs, other_bytes, one_less, huge, no_reference, no_counts, counts_in_a_list, no_field]
)
def test_parts_that_are_not_the_heads_are_refused(spoil: Any) -> None:
    """By the name of a key, and never by another error."""
    blobs, head = cut()
    spoil(blobs, head)

    with pytest.raises(Refused, match="rounds/0007/manifest"):
        parts.joined(blobs, KEY, head)


@pytest.mark.usefixtures("small")
def test_a_part_that_is_gone_is_not_found() -> None:
    blobs, head = cut()
    del blobs.held[head["parts"][0]["key"]]

    with pytest.raises(NotFound):
        parts.joined(blobs, KEY, head)


@pytest.mark.parametrize("long", [parts.LONGEST, 100])
def test_a_length_is_not_found_by_indenting(monkeypatch: pytest.MonkeyPatch, long: int) -> None:
    """That takes many times as long, of each round's record, while its trainers wait."""
    indented: list[int | None] = []
    dumps = json_records.dumps

    def told(document: Any, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
        indented.append(indent)
        return dumps(document, indent=indent, separators=separators)

    monkeypatch.setattr(parts, "LONGEST", long)
    monkeypatch.setattr(json_records, "dumps", told)
    parts.split(FakeBlobs(), KEY, {"cohort": [f"client-{number:03d}" for number in range(parts.FEW + 1)]}, FIELDS)  # type: ignore[arg-type]

    assert indented
    assert set(indented) == {None}


def test_the_longest_whole_record_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of figures with the shortest names, where indenting adds most."""
    monkeypatch.setattr(parts, "LONGEST", 1 << 20)
    figures = {"metrics": {chr(97 + number): 0 for number in range(26)}}
    document: dict[str, Any] = {"updates": []}
    while parts.split(FakeBlobs(), KEY, document, FIELDS).get("parts") is None:  # type: ignore[arg-type]
        longest = len(json_records.dumps(document, indent=2))
        document = {
            "updates": [{"client": f"{number:05d}", **figures} for number in range(len(document["updates"]) + 500)]
        }

    assert longest > parts.LONGEST
    assert longest <= 3 * parts.LONGEST < MAX_RECORD
