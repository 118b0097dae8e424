"""Who never counted in a job, and how many updates were refused."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.aggregator import recovery
from services.aggregator.turnout import Turnout
from services.cli.report.progress import missing
from shared import names
from shared.events import NAMED, Missing
from shared.job.clients import Listed, Numbered
from shared.record import parts
from shared.record.rounds import OF_CLIENTS
from tests.simulation.fakes import FakeBlobs

JOB = "turnout-aaaaaa"

CLIENTS = [f"client-{number}" for number in range(6)]


def update(client: str) -> dict[str, Any]:
    """A line of a manifest."""
    return {"client": client, "blob": {"key": client, "size": 1, "digest": "0" * 64}, "examples": 1}


ROUND = st.tuples(
    st.lists(st.sampled_from(CLIENTS), unique=True),
    st.dictionaries(
        st.sampled_from(CLIENTS), st.sampled_from(["could not train: no data", "its update is refused: NaN"])
    ),
)


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 5), ROUND), st.randoms(use_true_random=False))
def test_rounds_come_in_any_order_and_count_once(rounds: Mapping[int, tuple[list[str], dict[str, str]]], order) -> None:
    """Who is asked in some round and counts in none; the initial model is nobody's part."""
    turnout, numbers = Turnout(Listed(CLIENTS)), [*rounds, *rounds]
    order.shuffle(numbers)
    for number in numbers:
        accepted, rejected = rounds[number]
        turnout.tell(number, CLIENTS[: number + 1], accepted, rejected)

    told = {number: found for number, found in rounds.items() if number}
    asked = {client for number in told for client in CLIENTS[: number + 1]}
    counted = {client for number in told for client in CLIENTS[: number + 1] if client in told[number][0]}
    reasons = [reason for _, rejected in told.values() for reason in rejected.values()]
    failed = sum("could not" in reason for reason in reasons)
    unheard = sorted(asked - counted)
    assert turnout.missing() == Missing(
        clients=len(unheard), first=tuple(unheard), refused=len(reasons) - failed, failed=failed
    )


def test_a_silo_that_was_away_all_the_time_is_named() -> None:
    """Though nobody could ask it; one that came later is heard, and of a job without a round nothing is said."""
    turnout = Turnout(Listed(["north", "south", "west"]), everybody=True)
    assert turnout.missing() == Missing()

    turnout.tell(1, ["north"], ["north"], {})
    turnout.tell(2, ["north", "south"], ["north", "south"], {})
    assert turnout.missing() == Missing(clients=1, first=("west",))


def test_of_many_some_are_named() -> None:
    """And the number of the others is said."""
    clients = Numbered(3000)
    turnout = Turnout(clients)
    turnout.tell(1, clients[:2000], clients[:1], {"client-0001": "holds NaN", "stranger": "is not in the cohort"})
    found = turnout.missing()

    assert (found.clients, len(found.first)) == (1999, NAMED)
    assert missing(found).startswith("in no model: client-0001, client-0002, ")
    assert missing(found).endswith("client-0010 and 1989 more; 2 updates refused")


def test_nothing_is_said_where_nothing_is_missing() -> None:
    """All that is, in one line."""
    assert missing(Missing()) == ""
    assert missing(Missing(refused=2, failed=1)) == "2 updates refused; clients failed 1 time"


def test_a_later_owner_reads_what_earlier_ones_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of many clients in parts; what cannot be read keeps no job from its end."""
    monkeypatch.setattr(parts, "LONGEST", 1 << 20)  # bytes: a smaller part is split alike, and sooner written
    blobs: Any = FakeBlobs()
    cohort = [f"c-{number:04d}" for number in range(parts.FEW + 50)]
    for number in (1, 2):
        record = {
            "cohort": cohort,
            "updates": [{**update(client), "filler": "x" * 6_000} for client in cohort[number:]],
            "rejected": {"c-0000": "its update is refused: holds NaN"},
        }
        key = names.manifest_blob(JOB, number)
        head = parts.split(blobs, key, record, OF_CLIENTS)
        assert "parts" in head
        blobs.put_json(key, head)
    blobs.put_json(names.manifest_blob(JOB, 3), {"cohort": ["c-9999"]})
    abandoned = {"cohort": ["c-0000", "late"], "accepted": ["c-0000"], "rejected": {"late": "could not train: no data"}}
    blobs.put_json(names.abandoned_blob(JOB, 4, 1), abandoned)

    turnout = Turnout(Listed([*cohort, "late"]))
    recovery.recall(blobs, JOB, 3, turnout)
    assert turnout.missing() == Missing(clients=1, first=("late",), refused=2, failed=1)


def test_where_all_were_heard_long_records_are_not_read_but_for_their_reasons() -> None:
    """A job of many rounds and clients ends as soon after a change of owner as before one."""
    blobs: Any = FakeBlobs()
    cohort = [f"c-{number:05d}" for number in range(parts.MOST + 1)]
    for number in (1, 2, 3):
        rejected = {"c-00000": "could not train: no data"} if number == 3 else {}
        record = {"cohort": cohort, "updates": list(map(update, cohort)), "rejected": rejected}
        key = names.manifest_blob(JOB, number)
        head = parts.split(blobs, key, record, OF_CLIENTS)
        blobs.put_json(key, head)
        if number == 2:
            for part in head["parts"]:
                del blobs.held[part["key"]]

    turnout = Turnout(Listed(cohort))
    recovery.recall(blobs, JOB, 3, turnout)
    assert [number for number in range(5) if turnout.knows(number)] == [1, 2, 3]
    assert turnout.missing() == Missing(failed=1)
