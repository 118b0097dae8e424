"""What an owner reads of the record that others left."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.aggregator import takeover
from shared import names
from shared.job import job_spec
from shared.record import parts
from tests.simulation.fakes import FakeBlobs

JOB = "taken-aaaaaa"


def test_of_earlier_evaluations_the_heads_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each of many clients measured is in parts, which nobody needs of a round that is long over."""
    monkeypatch.setattr(parts, "MOST", 300)  # clients in one object: fewer are split alike, and sooner written
    blobs: Any = FakeBlobs()
    clients = [f"c-{number:05d}" for number in range(parts.MOST + 1)]
    for number in range(3):
        key = names.evaluation_blob(JOB, number)
        record = {
            "model": "0" * 64,
            "examples": 1,
            "metrics": {"local_accuracy": number / 10},
            "clients": {client: {"loss": 0.5} for client in clients},
        }
        head = parts.split(blobs, key, record | {"unsound": {"since": {"loss": 1}, "clients": []}}, ("clients",))
        blobs.put_json(key, head)
        for part in head["parts"]:
            del blobs.held[part["key"]]
    spec = job_spec.parse({
        "name": "taken", "model": {"name": "softmax"}, "pool": "cpu", "rounds": {"count": 5},
        "data": {"name": "digits", "clients": 3, "local_test": 0.2},
        "evaluate": {"every": 1, "where": "clients", "stop": {"metric": "local_accuracy", "target": 0.9}},
    })  # fmt: skip
    context: Any = SimpleNamespace(job=JOB, spec=spec, edges=SimpleNamespace(blobs=blobs))

    assert takeover._recall_progress(context, 2) == {0: 0.0, 1: 0.1, 2: 0.2}
    latest, unsound = takeover._recall_unsound(context, 2)
    assert (latest, unsound.since) == (2, {"loss": 1})
