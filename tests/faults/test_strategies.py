"""Whatever makes the next model - strategy, encoding, selection, what clients keep - deaths change no bit of it."""

from collections import Counter
from typing import Any

import pytest

from deploy.native.processes import Process
from shared import names
from shared.job import job_spec
from tests.every_kind import OTHERWISE, SAME, document
from tests.faults.federation import TAKEOVER, Federation, Row
from tests.harness import until

pytestmark = pytest.mark.timeout(240)  # a death after the other, on a machine that does much else

KINDS = SAME | OTHERWISE
#: Where the first aggregator dies, in round 2, and the one after it, in round 3; kinds take turns.
EARLY = ("accepted", "received")
LATE = ("stepped", "stored", "recorded", "closed", "committed", "told")
TURNS = {kind: (EARLY[turn % len(EARLY)], LATE[turn % len(LATE)]) for turn, kind in enumerate(KINDS)}
#: Kinds of which clients keep something from round to round.
STATEFUL = [kind for kind, changes in KINDS.items() if job_spec.parse(document(**changes)).is_stateful]

_undisturbed: dict[str, tuple[list[str], dict[str, float]]] = {}  # kind → digests and figures


@pytest.mark.row("trainer and two aggregators killed: {}", "P1 P2 P3 P4")
@pytest.mark.parametrize("kind", KINDS)
def test_deaths_change_no_kind_of_round(federation: Federation, row: Row, kind: str) -> None:
    """A slot between upload and telling, an aggregator in mid-round, the next one while it closes the round after."""
    expected = undisturbed(federation, kind, KINDS[kind])
    early, late = TURNS[kind]
    visit = mid_round_2(kind)
    mortal = f"trainer.uploaded=kill@2:{federation.logs / 'once'}"
    federation.stop(federation.pool[0])
    (victim,) = federation.trainers(1, FEDQ_FAILPOINT=mortal)
    first = federation.aggregator(FEDQ_FAILPOINT=f"aggregator.{early}=kill@{visit}")
    job = federation.submit(**document(**KINDS[kind]))
    federation.died(first)
    second = federation.aggregator(FEDQ_FAILPOINT=f"aggregator.{late}=kill@2")
    federation.died(second)
    fence = federation.servers.ledger().required(job).fence
    row.fire(f"SIGKILL at trainer.uploaded 2, aggregator.{early} {visit}, aggregator.{late} 2{why_not(kind)}")
    federation.aggregator()
    until(lambda: federation.servers.ledger().required(job).fence > fence, TAKEOVER, "a takeover")
    assert row.recovered() <= TAKEOVER

    holds(federation, job, kind, expected)
    assert (federation.logs / "once").exists(), "the trainer did not die"
    assert '"failpoint"' in victim.log.read_text()
    assert "takeover" in federation.faults(job)


@pytest.mark.row("trainer killed after it wrote what its client keeps: {}", "P1 P2 P3")
@pytest.mark.parametrize("kind", ["scaffold", "update topk", "personal"])
def test_what_a_client_keeps_counts_with_its_update_alone(federation: Federation, row: Row, kind: str) -> None:
    """The state is in the store and the update is not: whoever trains the client next begins with the one before."""
    expected = undisturbed(federation, kind, KINDS[kind])
    federation.stop(federation.pool[0])
    once = federation.logs / "once"
    (victim,) = federation.trainers(1, FEDQ_FAILPOINT=f"trainer.uploading=kill@4:{once}")
    federation.aggregator()
    job = federation.submit(**document(**KINDS[kind]))
    until(once.exists, 60, "a visit to trainer.uploading", detail=federation.tails)
    row.fire("SIGKILL at trainer.uploading 4")
    federation.reached(job, federation.servers.ledger().required(job).round + 1)
    row.recovered()

    holds(federation, job, kind, expected)
    assert '"failpoint"' in victim.log.read_text()


@pytest.mark.row("an attempt fails after clients wrote what they keep: {}", "P1 P2 P3 P6")
@pytest.mark.parametrize("kind", ["scaffold", "update topk"])
def test_what_was_kept_in_an_attempt_that_failed_is_not_used(federation: Federation, row: Row, kind: str) -> None:
    """A trainer hangs, the round is tried again, and all clients go on from what they kept a round ago."""
    patient = KINDS[kind] | {"rounds": {"count": 5, "deadline": "4s", "below_minimum": "retry", "attempts": 20}}
    expected = undisturbed(federation, f"{kind}, attempts", patient)
    federation.stop(federation.pool[0])
    (victim,) = federation.trainers(1, FEDQ_FAILPOINT=f"trainer.uploading=stop@5:{federation.logs / 'once'}")
    federation.aggregator()
    job = federation.submit(**document(**patient))
    until((federation.logs / "once").exists, 60, "a visit to trainer.uploading", detail=federation.tails)
    until(lambda: "round-failed" in federation.faults(job), 60, "a failed attempt", detail=federation.tails)
    federation.kill(victim)
    row.fire("SIGSTOP at trainer.uploading 5, until the round had failed")
    number = next(
        int(line["round"]) for line in federation.servers.ledger().log(job) if line["fault"] == "round-failed"
    )
    federation.reached(job, number)
    row.recovered()

    holds(federation, job, kind, expected)
    blobs = federation.servers.blobs()
    assert blobs.get_json(names.abandoned_blob(job, number, 1))["outcome"] == "failed"
    assert blobs.get_json(names.manifest_blob(job, number))["attempt"] > 1


@pytest.mark.row("silo killed after it wrote what it keeps, and started again", "P1 P2 P3")
def test_a_silo_goes_on_from_its_own_disk(federation: Federation, row: Row) -> None:
    """Its layer and its residual lie there and nowhere else, and what counts is what its last counted update left."""
    silos = ("hospital-a", "hospital-b")
    changes = {
        "data": {"name": "examples.hospital:data", "args": {"test_fraction": 0.2}},
        "model": {"name": "mlp", "hidden": [8]},
        "train": {"personal": ["head.*"]},
        "compress": {"update": {"name": "topk", "ratio": 0.2}},
        "silos": list(silos),
        "pool": None,
    }
    federation.stop(*federation.pool)

    def silo(name: str, **environment: str) -> Process:
        disk = {"FEDQ_STATE_DIR": str(federation.logs / "states")}
        return federation.start("trainer", "--client", name, role="trainer", **disk, **environment)

    other, victim = (silo(name) for name in silos)
    expected = undisturbed(federation, "silos", changes)
    federation.stop(victim)
    once = federation.logs / "once"
    victim = silo(silos[1], FEDQ_FAILPOINT=f"trainer.uploading=kill@3:{once}")
    federation.aggregator()
    job = federation.submit(**document(**changes))
    until(once.exists, 60, "a visit to trainer.uploading", detail=federation.tails)
    federation.kill(victim)
    row.fire("SIGKILL of the slot at trainer.uploading 3, then of the trainer")
    number = federation.servers.ledger().required(job).round + 1
    silo(silos[1])
    federation.reached(job, number)
    row.recovered()

    holds(federation, job, "silos", expected)
    assert other.alive()
    blobs = federation.servers.blobs()
    assert blobs.list(names.states_prefix(job)) == []
    states = blobs.get_json(blobs.get_json(names.manifest_blob(job, 4))["memory"]["key"])["states"]
    for name in silos:
        kept = {path.name for path in (federation.logs / "states" / name / job).iterdir()}
        assert f"state-{states[name][1][:12]}.safetensors" in kept


def undisturbed(
    federation: Federation, kind: str, changes: dict[str, Any]
) -> tuple[list[str], dict[str, float]] | None:
    """The digests and figures of a kind of job when nothing happens to it; None where they differ anyhow."""
    if kind in OTHERWISE:
        return None
    if kind not in _undisturbed:
        aggregator = federation.aggregator()
        job = federation.submit(**document(**changes))
        record = federation.ended(job)
        assert record.status == "finished", record.detail
        _undisturbed[kind] = federation.digests(job), record.metrics
        federation.stop(aggregator)
    return _undisturbed[kind]


def why_not(kind: str) -> str:
    """What the row says where digits cannot be equal."""
    if kind not in OTHERWISE:
        return ""
    if "select" in OTHERWISE[kind]:
        return "; it selects by measured seconds, so promises only"
    return "; updates count in the order in which they come, so promises only"


def mid_round_2(kind: str) -> int:
    """Which update of a job is one in the middle of round 2: after round 0's one, and as many as make a round."""
    spec = job_spec.parse(document(**KINDS[kind]))
    each = -(-spec.target // spec.rounds.clients_per_task)
    return 1 + each + each // 2 + each % 2


def holds(federation: Federation, job: str, kind: str, expected: tuple[list[str], dict[str, float]] | None) -> None:
    """The job ends as the undisturbed one did, all of it is folded again, and clients keep what counted last."""
    digests, figures = expected or (None, None)
    federation.holds(job, digests)
    blobs, record = federation.servers.blobs(), federation.servers.ledger().required(job)
    if figures is not None:
        assert record.metrics == figures
    assert record.round == record.rounds
    manifests = [blobs.get_json(names.manifest_blob(job, number)) for number in range(record.rounds + 1)]
    often = Counter(
        update["blob"]["key"] for manifest in manifests for update in manifest["updates"] if "batch" not in update
    )
    assert set(often.values()) <= {1}, often.most_common(3)
    if kind in STATEFUL:
        counted = {
            update["client"]: [update["state"]["size"], update["state"]["digest"]]
            for manifest in manifests[1:]
            for update in manifest["updates"]
        }
        assert blobs.get_json(manifests[-1]["memory"]["key"])["states"] == counted
