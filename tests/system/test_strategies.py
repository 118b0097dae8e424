"""Every kind of job on real services: each round comes out of its kept updates again, to the bit."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from services.cli.jobs import starting
from services.cli.verify import promises, replaying, snapshot
from shared import names
from shared.job import job_spec
from shared.job.catalog.strategies import StrategySpec
from tests import every_kind
from tests.every_kind import OTHERWISE, SAME, document
from tests.harness import Services

ROUNDS = 3

#: What no fault is tried on, but is folded in a way of its own.
MORE: dict[str, dict[str, Any]] = {
    "scaffold, by examples": {"strategy": {"name": "scaffold", "weights": "examples"}},
    "update int4": {"compress": {"update": {"name": "int4"}}},
    "update bf16, nothing fed back": {"compress": {"update": {"name": "bf16", "error_feedback": False}}},
    "model topk": {"compress": {"model": {"name": "topk", "ratio": 0.1}}},
    "median, model int8": {"strategy": {"name": "median"}, "compress": {"model": {"name": "int8"}}},
    "fedyogi, 3 clients per task": {"strategy": {"name": "fedyogi"}, "rounds": {"clients_per_task": 3}},
    "fedbuff, update int8": every_kind.ENCODINGS["update int8"] | every_kind.OTHERWISE["fedbuff, buffer of some"],
    "fedbuff, update topk": every_kind.ENCODINGS["update topk"] | every_kind.OTHERWISE["fedbuff, buffer of some"],
    "batch norm stays on clients": {
        "model": {"name": "resnet", "depth": 20},
        "data": {"name": "digits", "clients": 2},
        "train": {"personal": ["batch_norm"], "steps": 1, "batch_size": 16},
    },
    "round_robin": {"select": {"name": "round_robin", "clients": 2}},
}


@pytest.mark.timeout(300)  # on a machine that does much else
def test_every_kind_of_round_is_folded_again_to_the_same_bits(services: Services, allow: Callable[..., None]) -> None:
    """By `fedq replay`, round by round, and by `fedq verify`, of all strategies, encodings and partial folds."""
    allow("examples.")
    services.settings |= {"FEDQ_THREADS": "1"}
    services.start("registry")
    services.start("aggregator", FEDQ_MAX_JOBS="50")
    services.trainers(2)
    kinds = SAME | OTHERWISE | MORE
    servers: Any = SimpleNamespace(
        bus=services.servers.bus("operator"), blobs=services.servers.blobs(), ledger=services.servers.ledger()
    )
    started = {kind: job_spec.new_job_id("kind") for kind in kinds}
    for kind, job in started.items():
        changes = kinds[kind] | {"rounds": {**kinds[kind].get("rounds", {}), "count": ROUNDS}}
        starting.start(servers, job, job_spec.parse(document(**changes)))

    wrong = {}
    for kind, job in started.items():
        record = services.ended(job, 200)
        wrong[kind] = [] if record.status == "finished" else [f"{record.status}: {record.detail}"]
        found = snapshot.gather(servers, job, lambda _sentence: None)
        wrong[kind] += [problem for finding in promises.judge(found) for problem in finding.problems]
        wrong[kind] += [f"round {past.number} was not folded again" for past in found.rounds if past.replayed is None]
        verdicts = [replaying.replay(servers, job, number) for number in range(ROUNDS + 1)]
        wrong[kind] += [str(verdict) for verdict in verdicts if not verdict.agrees]
    assert not any(wrong.values()), {kind: problems for kind, problems in wrong.items() if problems}

    batch = started["2 clients per task, fednova"]
    updates = servers.blobs.get_json(names.manifest_blob(batch, ROUNDS))["updates"]
    assert len({update["blob"]["key"] for update in updates}) == len(updates) / 2
    assert services.json("verify", batch)["holds"] is True
    assert services.json("replay", batch, str(ROUNDS))["agrees"] is True
    for kind in ("fedavgm", "fedadam", "scaffold", "model int8", "own strategy"):
        assert servers.blobs.get_json(names.manifest_blob(started[kind], ROUNDS))["server"] is not None, kind


def test_no_strategy_is_left_out() -> None:
    """Each that a job file may name is among the kinds."""
    known = {str(kind.model_fields["name"].default) for kind in StrategySpec.__origin__.__args__}  # type: ignore[attr-defined]
    tried = {changes["strategy"]["name"] for changes in SAME.values() if "strategy" in changes}
    assert known - tried <= {"PydanticUndefined"}
