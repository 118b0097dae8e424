"""What an owner makes of a batch that comes in."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from services.aggregator import protocol, receiving
from services.aggregator.context import Faults
from shared.errors import Stale
from shared.events import BlobRef


def test_the_failures_of_a_batch_are_told_at_once() -> None:
    """Each call is a way to Redis, and to its disk: one for each client made a round many times as long."""
    ledger = MagicMock()
    faults: Any = Faults(ledger, "batch-aaaaaa")
    context: Any = SimpleNamespace(
        job="batch-aaaaaa", fence=7, edges=SimpleNamespace(ledger=ledger), faults=faults, log=MagicMock()
    )
    failures = {f"client-{number}": "no data" for number in range(250)}
    found = receiving._on_failure(context, SimpleNamespace(round=3), failures)  # type: ignore[arg-type]

    assert found == tuple(protocol.Failed(client, "no data") for client in failures)
    rejected, noted = ledger.mock_calls
    assert rejected[0] == "reject_all"
    assert rejected.args[-1] == dict.fromkeys(failures, "could not train: no data")
    assert (noted[0], noted.args[0], len(noted.args[1])) == ("note_all", "client-failed", 250)
    assert not receiving._on_failure(context, SimpleNamespace(round=3), {})  # type: ignore[arg-type]
    assert len(ledger.mock_calls) == 2


def test_a_batch_whose_failures_redis_did_not_take_is_counted_when_it_comes_again() -> None:
    """The ledger and the sum have it, and the state has not heard: the second try tells it, and a third is a repeat."""
    ledger = MagicMock()
    entry: Any = {"blob": {"key": "k", "size": 1, "digest": "0" * 64}, "examples": 1}
    ledger.accepted.return_value = {"a": entry}
    context: Any = SimpleNamespace(
        job="batch-aaaaaa",
        fence=7,
        edges=SimpleNamespace(ledger=ledger),
        faults=MagicMock(),
        log=MagicMock(),
        accumulator=SimpleNamespace(counted={"a": "0" * 64}),
    )
    update: Any = SimpleNamespace(
        client="a", members=[SimpleNamespace(client="a")], failures={"b": "no data"}, update=BlobRef(**entry["blob"])
    )
    unheard: Any = SimpleNamespace(round=3, accepted=frozenset())
    heard: Any = SimpleNamespace(round=3, accepted=frozenset({"a"}))

    assert receiving._on_duplicate(context, unheard, update) == (
        protocol.Failed("b", "no data"),
        protocol.Accepted("a"),
    )
    with pytest.raises(Stale, match="has been counted in round 3"):
        receiving._on_duplicate(context, heard, update)
