"""Events on the wire: what goes out comes in, and nothing else does."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shared import events, names
from shared.errors import BadMessage
from shared.events import (
    EVENTS,
    MAX_BODY,
    BlobRef,
    EvaluateModel,
    Heartbeat,
    JobStatus,
    ModelEvaluated,
    ModelUpdate,
    PauseTraining,
    RoundEnd,
    RoundStart,
    StartTraining,
    StopTraining,
    TrainerJoined,
    TrainingEnd,
    decode,
    encode,
    slices,
)
from shared.job import job_spec

SPEC = job_spec.parse(
    {
        "name": "t",
        "model": {"name": "mlp", "hidden": [8, 4]},
        "data": {"name": "digits", "clients": 5000 // 5},
        "rounds": {"count": 2, "deadline": "90s"},
        "pool": "cpu",
    }
)
JOB = "t-abc234"

words = st.from_regex(names.CLIENT_NAME.replace("$", r"\Z"))
ids = st.from_regex(names.JOB_ID.replace("$", r"\Z"))
texts = st.text(st.characters(codec="utf-8"), max_size=200)
numbers = st.integers(0, 2**40)
floats = st.floats(allow_nan=False, allow_infinity=False)
labels = st.text(st.characters(codec="utf-8"), max_size=64)
figures = st.dictionaries(labels, st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5)
timings = st.dictionaries(labels, st.floats(0, 1e9), max_size=5)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
rounds = st.integers(0, 1_000_000)
attempts = st.integers(1, 100)
parts = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,30}", fullmatch=True)
keys = st.lists(parts, min_size=1, max_size=4).map(lambda found: "/".join(["jobs", JOB, *found]))
blobs = st.builds(BlobRef, key=keys, size=numbers, digest=digests)
of_any = {"job": ids}
of_job = {"job": st.just(JOB)}  # the one whose blobs these are

STRATEGIES: dict[type[Any], st.SearchStrategy[Any]] = {
    StartTraining: st.builds(StartTraining, **of_any, spec=st.just(SPEC)),
    StopTraining: st.builds(StopTraining, **of_any, reason=texts),
    PauseTraining: st.builds(PauseTraining, **of_any, reason=texts),
    RoundStart: st.builds(
        RoundStart, **of_job, group=words, round=rounds, attempt=attempts, base=st.none() | blobs,
        cohort=st.lists(words, max_size=20).map(tuple), spec=st.just(SPEC), deadline=floats,
        fence=numbers, again=st.booleans(),
    ),
    ModelUpdate: st.builds(
        ModelUpdate, **of_job, round=rounds, attempt=attempts, client=words, trainer=words,
        base=st.none() | digests, update=st.none() | blobs, examples=numbers, metrics=figures, timings=timings,
        downloaded=numbers, tries=attempts, error=st.none() | texts,
    ),
    EvaluateModel: st.builds(EvaluateModel, **of_job, group=words, round=rounds, model=blobs, spec=st.just(SPEC)),
    ModelEvaluated: st.builds(
        ModelEvaluated, **of_any, round=rounds, model=digests, trainer=words, examples=numbers, metrics=figures,
        error=st.none() | texts,
    ),
    RoundEnd: st.builds(
        RoundEnd, **of_job, round=rounds, attempt=attempts, outcome=st.sampled_from(["committed", "failed", "stopped"]),
        reason=texts, accepted=numbers, rejected=numbers, metrics=figures, model=st.none() | blobs, seconds=floats,
        fence=numbers,
    ),
    TrainingEnd: st.builds(
        TrainingEnd, **of_job, outcome=st.sampled_from(["finished", "stopped", "failed"]), reason=texts,
        rounds=rounds, metrics=figures, model=st.none() | blobs, seconds=floats, fence=numbers,
    ),
    JobStatus: st.builds(JobStatus, **of_any, status=st.sampled_from(["running", "waiting", "paused"]), detail=texts),
    Heartbeat: st.builds(
        Heartbeat, trainer=words, pool=st.none() | words, client=st.none() | words, host=texts, pid=numbers,
        device=st.text(st.characters(codec="utf-8"), max_size=64), slots=attempts, busy=attempts,
        leaving=st.booleans(), sent_at=floats,
    ),
    TrainerJoined: st.builds(TrainerJoined, trainer=words, group=words),
}  # fmt: skip


def test_every_event_is_tried_here() -> None:
    """A new one must be added to these tests."""
    assert set(STRATEGIES) == set(EVENTS.values())
    assert all(event.type == kind for kind, event in EVENTS.items())


@pytest.mark.parametrize("kind", list(EVENTS))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_an_event_comes_out_as_it_went_in(kind: str, data: st.DataObject) -> None:
    """Whatever it says, within 64 KiB, and with a routing key that RabbitMQ takes."""
    event = data.draw(STRATEGIES[EVENTS[kind]])
    body = encode(event)

    assert decode(kind, body) == event
    assert type(decode(kind, body)) is EVENTS[kind]
    assert encode(decode(kind, body)) == body
    assert len(event.routing_key.encode()) <= 255
    assert event.routing_key.split(".")[0] == kind


@pytest.mark.parametrize(
    ("event", "routing_key"),
    [
        (StartTraining(job=JOB, spec=SPEC), "start-training"),
        (StopTraining(job=JOB, reason=""), f"stop-training.{JOB}"),
        (PauseTraining(job=JOB, reason=""), f"pause-training.{JOB}"),
        (
            RoundStart(job=JOB, group="cpu", round=0, attempt=1, base=None, cohort=(), spec=SPEC, deadline=0),
            "round-start.cpu",
        ),
        (
            ModelUpdate(job=JOB, round=0, attempt=1, client="c", trainer="t", base=None, update=None, examples=0),
            f"model-update.{JOB}.c",
        ),
        (ModelEvaluated(job=JOB, round=0, model="0" * 64, trainer="t", examples=0), f"model-evaluated.{JOB}"),
        (TrainingEnd(job=JOB, outcome="finished", rounds=1), f"training-end.{JOB}"),
        (TrainerJoined(trainer="t", group="cpu"), "trainer-joined.cpu"),
    ],
)
def test_the_routing_key_says_whose_an_event_is(event: Any, routing_key: str) -> None:
    """The type, then the job or the group: queues are bound by it."""
    assert event.routing_key == routing_key


def body_of(event: Any, **changes: Any) -> bytes:
    fields = msgpack.unpackb(encode(event)) | changes
    return bytes(msgpack.packb({key: value for key, value in fields.items() if value is not ...}))


STOP = StopTraining(job=JOB, reason="enough")
MANY = {f"m{number}": 1.0 for number in range(events.FIGURES + 1)}
EVALUATED = ModelEvaluated(job=JOB, round=0, model="0" * 64, trainer="t", examples=0)
UPDATE = ModelUpdate(job=JOB, round=0, attempt=1, client="c", trainer="t", base=None, update=None, examples=0)
BLOB = {"key": f"jobs/{JOB}/k", "size": 1, "digest": "0" * 64}
BEAT = Heartbeat(trainer="t", pool="p", client=None, host="h", pid=1, device="cpu", slots=1, busy=0, sent_at=0.0)


def nested(depth: int) -> bytes:
    """The body of a stop-training whose reason is lists in lists."""
    return b"\x83\xa6schema\x01\xa3job\xa8t-abc234\xa6reason" + b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        (None, b"\x80", "unknown event type None; known: start-training, "),
        ("", b"\x80", "unknown event type ''"),
        ("StopTraining", b"\x80", "unknown event type 'StopTraining'"),
        ("stop-training", b"", "stop-training is not msgpack"),
        ("stop-training", b"\xc1", "stop-training is not msgpack"),
        ("stop-training", b"\x80\x80", "stop-training is not msgpack"),
        ("stop-training", encode(STOP)[:-1], "stop-training is not msgpack"),
        ("stop-training", b'{"job": "t-abc234"}', "stop-training is not msgpack"),
        ("stop-training", b"\xa4t-ab", "stop-training is a msgpack str; an event is a map"),
        ("stop-training", b"\x90", "stop-training is a msgpack list"),
        ("stop-training", b"\xc0", "stop-training is a msgpack NoneType"),
        ("stop-training", b"\x80", "stop-training has schema None; this fedq reads schema 1"),
        ("stop-training", body_of(STOP, schema=2), "stop-training has schema 2"),
        ("stop-training", body_of(STOP, schema="1"), "stop-training has schema '1'"),
        ("stop-training", body_of(STOP, reason=...), "stop-training.reason: Field required"),
        ("stop-training", body_of(STOP, more=1), "stop-training.more: Extra inputs are not permitted"),
        ("stop-training", body_of(STOP, type="stop-training"), "stop-training.type: Extra inputs"),
        ("stop-training", body_of(STOP, reason=7), "stop-training.reason: Input should be a valid string"),
        ("model-update", body_of(UPDATE, metrics=MANY), "model-update.metrics: Dictionary"),
        ("model-update", body_of(UPDATE, timings=MANY), "model-update.timings: Dictionary"),
        ("stop-training", body_of(STOP, job="../../etc"), "stop-training.job: String should match pattern"),
        ("stop-training", body_of(STOP, job=f"{JOB}\n"), "stop-training.job: String should match pattern"),
        ("model-update", body_of(UPDATE, client="a.b"), "model-update.client: String should match"),
        ("model-update", body_of(UPDATE, client="#"), "model-update.client: String should match"),
        ("model-update", body_of(UPDATE, round=-1), "model-update.round: Input should be greater"),
        ("model-update", body_of(UPDATE, round=1_000_001), "model-update.round: Input should be less"),
        ("model-update", body_of(UPDATE, attempt=0), "model-update.attempt: Input should be greater"),
        ("model-update", body_of(UPDATE, examples=-1), "model-update.examples: Input should be greater"),
        ("model-update", body_of(UPDATE, examples=1.5), "model-update.examples: Input should be a valid integer"),
        ("model-update", body_of(UPDATE, base="0" * 63), "model-update.base: String should match"),
        ("model-update", body_of(UPDATE, base="A" * 64), "model-update.base: String should match"),
        ("model-update", body_of(UPDATE, update=BLOB | {"size": -1}), "model-update.update.size: Input should"),
        ("model-update", body_of(UPDATE, update=BLOB | {"url": ""}), "model-update.update.url: Extra inputs"),
        ("model-update", body_of(UPDATE, metrics={"loss": "high"}), "model-update.metrics.loss: Input should"),
        ("model-update", body_of(UPDATE, metrics={1: 1.0}), "model-update is not msgpack: int is not allowed for map"),
        ("model-update", b"\x81\x01\x02", "model-update is not msgpack: int is not allowed for map key"),
        ("stop-training", bytes(MAX_BODY + 1), "stop-training has 65537 bytes; an event has at most 65536"),
        ("stop-training", nested(300), "stop-training.reason: Input should be a valid string"),
        ("stop-training", nested(60_000), "stop-training is not msgpack"),
        ("start-training", body_of(StartTraining(job=JOB, spec=SPEC), spec={}), "start-training.spec.name: Field"),
        ("stop-training", body_of(STOP, schema=True), "stop-training has schema True"),
        ("stop-training", body_of(STOP, schema=1.0), "stop-training has schema a float"),
        ("model-update", body_of(UPDATE, examples=2**60), "model-update.examples: Input should be less"),
        ("model-update", body_of(UPDATE, timings={"total": float("nan")}), "model-update.timings.total: Input should"),
        ("model-update", body_of(UPDATE, timings={"total": float("inf")}), "model-update.timings.total: Input should"),
        ("model-update", body_of(UPDATE, timings={"total": -1.0}), "model-update.timings.total: Input should be great"),
        ("model-update", body_of(UPDATE, metrics={"loss": "nan"}), "model-update.metrics.loss: Input should"),
        ("model-update", body_of(UPDATE, update=BLOB | {"key": "jobs/o-abc234/k"}), "model-update.update: 'jobs/o-"),
        ("model-update", body_of(UPDATE, update=BLOB | {"key": f"jobs/{JOB}/../k"}), "model-update.update: "),
        ("model-update", body_of(UPDATE, update=BLOB | {"key": f"jobs/{JOB}"}), "model-update.update: "),
        ("model-update", body_of(UPDATE, update=BLOB | {"key": "/etc/passwd"}), "model-update.update: "),
        ("model-update", body_of(UPDATE, **{"\x1b]0;owned": 1}), "model-update.\ufffd]0;owned: Extra inputs"),
        ("heartbeat", body_of(BEAT, sent_at=float("inf")), "heartbeat.sent_at: Input should be a finite"),
        ("heartbeat", body_of(BEAT, slots=10**9), "heartbeat.slots: Input should be less"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused_with_the_reason(kind: str | None, body: bytes, reason: str) -> None:
    """Unknown types, other versions, wrong fields, what is too long, too deep or no msgpack at all."""
    with pytest.raises(BadMessage) as caught:
        decode(kind, body)

    assert str(caught.value).startswith(reason)


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from([*EVENTS, "other"]), body=st.binary(max_size=200))
def test_any_bytes_are_an_event_or_a_bad_message(kind: str, body: bytes) -> None:
    """Nothing else is ever raised, whatever a queue holds."""
    with pytest.raises(BadMessage):
        decode(kind, body)


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(EVENTS)), junk=documents)
def test_a_field_of_anything_is_an_event_or_a_bad_message(data: st.DataObject, kind: str, junk: Any) -> None:
    """A right event with one field replaced by whatever msgpack can say."""
    fields = msgpack.unpackb(encode(data.draw(STRATEGIES[EVENTS[kind]])))
    fields[data.draw(st.sampled_from(sorted(fields)))] = junk
    try:
        event = decode(kind, msgpack.packb(fields))
    except BadMessage:
        return

    assert isinstance(event, EVENTS[kind])


def texts_of(value: Any) -> Iterator[str]:
    """Each text in what an event dumps."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_of(key)
            yield from texts_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner)


escapes = st.text(st.sampled_from("\x1b\x9b\x07\x00\x7f\u202e\r\n\t]0;[2Jm ab"), max_size=60)


@settings(max_examples=100, deadline=None)
@given(text=escapes, name=escapes)
def test_what_an_event_says_only_shows(text: str, name: str) -> None:
    """No control character, escape sequence or change of direction is left of what anybody sent."""
    for kind, body in (
        ("model-update", body_of(UPDATE, error=text, failures={"c": text}, metrics={name: 1.0}, timings={name: 1.0})),
        ("model-evaluated", body_of(EVALUATED, error=text, metrics={name: 1.0})),
        ("heartbeat", body_of(BEAT, host=text, device=text)),
        ("stop-training", body_of(STOP, reason=text)),
        ("job-status", body_of(JobStatus(job=JOB, status="running", detail=""), detail=text)),
    ):
        found = decode(kind, body).model_dump()
        assert all(told.isprintable() for told in texts_of(found)), found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e39, None])
def test_a_figure_that_is_no_number_is_null_on_the_wire_and_nan_here(value: Any) -> None:
    """A loss that is none ends no job and stops no program that reads JSON; the rest of the event counts."""
    found = decode("model-update", body_of(UPDATE, metrics={"loss": value, "auc": 0.5}))

    assert isinstance(found, ModelUpdate)
    assert math.isnan(found.metrics["loss"])
    assert found.metrics["auc"] == 0.5
    assert msgpack.unpackb(encode(found))["metrics"] == {"loss": None, "auc": 0.5}
    assert found.model_dump(mode="json")["metrics"]["loss"] is None


def test_a_sentence_is_cut_where_it_is_long() -> None:
    """Ours repeat what others said, who may have said as much as a sentence has room for."""
    longest = decode("stop-training", body_of(STOP, reason="x" * events.SENTENCE + "y"))
    assert isinstance(longest, StopTraining)
    assert longest.reason == "x" * events.SENTENCE
    assert len(StopTraining(job=JOB, reason=f"hospital-a: {longest.reason}").reason) == events.SENTENCE


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff", "no bytes"),
        ({b"\xff": 1}, "no bytes"),
        (msgpack.Timestamp(1), "no Timestamp"),
        (functools.reduce(lambda inner, _: {"a": inner}, range(300), 1), "levels deep"),
    ],
)
def test_arguments_that_no_task_could_hold_are_refused_as_they_are_read(value: Any, reason: str) -> None:
    """msgpack can say what JSON cannot: whoever handed such work on would fail at it."""
    start = RoundStart(job=JOB, group="cpu", round=0, attempt=1, base=None, cohort=("c",), spec=SPEC, deadline=0)
    spec = msgpack.unpackb(encode(start))["spec"] | {"model": {"name": "m:f", "args": {"x": value}}}
    with pytest.raises(BadMessage, match=reason):
        decode("round-start", body_of(start, spec=spec))


@pytest.mark.parametrize("count", [1, 3])
def test_states_are_one_of_each_client(count: int) -> None:
    """Whoever handed the work on would look for one that is not there."""
    start = RoundStart(job=JOB, group="cpu", round=1, attempt=1, base=None, cohort=("a", "b"), spec=SPEC, deadline=0)
    with pytest.raises(BadMessage, match=f"states: Value error, there are {count} for 2 clients"):
        decode("round-start", body_of(start, states=[None] * count))


def test_an_event_above_64_kib_is_not_made() -> None:
    """The sender is told, with both sizes."""
    cohort = tuple(f"client-{number:056}" for number in range(1000))
    start = RoundStart(job=JOB, group="cpu", round=0, attempt=1, base=None, cohort=cohort, spec=SPEC, deadline=0)
    with pytest.raises(BadMessage, match=r"round-start has \d{5} bytes; it has at most 65536"):
        encode(start)


def test_events_are_frozen() -> None:
    """What was said is not changed afterwards."""
    with pytest.raises(ValidationError, match="frozen"):
        STOP.reason = "other"  # type: ignore[misc]


@pytest.mark.parametrize("width", [1, 63])
def test_slices_of_a_large_cohort_fit(width: int) -> None:
    """5,000 clients, with the longest names there are: each piece is an event, and together they are the cohort."""
    cohort = tuple(f"{number:0{width}}" for number in range(5000))
    found = list(slices(cohort))
    blob = BlobRef(key="k" * 512, size=2**40, digest="0" * 64)
    bodies = [
        encode(
            RoundStart(
                job=f"{'j' * 39}-abc234", group="g" * 63, round=1_000_000, attempt=100, base=blob, cohort=piece,
                spec=SPEC, deadline=1.7e9,
            )
        )
        for piece in found
    ]  # fmt: skip

    assert tuple(client for piece in found for client in piece) == cohort
    assert max(map(len, bodies)) <= MAX_BODY
    assert len(found) == 5000 / events.COHORT_SLICE


def test_an_empty_cohort_has_no_slices() -> None:
    """Nobody is asked: nothing is sent."""
    assert list(slices(())) == []
