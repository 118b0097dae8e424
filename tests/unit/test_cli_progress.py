"""A watched job: what each event means, heard once, twice, or from the record."""

from typing import Any

import pytest

from services.cli.report.progress import JobProgress, last_line
from services.cli.report.screen import PAUSE, PlainView
from shared.events import (
    BlobRef,
    Heartbeat,
    JobStatus,
    Member,
    ModelEvaluated,
    ModelUpdate,
    RoundEnd,
    RoundStart,
    TrainingEnd,
)
from shared.job import job_spec
from shared.redis.ledger import JobRecord, RoundRecord

JOB = "digits-aaaaaa"
SPEC = job_spec.parse({
    "name": "digits", "model": {"name": "softmax"}, "data": {"name": "digits", "clients": 4},
    "rounds": {"count": 3}, "pool": "cpu",
})  # fmt: skip
BLOB = BlobRef(key="k", size=1, digest="0" * 64)


def started(number: int = 1, *cohort: str, attempt: int = 1, job: str = JOB) -> RoundStart:
    return RoundStart(
        job=job,
        group="cpu",
        round=number,
        attempt=attempt,
        base=BLOB,
        cohort=cohort or ("a", "b"),
        spec=SPEC,
        deadline=0,
    )


def update(client: str, number: int = 1, error: str | None = None) -> ModelUpdate:
    return ModelUpdate(
        job=JOB, round=number, attempt=1, client=client, trainer="t", base=None, update=BLOB, examples=5, error=error
    )


def ended(number: int = 1, **fields: Any) -> RoundEnd:
    metrics = {"client_loss": 0.5, "client_accuracy": 0.75} if number else {}
    told = {"outcome": "committed", "accepted": 2, "rejected": 0, "metrics": metrics, "seconds": 1.5, **fields}
    return RoundEnd(job=JOB, round=number, **told)


def evaluated(number: int = 1, **fields: Any) -> ModelEvaluated:
    told = {"examples": 9, "metrics": {"loss": 0.25, "accuracy": 0.875}, **fields}
    return ModelEvaluated(job=JOB, round=number, model="0" * 64, trainer="t", **told)


def test_a_round_is_told_event_by_event() -> None:
    """In the words that a log of it has."""
    progress = JobProgress(JOB, 0)
    told = [
        progress.apply(event)
        for event in (started(), update("a"), update("b", error="no data"), ended(rejected=1, accepted=1), evaluated())
    ]

    assert told == [
        "round 1/3: 2 clients asked",
        "round 1/3: 1 of 2 updates in, a",
        "round 1/3: b failed: no data",
        "round 1/3: committed 1 of 2 updates, 1 rejected, clients' loss 0.500, accuracy 0.750, 1.5 s",
        "round 1/3: test loss 0.250, accuracy 0.875",
    ]


@pytest.mark.parametrize("event", [started(), update("a"), ended(), JobStatus(job=JOB, status="waiting", detail="x")])
def test_what_is_known_is_no_news(event: Any) -> None:
    """An event may come twice."""
    progress = JobProgress(JOB, 3)
    progress.apply(started(1, "a", "b"))
    progress.apply(event)

    assert progress.apply(event) == ""


def test_clients_tell_of_what_they_hold_out_part_by_part() -> None:
    """Each part once; what is shown of the round is the mean over all that were heard, or else the test set's."""
    progress = JobProgress(JOB, 3)
    parts = [
        [Member(client=name, examples=examples, metrics={"loss": 1.0, "accuracy": accuracy})]
        for name, examples, accuracy in (("a", 10, 0.5), ("b", 30, 0.9))
    ]
    heard = [
        evaluated(examples=each[0].examples, metrics={}, members=each, part=number)
        for number, each in enumerate(parts, 1)
    ]
    told = [progress.apply(event) for event in (ended(), *heard, *heard)]

    assert told[1:] == [
        "round 1/3: on 1 client loss 1.000, accuracy 0.500",
        "round 1/3: on 2 clients loss 1.000, accuracy 0.800",
        "",
        "",
    ]
    assert (progress.rows[1].loss, progress.rows[1].accuracy) == (1.0, pytest.approx(0.8))
    assert progress.apply(evaluated(metrics={"loss": 0.5, "accuracy": 0.25})).endswith(
        "test loss 0.500, accuracy 0.250"
    )
    assert progress.rows[1].accuracy == 0.25


def test_the_record_tells_of_what_clients_hold_out() -> None:
    """By the means that it keeps."""
    progress = JobProgress(JOB, 3)
    progress.apply(ended())

    assert progress.apply(evaluated(metrics={"local_accuracy": 0.5})) == "round 1/3: on the clients accuracy 0.500"


def test_other_jobs_are_not_heard() -> None:
    """Every round-start reaches every watcher; heartbeats belong to no job."""
    beat = Heartbeat(trainer="t", pool="cpu", client=None, host="h", pid=1, device="cpu", slots=1, busy=0, sent_at=0.0)
    progress = JobProgress(JOB, 3)

    assert progress.apply(started(job="other-aaaaaa")) == ""
    assert progress.apply(beat) == ""
    assert progress == JobProgress(JOB, 3)


def test_silos_are_asked_one_by_one() -> None:
    """A round-start for each adds to the cohort."""
    progress = JobProgress(JOB, 3)
    told = [progress.apply(started(1, name)) for name in ("a", "b", "b")]

    assert told == ["round 1/3: 1 client asked", "round 1/3: 2 clients asked", ""]


def test_a_cohort_comes_in_parts_and_is_as_large_as_it_says() -> None:
    """A round-start names some of it, and says how many there are."""
    progress = JobProgress(JOB, 3)
    whole = started(1, "a", "b").model_copy(update={"cohort_size": 900})

    assert progress.apply(whole) == "round 1/3: 900 clients asked"
    assert progress.apply(update("a")) == "round 1/3: 1 of 900 updates in, a"
    assert progress.apply(ended(accepted=800)).startswith("round 1/3: committed 800 of 900 updates")


def test_a_message_of_a_batch_tells_of_all_its_clients() -> None:
    """Those that delivered, and those that failed; clients are counted, not messages."""
    progress = JobProgress(JOB, 3)
    progress.apply(started(1, "a", "b", "c", "d", "e"))
    members = tuple(Member(client=name, examples=1) for name in ("a", "b", "c"))
    batch = update("a").model_copy(update={"members": members, "failures": {"d": "no data"}})

    assert progress.apply(batch) == "round 1/3: 3 of 5 updates in, a and 2 more; d failed: no data"
    assert progress.apply(batch) == ""
    lost = update("e", error="gone").model_copy(update={"failures": {"d": "no data", "e": "gone"}})
    assert progress.apply(lost) == "round 1/3: e failed: gone"
    assert (progress.answered, progress.failed) == ({"a", "b", "c"}, {"d": "no data", "e": "gone"})


def test_a_log_has_what_came_of_each_round(capsys: pytest.CaptureFixture[str]) -> None:
    """And how far it is only where there was no line for a while: twenty silos do not tell twenty times."""
    now = [100.0]
    view, progress = PlainView(lambda: now[0]), JobProgress(JOB, 3)

    def hear(*events: Any) -> list[str]:
        for event in events:
            if sentence := progress.apply(event):
                view.show(progress, sentence, event)
        return capsys.readouterr().out.splitlines()

    silos = [f"silo-{number}" for number in range(20)]
    asked = [started(1, silo).model_copy(update={"cohort_size": 20}) for silo in silos]
    assert hear(*asked, *map(update, silos[:5])) == ["round 1/3: 20 clients asked"]
    now[0] += PAUSE
    assert hear(update("silo-5"), update("silo-6")) == ["round 1/3: 6 of 20 updates in, silo-5"]
    assert hear(update("silo-7", error="no data"), update("silo-8", error="no data")) == [
        "round 1/3: silo-7 failed: no data"
    ]

    heard = [
        evaluated(metrics={}, part=number, members=(Member(client=silo, examples=1, metrics={"accuracy": 0.5}),))
        for number, silo in enumerate(silos, 1)
    ]
    committed = "committed 18 of 20 updates, 2 rejected, clients' loss 0.500, accuracy 0.750, 1.5 s"
    assert hear(ended(accepted=18, rejected=2), *heard) == [f"round 1/3: {committed}"]
    end = TrainingEnd(job=JOB, outcome="finished", rounds=1)
    assert hear(end) == ["round 1/3: on 20 clients accuracy 0.500"]


def test_another_attempt_asks_anew() -> None:
    """Who answered the first attempt has not answered the second."""
    progress = JobProgress(JOB, 3)
    for event in (started(), update("a"), ended(outcome="failed", reason="1 of 2 updates", metrics={})):
        told = progress.apply(event)
    assert told == "round 1/3: failed: 1 of 2 updates"

    assert progress.apply(started(attempt=2)) == "round 1/3: 2 clients asked, attempt 2"
    assert progress.answered == set()


def test_the_record_fills_in_what_was_missed() -> None:
    """Whoever comes in the middle sees the open round as it stands."""
    record = JobRecord(JOB, "running", "", 1, 3, "me", 1, 0.0, 0.0, 0.0)
    open_round = RoundRecord(2, "open", 1, ("a", "b", "c"), 0.0, 1.0, {"a": {}}, {"b": "NaN"})
    progress = JobProgress(JOB, 0)
    assert progress.recall(record, open_round) == "running"

    assert progress.apply(update("a", 2)) == ""
    assert progress.apply(update("c", 2)) == "round 2/3: 2 of 3 updates in, c"
    assert progress.failed == {"b": "NaN"}


def test_late_events_do_not_reopen_a_round() -> None:
    """A round-start rung again after the round's end is no news."""
    progress = JobProgress(JOB, 3)
    for event in (started(), ended()):
        progress.apply(event)

    assert progress.apply(started(1, "c")) == ""
    assert progress.apply(update("c", 0)) == ""


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"accuracy": 0.95349, "loss": 0.1}, "accuracy 0.953 after 15 rounds (77.7 s)"),
        ({"local_accuracy": 0.9, "local_loss": 0.1}, "accuracy 0.900 on the clients after 15 rounds (77.7 s)"),
        ({}, "finished after 15 rounds (77.7 s)"),
    ],
)
def test_the_last_line_is_for_scripts(metrics: dict[str, float], line: str) -> None:
    """Three decimals, and one for the seconds."""
    end = TrainingEnd(job=JOB, outcome="finished", rounds=15, metrics=metrics, seconds=77.71)

    assert last_line(end) == line
    why = "accuracy is 0.95: evaluate.stop.target, 0.95, is reached"
    assert last_line(end.model_copy(update={"reason": why})) == f"{line}; {why}"
