"""What an owner tells Redis of a batch."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from services.aggregator import protocol, receiving
from services.aggregator.context import Faults


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
