"""Each promise: a job that keeps all of them, and for every way to break one, that one turns red and no other."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from services.cli.verify import promises
from services.cli.verify.snapshot import DeadLetter, LedgerView, OpenRound, Round, Snapshot
from shared import names
from shared.events import BlobRef
from shared.job import job_spec
from shared.job.catalog.strategies import FedAvg
from shared.record.job import Result
from shared.record.rounds import AcceptedUpdate, Fault, GridRecord, Manifest
from shared.redis.ledger import LOG, JobRecord, RoundRecord

JOB = "digits-aaaaaa"
SPEC = job_spec.parse({
    "name": "digits", "model": {"name": "softmax"}, "data": {"name": "digits", "clients": 3},
    "rounds": {"count": 3, "deadline": 10, "below_minimum": "retry"}, "pool": "cpu", "keep_updates": True,
})  # fmt: skip
GRID = GridRecord(max_abs=4.0, max_weight=64, updates=3, shift=52)
COHORT = ("a", "b", "c")
LIMIT = 3 * 10 + 60


def model(number: int) -> BlobRef:
    digest = f"{number + 1:x}" * 64
    return BlobRef(key=names.model_blob(JOB, number, digest), size=1, digest=digest)


def update(number: int, client: str, **changes: Any) -> AcceptedUpdate:
    digest = model(0).digest if number == 0 else f"{10 + number}{'abc'.index(client)}".rjust(64, "0")
    blob = BlobRef(key=names.update_blob(JOB, number, client, digest), size=1, digest=digest)
    measured = {"max_abs": 0.5, "norm": 1.0} if number else {}
    return AcceptedUpdate.model_validate({"client": client, "blob": blob, "examples": 5, **measured, **changes})


def past(number: int) -> Round:
    """A round that is as promised: of three clients two are in, one is refused; round 2 had another owner."""
    clients = ("a", "b") if number else ("a",)
    faults = [Fault(fault="refused", round=number, detail="c: holds NaN or Inf")] if number else []
    if number == 2:
        faults.append(Fault(fault="takeover", round=2, detail="fence 9"))
    manifest = Manifest(
        job=JOB,
        metrics={},
        seconds=1.0,
        round=number,
        attempt=1,
        fence=7 if number < 2 else 9,
        cohort=COHORT if number else ("a",),
        base=model(number - 1) if number else None,
        model=model(number),
        strategy=FedAvg(),
        grid=GRID if number else None,
        weight=5 * len(clients),
        updates=tuple(update(number, client) for client in clients),
        rejected={"c": "holds NaN or Inf"} if number else {},
        unanswered=(),
        faults=tuple(faults),
        opened=100.0 * number,
        deadline=100.0 * number + 10,
        committed=100.0 * number + 9,
    )
    return Round(number, manifest, kept=len(clients), replayed=manifest.model.digest)


def record(**changes: Any) -> JobRecord:
    made = JobRecord(JOB, "finished", "", 2, 2, "me", 9, 1.0, 1.0, 300.0, claims=1)
    return replace(made, **changes)


def open_round(**changes: Any) -> RoundRecord:
    accepted = {"a": {"blob": {"key": "k"}}}
    made = RoundRecord(3, "open", 1, COHORT, 300.0, 310.0, accepted, {"b": "holds NaN or Inf"})
    return replace(made, **changes)


def redis(**changes: Any) -> LedgerView:
    told = {"at": 1.0, "fault": "refused", "round": 1, "detail": "c: holds NaN or Inf"}
    made = LedgerView(
        record(), record(), now=305.0, lease=0.0, open=None, log=(told,), faults={"refused": 1, "takeover": 1}
    )
    return replace(made, **changes)


def living(status: str = "running", *, now: float = 305.0, **changes: Any) -> LedgerView:
    """What the ledger says of the job while its third round is open."""
    job = record(status=status, rounds=3, **changes)
    return redis(before=job, after=job, now=now, lease=310.0, open=OpenRound(open_round()))


ENDED = Snapshot(
    job=JOB,
    spec=SPEC,
    rounds=tuple(past(number) for number in range(3)),
    unreadable={},
    result=Result(job=JOB, outcome="finished", rounds=2, model=model(2), started=0.0, ended=300.0),
    final="",
    redis=redis(),
    letters=(DeadLetter("model-update", names.updates_queue(JOB), "is not msgpack"),),
)
LIVING = replace(ENDED, result=None, redis=living())


def broken(snapshot: Snapshot) -> list[str]:
    return [finding.promise for finding in promises.judge(snapshot) if not finding.holds]


def changed(number: int, **changes: Any) -> Snapshot:
    """The ended job, with the manifest of one round changed."""
    return touched(number, lambda found: replace(found, manifest=found.manifest.model_copy(update=changes)))


def touched(number: int, change: Callable[[Round], Round]) -> Snapshot:
    return replace(ENDED, rounds=tuple(change(found) if found.number == number else found for found in ENDED.rounds))


def living_with(**changes: Any) -> Snapshot:
    assert LIVING.redis is not None
    return replace(LIVING, redis=replace(LIVING.redis, **changes))


def pending(*, gone: tuple[str, ...] = (), **changes: Any) -> Snapshot:
    """The running job, with its open round changed."""
    return living_with(open=OpenRound(open_round(**changes), gone))


def resulting(**changes: Any) -> Snapshot:
    """The ended job, with its result changed."""
    return replace(ENDED, result=ENDED.result and ENDED.result.model_copy(update=changes))


NAN = math.nan
TWICE = past(1)
TWICE = replace(
    TWICE,
    kept=3,
    manifest=TWICE.manifest.model_copy(
        update={"updates": (update(1, "a"), update(1, "a"), update(1, "b")), "weight": 15}
    ),
)
NEW = record(status="queued", round=-1)
WELL: dict[str, Snapshot] = {
    "ended": ENDED,
    "running": LIVING,
    "paused": replace(LIVING, redis=replace(living("paused", now=9999.0), open=None)),
    "queued for an hour": replace(LIVING, redis=replace(living("queued", now=9999.0), open=None)),
    "unknown to Redis": replace(ENDED, redis=None),
    "unknown to Redis and not ended": replace(LIVING, redis=None),
    "begun and nothing more": replace(LIVING, rounds=(), redis=redis(before=NEW, after=NEW, log=(), faults={})),
    "committed in the store alone": replace(LIVING, redis=living(round=1)),
    "its round has failed and says so": pending(state="failed", reason="1 of 3 updates", gone=("a",)),
    "given up after its owners died": replace(ENDED, redis=redis(after=record(claims=21))),
    "a stranger's update was refused": changed(1, rejected={"c": "NaN", "z": "is not in the round's cohort"}),
    "a client counted, its second update refused": changed(1, rejected={"c": "NaN", "a": "a second update"}),
    "older manifests": replace(ENDED, rounds=tuple(
        replace(found, manifest=found.manifest.model_copy(update=dict.fromkeys(
            ("cohort", "unanswered", "faults", "fence", "deadline")
        ))) for found in ENDED.rounds
    )),
    "updates not kept": touched(1, lambda found: replace(found, kept=0, replayed=None)),
    "a longer deadline then": changed(1, opened=50.0, deadline=150.0, committed=204.0),
    "resumed while it was looked at": replace(ENDED, result=None, redis=redis(after=record(status="queued"))),
}  # fmt: skip

ILL: list[tuple[str, str, Snapshot]] = [
    ("P1", "c was asked, and nothing says what became of it", changed(1, rejected={})),
    ("P1", "b is in the model and was not asked", changed(1, cohort=("a", "c"))),
    ("P1", "z is unanswered and was not asked", changed(1, unanswered=("z",))),
    ("P1", "c was rejected without a reason", changed(1, rejected={"c": " "})),
    ("P1", "z is accepted and was not asked", pending(accepted={"z": {"blob": {"key": "k"}}})),
    ("P1", "a's update is accepted and not in the bucket", pending(gone=("a",))),
    ("P1", "b was rejected without a reason", pending(rejected={"b": ""})),
    ("P1", "its updates are in no model, and there is no reason", pending(state="failed")),
    ("P2", "a is counted twice", replace(ENDED, rounds=(past(0), TWICE, past(2)))),
    ("P2", "its updates weigh 10, and the manifest says 11", changed(1, weight=11)),
    ("P2", "which is not its own", changed(1, updates=(update(1, "a"), update(1, "b", blob=update(2, "b").blob)))),
    ("P3", "began with the model", changed(1, base=model(2))),
    ("P3", "its model: there is no such blob", touched(1, lambda found: replace(found, model="there is no such blob"))),
    ("P3", "its model lies at elsewhere", changed(1, model=model(1).model_copy(update={"key": "elsewhere"}))),
    ("P3", "its updates make the model ffff", touched(1, lambda found: replace(found, replayed="f" * 64))),
    ("P3", "1 of its 2 kept updates are gone", touched(1, lambda found: replace(found, kept=1, replayed=None))),
    ("P3", "cannot be folded again: shift", touched(1, lambda found: replace(found, why_not="shift", replayed=None))),
    ("P3", "is not the one that a sent", changed(0, updates=(update(1, "a", blob=BlobRef(
        key=names.update_blob(JOB, 0, "a", "e" * 64), size=1, digest="e" * 64)),))),
    ("P3", "its manifest cannot be read", replace(ENDED, unreadable={3: "its manifest cannot be read"}, redis=None)),
    ("P3", "result.json has the model 2222", resulting(model=model(1))),
    ("P3", "model.safetensors: its digest", replace(ENDED, final="its digest is another")),
    ("P4", "round 1 has no manifest", replace(ENDED, rounds=(past(0), past(2)))),
    ("P4", "its manifest says round 5", changed(1, round=5)),
    ("P4", "was committed before it was opened", changed(1, opened=110.0)),
    ("P4", "round 1 was opened before round 0 was committed", changed(1, opened=1.0, deadline=100.0)),
    ("P4", "under fence 6, after one under 7", changed(2, fence=6)),
    ("P4", "Redis says that round 3 is committed", replace(ENDED, redis=redis(before=record(round=3)))),
    ("P4", "there is a manifest of round 2", replace(ENDED, redis=redis(after=record(round=1)))),
    ("P4", "there is a manifest of round 2", replace(LIVING, redis=living(round=0))),
    ("P4", "Redis has fence 8", replace(LIVING, redis=living(fence=8))),
    ("P5", f"round 1 took {LIMIT + 1} s", changed(1, opened=9.0, deadline=19.0, committed=9.0 + LIMIT + 1)),
    ("P5", f"round 3 is open for {LIMIT + 1} s", living_with(now=300.0 + LIMIT + 1, lease=500.0)),
    ("P5", "nobody has owned it for 61 s", living_with(lease=305.0 - 61)),
    ("P5", "has no result.json", replace(ENDED, result=None)),
    ("P5", "result.json says failed, and Redis finished", resulting(outcome="failed")),
    ("P5", "result.json says 1 rounds", resulting(rounds=1)),
    ("P6", "was tried 4 times; rounds.attempts is 3", changed(1, attempt=4)),
    ("P6", "round 3 is tried for the 4th time", pending(attempt=4)),
    ("P6", "21 owners have had the job", replace(LIVING, redis=living(claims=21))),
    ("P6", "and no reason with it", replace(ENDED, letters=(DeadLetter("a message", "", ""),))),
    ("P7", "with a value of 4.5; the limit is 4", changed(1, updates=(update(1, "a"), update(1, "b", max_abs=4.5)))),
    ("P7", "with a value of nan", changed(1, updates=(update(1, "a"), update(1, "b", max_abs=NAN)))),
    ("P7", "with the norm inf", changed(1, updates=(update(1, "a"), update(1, "b", norm=math.inf)))),
    ("P7", "was folded and not measured", changed(1, updates=(update(1, "a"), update(1, "b", norm=None)))),
    ("P7", "with 65 examples", changed(1, updates=(update(1, "a"), update(1, "b", examples=65)), weight=70)),
    ("P7", "b: holds NaN", touched(1, lambda found: replace(found, damaged=("b: holds NaN",), replayed=None))),
    ("P8", "no takeover is recorded", changed(2, faults=())),
    ("P8", "the log has refused 1 times, and fedq_faults_total counts 0", replace(ENDED, redis=redis(faults={}))),
]  # fmt: skip


@pytest.mark.parametrize("snapshot", WELL.values(), ids=WELL.keys())
def test_a_job_as_promised_is_green(snapshot: Snapshot) -> None:
    """Running, ended, paused, queued, half forgotten: what may happen is no broken promise."""
    found = promises.judge(snapshot)

    assert [(finding.promise, finding.problems) for finding in found] == [(f"P{number}", ()) for number in range(1, 9)]
    assert all(finding.checked for finding in found)


@pytest.mark.parametrize(
    ("promise", "problem", "snapshot"), ILL, ids=[f"{name}: {problem}" for name, problem, _ in ILL]
)
def test_a_broken_promise_is_red_and_no_other(promise: str, problem: str, snapshot: Snapshot) -> None:
    """With a sentence that names what is wrong."""
    told = {finding.promise: finding.problems for finding in promises.judge(snapshot)}

    assert any(problem in sentence for sentence in told[promise]), told
    assert broken(snapshot) == [promise], told


def test_a_rejection_that_nothing_explains_is_seen_by_nobody() -> None:
    """Its reason is empty and no fault names it: broken as what it is (P1), and as what nobody sees (P8)."""
    snapshot = changed(1, rejected={"c": ""}, faults=())
    assert snapshot.redis is not None
    snapshot = replace(snapshot, redis=replace(snapshot.redis, log=()))

    assert broken(snapshot) == ["P1", "P8"]


def test_a_takeover_whose_line_had_to_go_is_no_broken_promise() -> None:
    """A job's log keeps so many lines, and more clients than that may fail in the round."""
    assert broken(changed(2, faults=())) == ["P8"]
    assert broken(changed(2, faults=(Fault(fault="client-failed", round=2),) * LOG)) == []


def test_dead_letters_are_told_with_their_reasons() -> None:
    """A person need not open a console to read them."""
    notes = {finding.promise: finding.notes for finding in promises.judge(ENDED)}

    assert notes["P6"] == (f"dead letter: model-update from {names.updates_queue(JOB)}: is not msgpack",)


def test_what_was_looked_at_is_counted() -> None:
    """A green line that looked at nothing would be worth nothing."""
    told = {finding.promise: finding.checked for finding in promises.judge(ENDED)}

    assert told["P1"] == "3 committed rounds: 5 updates in models, 2 refused, 0 unanswered"
    assert told["P3"] == "3 models read, 3 rounds folded again"
    assert told["P5"] == f"3 committed rounds, the slowest took 9.0 s of {LIMIT} s; the job is finished"
    assert told["P8"] == "2 refusals with a reason, 1 takeover, 1 line of the log"


def test_a_snapshot_is_a_value() -> None:
    """Judging changes nothing."""
    before = dataclasses.asdict(ENDED)
    promises.judge(ENDED)

    assert dataclasses.asdict(ENDED) == before
