"""The aggregator on real servers, with trainers whose every update is scripted so that faults can be."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pika
import pytest

from services.aggregator.accumulator import Accumulator
from services.aggregator.coordinator import Coordinator, Edges
from services.aggregator.leases import JobLeases
from shared import names
from shared.aggregation import weights
from shared.amqp import topology
from shared.amqp.bus import Bus
from shared.amqp.connection import Delivery
from shared.errors import Unavailable
from shared.events import (
    AnyEvent,
    BlobRef,
    EvaluateModel,
    Heartbeat,
    JobStatus,
    Missing,
    ModelEvaluated,
    ModelUpdate,
    PauseTraining,
    RoundEnd,
    RoundStart,
    StartTraining,
    StopTraining,
    TrainerJoined,
    TrainingEnd,
)
from shared.job.job_spec import JobSpec, new_job_id, parse
from shared.record import parts, receipts
from shared.redis import ledger as ledgers
from shared.redis.ledger import Ledger, Sum, Totals, Wanted
from shared.s3.store import Blobs
from tests.conftest import Servers
from tests.harness import until

SECONDS = 60.0
LAYOUT = weights.layout_of({"w": ("F32", (5, 3)), "b": ("F32", (3,)), "seen": ("I64", ())})
UPDATES = LAYOUT.of_updates()


def spec(**changes: Any) -> JobSpec:
    return parse(
        {
            "name": "t",
            "seed": 3,
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": 4},
            "rounds": {"count": 2, "deadline": "20s"},
            "evaluate": {"every": 0},
            "pool": "cpu",
        }
        | changes
    )


def deltas(client: str, number: int) -> np.ndarray:
    """What a scripted client learns: as good as random, and known to the test."""
    return np.random.default_rng([number, *client.encode()]).normal(0, 0.1, LAYOUT.size).astype(np.float32)


def weight(client: str) -> int:
    return 10 + 7 * int(client[-1])


@dataclass
class Trainers:
    """All trainers of the pool `cpu`, scripted: a hook may answer in place of the honest update."""

    servers: Servers
    bus: Bus
    inbox: "queue.SimpleQueue[Delivery]" = field(default_factory=queue.SimpleQueue)
    events: list[AnyEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blobs = self.servers.blobs("trainer")
        self.roster = self.servers.roster()

    def join(self) -> None:
        beat = Heartbeat(
            trainer="scripted", pool="cpu", client=None, host="h", pid=1, device="cpu", slots=2, busy=0, sent_at=0.0
        )
        self.roster.admit(beat, 60)
        self.bus.consume(topology.rounds("cpu"), self.inbox.put)

    def watch(self, job: str) -> None:
        self.bus.consume(topology.watcher(f"w-{job}", job), self.inbox.put)

    def until(self, kind: type[AnyEvent], answer: Callable[[RoundStart, str], None] | None = None) -> Any:
        """Answers round-starts until an event of `kind` is heard."""
        while True:
            delivery = self.inbox.get(timeout=SECONDS)
            event = delivery.decode()
            delivery.ack()
            self.events.append(event)
            if isinstance(event, RoundStart) and delivery.queue == names.rounds_queue("cpu"):
                for client in event.cohort:
                    (answer or self.answer)(event, client)
            if isinstance(event, EvaluateModel):
                found = ModelEvaluated(
                    job=event.job,
                    round=event.round,
                    model=event.model.digest,
                    trainer="scripted",
                    examples=5,
                    metrics=self.figures(event.round),
                )
                self.bus.publish(found)
            if isinstance(event, kind) and delivery.queue != names.rounds_queue("cpu"):
                return event

    def figures(self, number: int) -> dict[str, float]:
        """How good the model of a round is."""
        return {"accuracy": 0.5 + number / 10, "loss": 1.0}

    def answer(self, event: RoundStart, client: str) -> None:
        self.send(event, client, self.file(event, client))

    def file(self, event: RoundStart, client: str) -> np.ndarray:
        """An honest answer: the initial model for round 0, the client's deltas after it."""
        if event.base is None:
            file = LAYOUT.empty_file()
            LAYOUT.views(file)["seen"][...] = 9
            LAYOUT.flat(file)[:] = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)
            return file
        file = UPDATES.empty_file()
        UPDATES.flat(file)[:] = deltas(client, event.round)
        return file

    def send(self, event: RoundStart, client: str, file: np.ndarray, **changes: Any) -> None:
        digest = weights.digest_of(file)
        blob = self.blobs.put(names.update_blob(event.job, event.round, client, digest), file, digest=digest)
        update = ModelUpdate(
            job=event.job,
            round=event.round,
            attempt=event.attempt,
            client=client,
            trainer="scripted",
            base=event.base.digest if event.base else None,
            update=blob,
            examples=weight(client),
            metrics={"train_loss": float(weight(client))},
        )
        self.bus.publish(update.model_copy(update=changes), required=False)


@pytest.fixture
def aggregators(servers: Servers) -> Iterator[Callable[..., JobLeases]]:
    """Starts aggregators in this process; stops them when the test ends."""
    started: list[JobLeases] = []
    with ThreadPoolExecutor(1) as later:

        def start(name: str = "one", *, lease: float = 3.0, most: int = 4) -> JobLeases:
            edges = Edges(servers.bus(name), servers.blobs(), servers.ledger(), servers.roster(), later)
            owner = JobLeases(name, edges, lease=lease, most=most)
            owner.start()
            started.append(owner)
            return owner

        yield start
        for owner in started:
            owner.stop(10)


@pytest.fixture
def trainers(servers: Servers) -> Trainers:
    found = Trainers(servers, servers.bus("trainers"))
    found.join()
    return found


def start(trainers: Trainers, job_spec: JobSpec, job: str = "") -> str:
    job = job or new_job_id(job_spec.name)
    trainers.bus.declare(topology.commands(), topology.updates(job), topology.dead_letters())
    trainers.watch(job)
    trainers.servers.ledger().create(job, job_spec.rounds.count)
    trainers.bus.publish(StartTraining(job=job, spec=job_spec))
    return job


def expected(rounds: int, clients: tuple[str, ...]) -> np.ndarray:
    """The model after some rounds, by float64 arithmetic written apart."""
    model = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32).astype(np.float64)
    total = sum(map(weight, clients))
    for number in range(1, rounds + 1):
        model += sum(deltas(client, number).astype(np.float64) * weight(client) for client in clients) / total
    return model


def model_of(servers: Servers, blob: BlobRef | None) -> np.ndarray:
    assert blob is not None
    return servers.blobs().get(blob)


def test_a_job_runs_to_its_end(servers, aggregators, trainers) -> None:
    """Two rounds of four clients end in the weighted mean, with a record of everything in the bucket."""
    aggregators()
    job = start(trainers, spec(evaluate={"every": 1}))
    end = trainers.until(TrainingEnd)

    assert (end.outcome, end.rounds, end.metrics["accuracy"]) == ("finished", 2, 0.7)
    file = model_of(servers, end.model)
    np.testing.assert_allclose(LAYOUT.flat(file), expected(2, spec().clients), atol=1e-6)
    assert LAYOUT.views(file)["seen"] == 9
    keys = [key.removeprefix(f"jobs/{job}/") for key in servers.blobs().list(f"jobs/{job}/")]
    assert [key.partition("-")[0] for key in keys] == [
        "job.json",
        "model.safetensors",
        "result.json",
        *(
            f"rounds/000{number}/{name}"
            for number in range(3)
            for name in ("evaluation.json", "manifest.json", "model")
        ),
    ]
    manifest = servers.blobs().get_json(names.manifest_blob(job, 2))
    assert [update["client"] for update in manifest["updates"]] == list(spec().clients)
    assert manifest["weight"] == sum(map(weight, spec().clients))
    assert manifest["metrics"]["train_loss"] == pytest.approx(
        sum(weight(client) ** 2 for client in spec().clients) / manifest["weight"]
    )
    record = servers.ledger().required(job)
    assert (record.status, record.round) == ("finished", 2)


@pytest.mark.parametrize("name", ["fedavg", "median"])
def test_a_server_step_to_no_number_ends_the_job_with_the_model_before(name, servers, aggregators, trainers) -> None:
    """It fails with the round, the strategy and a tensor, and its model is the last that was committed, to the bit."""
    aggregators()
    start(trainers, spec(strategy={"name": name, "lr": 1e60}))
    end = trainers.until(TrainingEnd)

    assert (end.outcome, end.rounds) == ("failed", 0)
    assert f"round 1: strategy {name} made" in end.reason
    assert "inf of a value of b: a lower strategy.lr or train.optimizer.lr may help" in end.reason
    begun = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)
    assert np.array_equal(LAYOUT.flat(model_of(servers, end.model)), begun)


def run(trainers: Trainers, job_spec: JobSpec, answer: Callable[[RoundStart, str], None] | None = None) -> list[str]:
    """Runs a job and gives its models' digests, round by round."""
    start(trainers, job_spec)
    digests = []
    while True:
        event = trainers.until((RoundEnd, TrainingEnd), answer)  # type: ignore[arg-type]
        if isinstance(event, TrainingEnd):
            assert event.outcome == "finished", event.reason
            return digests
        digests.append(event.model.digest)


def test_arrival_order_and_repetition_change_no_bit(aggregators, trainers) -> None:
    """Updates reversed, and each sent three times, commit the same digests."""
    aggregators()
    plain = run(trainers, spec())
    held: dict[int, list[str]] = {}

    def backwards(event: RoundStart, client: str) -> None:
        waiting = held.setdefault(event.round, [])
        waiting.append(client)
        if len(waiting) == len(event.cohort):
            for name in reversed(waiting):
                for _ in range(3):
                    trainers.answer(event, name)

    assert run(trainers, spec(), backwards) == plain


def hostile(trainers: Trainers, event: RoundStart, client: str) -> dict[str, str]:
    """Sends every kind of wrong update in the client's name; gives each one's reason."""
    good = trainers.file(event, client)

    def filled(value: float) -> np.ndarray:
        file = UPDATES.empty_file()
        UPDATES.flat(file)[:] = value
        return file

    def other(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> np.ndarray:
        file = weights.layout_of(tensors).empty_file()
        file[len(weights.layout_of(tensors).header) :] = 0
        return file

    honest = weights.digest_of(good)
    lying = BlobRef(key=names.update_blob(event.job, event.round, client, "0" * 64), size=good.nbytes, digest="0" * 64)
    trainers.blobs.put(lying.key, good)
    absent = lying.model_copy(update={"key": lying.key.replace("0" * 12, "1" * 12), "digest": "1" * 64})
    cases: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("NaN or Inf", filled(np.nan), {}),
        ("NaN or Inf", filled(np.inf), {}),
        ("limits.max_abs", filled(1e6), {}),
        ("limits.max_examples", good, {"examples": 2**40}),
        ("limits.max_examples", good, {"examples": 0}),
        ("is missing", other({"w": ("F32", (5, 3))}), {}),
        ("is not in the model", other({"w": ("F32", (5, 3)), "b": ("F32", (3,)), "x": ("F32", (1,))}), {}),
        ("shape", other({"w": ("F32", (3, 5)), "b": ("F32", (3,))}), {}),
        ("instead of F32", other({"w": ("I32", (5, 3)), "b": ("F32", (3,))}), {}),
        ("not a safetensors file", np.zeros(UPDATES.file_size, np.uint8), {}),
        ("bytes instead of", np.zeros(10 * UPDATES.file_size, np.uint8), {}),
        ("its digest is", good, {"update": lying}),
        ("lies at", good, {"update": lying.model_copy(update={"key": names.job_blob(event.job), "digest": honest})}),
        ("not in the store", good, {"update": absent}),
        ("was trained on the model", good, {"base": "0" * 64}),
        ("while round", good, {"round": event.round + 1}),
        ("while round", good, {"round": event.round - 1}),
        ("carries no blob", good, {"update": None}),
    ]  # fmt: skip
    reasons = {}
    for number, (reason, file, changes) in enumerate(cases):
        # Each in the name of another client: the record keeps the first reason it has for one.
        reasons[f"{number}"] = reason
        trainers.send(event, client, file, **changes)
    return reasons


def test_no_wrong_update_touches_the_model(servers, aggregators, trainers) -> None:
    """Whatever else is sent in a client's name, its honest update counts and the digests are the undisturbed ones."""
    aggregators()
    plain = run(trainers, spec())

    def beset(event: RoundStart, client: str) -> None:
        if event.round and client == "client-1":
            hostile(trainers, event, client)
            trainers.send(event, "client-9", trainers.file(event, client))
        trainers.answer(event, client)
        if event.round and client == "client-1":
            other = UPDATES.empty_file()
            UPDATES.flat(other)[:] = 0.5
            trainers.send(event, client, other)

    assert run(trainers, spec(), beset) == plain


@pytest.mark.parametrize("case", range(18))
def test_a_refusal_is_recorded_with_its_reason(servers, aggregators, trainers, case: int) -> None:
    """What is wrong with an update stands in the round's record, for `fedq show`."""
    aggregators()
    seen: dict[str, str] = {}

    def once(event: RoundStart, client: str) -> None:
        if event.round == 1 and client == "client-1":
            original = trainers.send
            sent = iter(range(100))

            def only(*args: Any, **changes: Any) -> None:
                if next(sent) == case:
                    original(*args, **changes)

            trainers.send = only  # type: ignore[method-assign]
            seen.update(hostile(trainers, event, client))
            trainers.send = original  # type: ignore[method-assign]
        trainers.answer(event, client)

    job = start(trainers, spec(rounds={"count": 1, "deadline": "20s"}))
    trainers.until(TrainingEnd, once)
    manifest = servers.blobs().get_json(names.manifest_blob(job, 1))

    assert seen[str(case)] in manifest["rejected"]["client-1"]
    assert len(manifest["updates"]) == 4


def test_outsiders_and_second_updates_are_refused(servers, aggregators, trainers) -> None:
    """A client that was not asked does not count, nor does anybody twice."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round and client == event.cohort[0]:
            outsider = next(name for name in spec().clients if name not in event.cohort)
            trainers.answer(event, outsider)
            trainers.answer(event, client)
            second = UPDATES.empty_file()
            UPDATES.flat(second)[:] = 0.25
            trainers.send(event, client, second)
        else:
            trainers.answer(event, client)

    job = start(trainers, spec(select={"name": "random", "clients": 2}, rounds={"count": 1, "deadline": "20s"}))
    trainers.until(TrainingEnd, answer)
    manifest = servers.blobs().get_json(names.manifest_blob(job, 1))
    asked = [update["client"] for update in manifest["updates"]]

    assert len(asked) == 2
    assert sorted(manifest["rejected"].values()) == [
        "a second update: the first one counts",
        "is not in the round's cohort",
    ]


def test_a_client_that_cannot_train_is_not_waited_for(servers, aggregators, trainers) -> None:
    """Its error is the reason in the record, and the round closes with the others at once."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round and client == "client-2":
            trainers.send(event, client, trainers.file(event, client), update=None, examples=0, error="no such module")
        else:
            trainers.answer(event, client)

    job = start(trainers, spec(rounds={"count": 1, "minimum": 3, "deadline": "10m"}))
    end = trainers.until(TrainingEnd, answer)
    manifest = servers.blobs().get_json(names.manifest_blob(job, 1))

    assert end.outcome == "finished"
    assert manifest["rejected"] == {"client-2": "could not train: no such module"}
    np.testing.assert_allclose(
        LAYOUT.flat(model_of(servers, end.model)), expected(1, ("client-0", "client-1", "client-3")), atol=1e-6
    )


def test_trainers_that_run_other_code_are_named(servers, aggregators, trainers) -> None:
    """Once, by both names; the updates count, for it may be the user who edits the files."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        one = client == event.cohort[0]
        file = trainers.file(event, client)
        trainers.send(event, client, file, code="a" * 64 if one else "b" * 64, trainer="t1" if one else "t2")

    job = start(trainers, spec(rounds={"count": 2}))
    end = trainers.until(TrainingEnd, answer)

    assert end.outcome == "finished"
    (fault,) = servers.ledger().log(job)
    assert fault["fault"] == "other-code"
    assert fault["detail"] == "trainer t2 runs other files of your code than trainer t1; give both the same"


def test_a_refused_initial_model_ends_the_round_at_once(servers, aggregators, trainers) -> None:
    """The reason names the tensor, and no fault is noted that was none."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        file = trainers.file(event, client)
        LAYOUT.views(file)["b"][1] = np.nan
        trainers.send(event, client, file)

    job = start(trainers, spec(rounds={"count": 1, "deadline": "10m"}))
    end = trainers.until(TrainingEnd, answer)

    assert end.outcome == "failed"
    assert end.reason == (
        "round 0 has 0 of the 1 updates it needs and nobody is left to answer (asked 1, failed 0, refused 1); "
        "client-0: its update is refused: the model's tensor b holds NaN or Inf, or values beyond float32"
    )
    assert {line["fault"] for line in servers.ledger().log(job)} == {"refused", "round-failed"}


def test_a_refused_answer_is_not_waited_for(servers, aggregators, trainers) -> None:
    """The others' updates make the round, long before its deadline; the next owner of the round does not ask again."""
    first = aggregators("first", lease=1.0)
    asked: list[tuple[str, ...]] = []

    def answer(event: RoundStart, client: str) -> None:
        if event.round and client == event.cohort[0]:
            asked.append(event.cohort)
        file = trainers.file(event, client)
        if event.round and client == "client-2":
            UPDATES.flat(file)[3] = np.inf
        if event.round == 0 or client != "client-3" or len(asked) > 1:
            trainers.send(event, client, file)

    job = start(trainers, spec(rounds={"count": 1, "minimum": 3, "deadline": "10m"}))
    while "client-2" not in (found.rejected if (found := servers.ledger().round(job, 1)) else ()):
        trainers.until(ModelUpdate, answer)
    first.stop(10)
    aggregators("second", lease=1.0)
    end = trainers.until(TrainingEnd, answer)
    manifest = servers.blobs().get_json(names.manifest_blob(job, 1))

    assert end.outcome == "finished"
    assert asked == [spec().clients, ("client-3",)]
    assert manifest["rejected"] == {"client-2": "its update is refused: holds NaN or Inf"}
    assert len(manifest["updates"]) == 3


def test_the_deadline_fails_a_round_below_its_minimum(servers, aggregators, trainers) -> None:
    """The job ends with the counts, and the trainers are told."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round == 0 or client in ("client-0", "client-3"):
            trainers.answer(event, client)

    job = start(trainers, spec(rounds={"count": 1, "minimum": 3, "deadline": "1s"}))
    end = trainers.until(TrainingEnd, answer)

    assert end.outcome == "failed"
    assert "round 1 has 2 of the 3 updates it needs at its deadline (asked 4, failed 0)" in end.reason
    assert servers.ledger().required(job).detail == end.reason
    assert [event.outcome for event in trainers.events if isinstance(event, RoundEnd)] == ["committed", "failed"]


def test_the_deadline_closes_a_round_with_its_minimum(servers, aggregators, trainers) -> None:
    """Stragglers are left out, and over-selected clients that come late are refused as late."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round == 0 or client != "client-3":
            trainers.answer(event, client)

    start(trainers, spec(rounds={"count": 1, "minimum": 3, "deadline": "1s"}))
    end = trainers.until(TrainingEnd, answer)

    assert end.outcome == "finished"
    np.testing.assert_allclose(
        LAYOUT.flat(model_of(servers, end.model)), expected(1, ("client-0", "client-1", "client-2")), atol=1e-6
    )


def test_a_job_waits_for_trainers_and_says_so(servers, aggregators) -> None:
    """With nobody alive the job waits; the first trainer to join sets it going."""
    aggregators()
    late = Trainers(servers, servers.bus("late"))
    job = start(late, spec())
    status = late.inbox.get(timeout=SECONDS).decode()

    assert status.status == "waiting"
    assert "--pool cpu" in status.detail
    assert servers.ledger().required(job).status == "waiting"

    late.join()
    late.bus.publish(TrainerJoined(trainer="scripted", group="cpu"))
    assert late.until(TrainingEnd).outcome == "finished"


def test_stop_ends_a_job_where_it_stands(servers, aggregators, trainers) -> None:
    """The open round is abandoned, the last committed model stays."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round < 2:
            trainers.answer(event, client)
        elif client == "client-0":
            trainers.bus.publish(StopTraining(job=event.job, reason="enough"))

    job = start(trainers, spec())
    end = trainers.until(TrainingEnd, answer)

    assert (end.outcome, end.reason, end.rounds) == ("stopped", "enough", 1)
    np.testing.assert_allclose(LAYOUT.flat(model_of(servers, end.model)), expected(1, spec().clients), atol=1e-6)
    assert servers.ledger().required(job).status == "stopped"
    assert trainers.bus.depth(names.updates_queue(job)) is None


def test_a_second_start_changes_nothing(servers, aggregators, trainers) -> None:
    """A repeated start-training is acknowledged; the job runs once."""
    aggregators("one")
    aggregators("two")
    job_spec = spec()
    job = start(trainers, job_spec)
    for _ in range(3):
        trainers.bus.publish(StartTraining(job=job, spec=job_spec))
    end = trainers.until(TrainingEnd)

    assert end.outcome == "finished"
    assert sum(isinstance(event, RoundEnd) for event in trainers.events) == 3
    assert servers.ledger().log(job) == []  # nobody took it over


def test_a_replica_that_leaves_hands_its_jobs_over(servers, aggregators, trainers) -> None:
    """The other one goes on from the last committed round, to the same model."""
    first = aggregators("first", lease=1.0)
    job = start(trainers, spec())
    trainers.until(RoundEnd)
    first.stop(10)
    aggregators("second", lease=1.0)
    end = trainers.until(TrainingEnd)

    assert end.outcome == "finished"
    assert servers.ledger().required(job).owner == "second"
    np.testing.assert_allclose(LAYOUT.flat(model_of(servers, end.model)), expected(2, spec().clients), atol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_a_closed_round_is_finished_by_the_next_owner(servers, aggregators, trainers, monkeypatch, number: int) -> None:
    """A server away between closing and committing, and a replica that leaves then: the frozen updates count."""
    first = aggregators("first", lease=1.0)
    away, left = threading.Event(), threading.Event()
    put = Blobs.put

    def refuse(self: Blobs, key: str, *args: Any, **options: Any) -> BlobRef:  # a fake fault: it must come just there
        if key.startswith(names.round_prefix(job, number)) and "/model-" in key and not left.is_set():
            away.set()
            raise Unavailable("the store is away")
        return put(self, key, *args, **options)

    job = new_job_id("t")
    monkeypatch.setattr(Blobs, "put", refuse)
    start(trainers, spec(), job)
    while not away.is_set():
        trainers.until(ModelUpdate)
        away.wait(0.2)
    first.stop(10)
    left.set()
    aggregators("second", lease=1.0)
    end = trainers.until(TrainingEnd)

    assert end.outcome == "finished"
    assert servers.ledger().required(job).owner == "second"
    np.testing.assert_allclose(LAYOUT.flat(model_of(servers, end.model)), expected(2, spec().clients), atol=1e-6)
    assert sum(event.round == number for event in trainers.events if isinstance(event, ModelUpdate)) == (
        4 if number else 1
    )


def test_an_open_round_is_taken_over_with_what_it_has(servers, aggregators, trainers) -> None:
    """Two of four have answered when the owner leaves: the next one counts them, and asks the other two."""
    first = aggregators("first", lease=1.0)
    job = start(trainers, spec())
    asked: list[tuple[str, ...]] = []

    def answer(event: RoundStart, client: str) -> None:
        if event.round != 1:
            trainers.answer(event, client)
        elif client == event.cohort[0]:
            asked.append(event.cohort)
            for name in event.cohort[:2] if len(asked) == 1 else event.cohort:
                trainers.answer(event, name)

    while len(servers.ledger().round(job, 1).accepted if servers.ledger().round(job, 1) else ()) < 2:
        trainers.until(ModelUpdate, answer)
    first.stop(10)
    aggregators("second", lease=1.0)
    end = trainers.until(TrainingEnd, answer)

    assert end.outcome == "finished"
    assert asked == [spec().clients, spec().clients[2:]]
    np.testing.assert_allclose(LAYOUT.flat(model_of(servers, end.model)), expected(2, spec().clients), atol=1e-6)
    assert "takeover" in {line["fault"] for line in servers.ledger().log(job)}


def test_the_next_owner_reads_records_that_are_in_parts(servers, aggregators, trainers, monkeypatch) -> None:
    """Of one client each: the manifest, what selection knows, and a cohort that the ledger is told in pieces."""
    monkeypatch.setattr(parts, "FEW", 0)
    monkeypatch.setattr(parts, "MOST", 1)
    monkeypatch.setattr(ledgers, "PIECE", 1)
    first = aggregators("first", lease=1.0)
    job = start(trainers, spec(select={"name": "power_of_choice", "clients": 4}))
    asked: list[tuple[str, ...]] = []

    def answer(event: RoundStart, client: str) -> None:
        if event.round != 2:
            trainers.answer(event, client)
        elif client == event.cohort[0]:
            asked.append(event.cohort)
            for name in event.cohort[:2] if len(asked) == 1 else event.cohort:
                trainers.answer(event, name)

    while len(servers.ledger().round(job, 2).accepted if servers.ledger().round(job, 2) else ()) < 2:
        trainers.until(ModelUpdate, answer)
    first.stop(10)
    aggregators("second", lease=1.0)
    end = trainers.until(TrainingEnd, answer)

    assert end.outcome == "finished"
    assert asked == [spec().clients, spec().clients[2:]]
    np.testing.assert_allclose(LAYOUT.flat(model_of(servers, end.model)), expected(2, spec().clients), atol=1e-6)
    blobs = servers.blobs()
    for number in (1, 2):
        key = names.manifest_blob(job, number)
        assert len(blobs.get_json(key)["parts"]) == 4
        assert [update["client"] for update in parts.whole(blobs, key)["updates"]] == list(spec().clients)
    histories = [key for key in blobs.list(names.rounds_prefix(job)) if "/history" in key]
    assert [key.rpartition("/")[0] + "/" for key in histories] == [names.round_prefix(job, 2)] * 5  # a head, four parts


def test_an_update_whose_event_is_lost_counts_all_the_same(servers, aggregators, trainers) -> None:
    """It lies in the bucket with its receipt: the next owner takes it in, and asks nobody for it."""
    first = aggregators("first", lease=1.0)
    job = start(trainers, spec())
    asked: list[tuple[str, ...]] = []

    def silently(event: RoundStart, client: str) -> None:
        if event.round != 1:
            trainers.answer(event, client)
            return
        if client == event.cohort[0]:
            asked.append(event.cohort)
        file = trainers.file(event, client)
        digest = weights.digest_of(file)
        update = ModelUpdate(
            job=job, round=1, attempt=1, client=client, trainer="scripted", base=event.base.digest,
            update=None, examples=weight(client), metrics={"train_loss": float(weight(client))},
        )  # fmt: skip
        key = names.update_blob(job, 1, client, digest)
        trainers.blobs.put(key, file, digest=digest, metadata=receipts.receipt(update))

    while not asked:
        trainers.until(RoundStart, silently)
    first.stop(10)
    aggregators("second", lease=1.0)
    end = trainers.until(TrainingEnd, silently)

    assert end.outcome == "finished"
    assert asked == [spec().clients]
    np.testing.assert_allclose(LAYOUT.flat(model_of(servers, end.model)), expected(2, spec().clients), atol=1e-6)


def test_an_emptied_redis_is_filled_from_the_bucket(servers, aggregators, trainers) -> None:
    """In the middle of a round: jobs that ended are known again, and the round begins again with what is there."""
    aggregators("first", lease=1.0)
    before = run(trainers, spec())
    job = start(trainers, spec())
    flushed: list[bool] = []

    def answer(event: RoundStart, client: str) -> None:
        if event.round == 2 and not flushed:
            flushed.append(servers.redis().flushdb())
            trainers.join()
        trainers.answer(event, client)

    end = trainers.until(TrainingEnd, answer)

    assert flushed
    assert end.outcome == "finished"
    assert end.model.digest == before[-1]
    assert [record.status for record in servers.ledger().jobs()] == ["finished", "finished"]
    assert servers.ledger().required(job).round == 2


def test_a_paused_job_waits_for_its_operator(servers, aggregators, trainers) -> None:
    """The open round is finished, the next one is not opened, and nobody owns the job until it is resumed."""
    aggregators("first", lease=1.0)
    job_spec = spec()
    ledger = servers.ledger()

    def answer(event: RoundStart, client: str) -> None:
        if event.round == 1 and client == "client-0":
            ledger.want(event.job, Wanted("paused", "lunch"))
            trainers.bus.publish(PauseTraining(job=event.job, reason="lunch"))
        trainers.answer(event, client)

    job = start(trainers, job_spec)
    while trainers.until(JobStatus, answer).status != "paused":
        pass
    record = ledger.required(job)
    assert (record.status, record.round, record.lease) == ("paused", 1, 0.0)

    assert ledger.revive(job, job_spec.rounds.count) == "ok"
    trainers.bus.publish(StartTraining(job=job, spec=job_spec))
    assert trainers.until(TrainingEnd).outcome == "finished"


def test_an_owner_that_slept_through_the_jobs_end_leaves_no_queue(servers) -> None:
    """Its connection declares the queue again; finding itself fenced, it removes it."""
    ledger, blobs, bus = servers.ledger(), servers.blobs(), servers.bus("sleeper")
    job, job_spec = new_job_id("t"), spec()
    blobs.put_json(names.job_blob(job), {"job": job, "spec": job_spec.model_dump(mode="json")})
    ledger.create(job, job_spec.rounds.count)
    slept = ledger.claim(job, "sleeper", 60)
    ledger.release(job, slept)
    ledger.end(job, ledger.claim(job, "other", 60), "stopped", "enough")
    with ThreadPoolExecutor(1) as later:
        Coordinator(Edges(bus, blobs, ledger, servers.roster(), later), job, slept).run()

    assert bus.depth(names.updates_queue(job)) is None
    assert ledger.required(job).status == "stopped"


def test_a_commit_whose_answer_is_lost_is_counted_as_it_is_written(servers, aggregators, trainers, monkeypatch) -> None:
    """The last word of a round is said again then; its manifest stays the one that the totals tell of."""
    commit, lost = Ledger.commit_round, []

    def unheard(ledger: Ledger, job: str, fence: int, number: int, came_to: Totals) -> None:
        commit(ledger, job, fence, number, came_to)
        if not lost:
            lost.append(number)
            raise Unavailable("the answer is lost")

    monkeypatch.setattr(Ledger, "commit_round", unheard)
    aggregators()
    job = start(trainers, spec(rounds={"count": 1, "deadline": "20s"}))
    assert trainers.until(TrainingEnd).outcome == "finished"
    assert lost == [0]
    steps = [servers.blobs().get_json(names.manifest_blob(job, number))["timings"]["step"] for number in (0, 1)]
    assert servers.ledger().totals().parts["step"] == Sum(2, pytest.approx(sum(steps), abs=1e-5))


def test_a_round_that_an_error_ends_with_its_job_has_failed(servers, aggregators, trainers, monkeypatch) -> None:
    """Whoever watches is told, it is counted, and Redis keeps it no longer than others."""

    def broken(*_arguments: object) -> BlobRef:
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr(Accumulator, "advance", broken)
    aggregators()
    job = start(trainers, spec())
    failed = trainers.until(RoundEnd)
    assert (failed.outcome, failed.accepted) == ("failed", 1)
    assert "no such luck" in failed.reason
    assert trainers.until(TrainingEnd).outcome == "failed"
    totals = servers.ledger().totals()
    assert (totals.rounds["failed"].times, totals.updates) == (1, {"abandoned": 1, "rejected": 0})
    kept = names.round_key(job, 0), names.accepted_key(job, 0)
    assert all(servers.redis().ttl(key) > 0 for key in kept)


def test_a_job_whose_loss_is_no_number_has_failed(servers, aggregators, trainers, monkeypatch) -> None:
    """Though its rounds were committed; it says since when, whoever owned the job then, and keeps the last model."""
    first = aggregators("first", lease=1.0)
    measured = {0: 2.0, 1: 1.0}
    monkeypatch.setattr(
        trainers, "figures", lambda number: {"accuracy": 0.1, "loss": measured.get(number, float("nan"))}
    )
    job = start(trainers, spec(rounds={"count": 5, "deadline": "20s"}, evaluate={"every": 1}))
    while not servers.blobs().exists(names.evaluation_blob(job, 3)):
        trainers.until(ModelEvaluated)
    first.stop(10)
    aggregators("second", lease=1.0)
    end = trainers.until(TrainingEnd)

    assert (end.outcome, end.rounds) == ("failed", 5)
    assert "the model's loss is not a finite number since the evaluation of round 2;" in end.reason
    assert end.model is not None
    record = servers.ledger().required(job)
    assert (record.status, record.detail) == ("failed", end.reason)
    assert servers.blobs().get_json(names.result_blob(job))["outcome"] == "failed"


def test_a_metric_of_ones_own_that_is_no_number_is_said_at_the_end(servers, aggregators, trainers) -> None:
    """The job has finished, and not plainly."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        trainers.send(event, client, trainers.file(event, client), metrics={"mine": float("nan"), "train_loss": 1.0})

    start(trainers, spec(rounds={"count": 1, "deadline": "20s"}))
    end = trainers.until(TrainingEnd, answer)
    assert (end.outcome, end.reason) == ("finished", "not a finite number at the end: mine")


def test_the_end_says_who_was_never_heard(servers, aggregators, trainers) -> None:
    """And how many updates were refused, over all rounds, whoever owned the job; the result keeps it."""
    first = aggregators("first", lease=1.0)

    def answer(event: RoundStart, client: str) -> None:
        file = trainers.file(event, client)
        if event.round and client == "client-1":
            UPDATES.flat(file)[0] = np.nan
        if event.round and client == "client-2":
            trainers.send(event, client, file, update=None, examples=0, error="no data")
        elif event.round != 2 or client != "client-3":
            trainers.send(event, client, file)

    job = start(trainers, spec(rounds={"count": 2, "minimum": 1, "deadline": "4s"}))
    while not servers.blobs().exists(names.manifest_blob(job, 1)):
        trainers.until(RoundEnd, answer)
    first.stop(10)
    aggregators("second", lease=1.0)
    end = trainers.until(TrainingEnd, answer)

    assert end.outcome == "finished"
    assert end.missing == Missing(clients=2, first=("client-1", "client-2"), refused=2, failed=2)
    assert servers.blobs().get_json(names.result_blob(job))["missing"] == end.missing.model_dump(mode="json")


def test_a_job_that_failed_says_who_was_never_heard(servers, aggregators, trainers) -> None:
    """In the round that it failed in, too."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round == 0 or client != "client-3":
            trainers.answer(event, client)

    start(trainers, spec(rounds={"count": 1, "minimum": 4, "deadline": "1s"}))
    end = trainers.until(TrainingEnd, answer)
    assert (end.outcome, end.missing) == ("failed", Missing(clients=1, first=("client-3",)))


def test_metrics_may_have_any_name(servers, aggregators, trainers) -> None:
    """Also those that our own log lines use."""
    owner = aggregators()

    def answer(event: RoundStart, client: str) -> None:
        names_used = ("event", "job", "outcome", "reason", "round", "rounds", "seconds", "trainer")
        trainers.send(event, client, trainers.file(event, client), metrics=dict.fromkeys(names_used, 1.0))

    job = start(trainers, spec())
    assert trainers.until(TrainingEnd, answer).outcome == "finished"

    owner.stop(10)  # whatever it did after saying so, it has done
    assert servers.ledger().required(job).status == "finished"
    assert servers.blobs().get_json(names.result_blob(job))["outcome"] == "finished"


def test_a_full_replica_leaves_jobs_to_the_others(servers, aggregators, trainers) -> None:
    """More jobs than one replica may run are run by two, and one more waits its turn."""
    aggregators("one", most=1)
    aggregators("two", most=1)
    started = [start(trainers, spec(rounds={"count": 1, "deadline": "20s"})) for _ in range(3)]
    ends = [trainers.until(TrainingEnd) for _ in started]

    assert {end.job for end in ends} == set(started)
    assert {servers.ledger().required(job).owner for job in started} == {"one", "two"}


def test_a_replica_that_adopted_a_job_leaves_others_to_the_others(servers, aggregators, trainers) -> None:
    """Though it already waited for one when it became full."""
    ledger, job_spec = servers.ledger(), spec(rounds={"count": 1, "deadline": "60s"})
    aggregators("one", most=1)
    bus = servers.bus()
    until(lambda: bus.depth(names.COMMANDS) == (0, 1), SECONDS, "it to wait for jobs")
    ledger.create("orphan", 1)
    servers.blobs().put_json(names.job_blob("orphan"), {"job": "orphan", "spec": job_spec.model_dump(mode="json")})
    ledger.claim("orphan", "dead", 0.1)
    until(lambda: ledger.required("orphan").owner == "one", SECONDS, "it to adopt what is nobody's")

    job = start(trainers, job_spec)
    aggregators("two", most=1)
    until(lambda: ledger.required(job).owner == "two", SECONDS, "the other one to take what comes then")


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("start-training", b"\xc1 not msgpack", "is not msgpack"),
        ("no-such-event", b"\x80", "unknown event type"),
        (None, b"\x80", "unknown event type"),
        ("start-training", b"\x81\xa6schema\x63", "schema 99"),
        ("start-training", b"\x81\xa6schema\x01", "Field required"),
        ("start-training", bytes(70_000), "70000 bytes"),
        ("start-training", b"\x91" * 60_000, "is not msgpack"),
    ],
)
def test_a_bad_message_ends_in_dead_letters_with_the_reason(
    servers, aggregators, trainers, kind: str | None, body: bytes, reason: str
) -> None:
    """And stops nobody: the next job runs."""
    aggregators()
    publish_raw(servers, "start-training", kind, body)
    assert run(trainers, spec(rounds={"count": 1, "deadline": "20s"}))

    with connection(servers) as channel:
        method, properties, found = channel.basic_get(names.DEAD_LETTERS, auto_ack=True)
    assert method is not None
    assert reason in properties.headers["x-fedq-reason"]
    assert properties.headers["x-fedq-queue"] == names.COMMANDS
    assert found == body


def publish_raw(servers: Servers, routing_key: str, kind: str | None, body: bytes) -> None:
    servers.bus("raw").declare(topology.commands())
    with connection(servers) as channel:
        channel.basic_publish(names.EVENTS, routing_key, body, pika.BasicProperties(type=kind), mandatory=True)


class connection:  # noqa: N801 - used as a function
    """A raw channel, for what no service of ours would send."""

    def __init__(self, servers: Servers) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(servers.environment()["FEDQ_AMQP_URL"]))

    def __enter__(self) -> Any:
        channel = self._connection.channel()
        channel.confirm_delivery()
        return channel

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def test_updates_are_cleared_away_whatever_came_of_them(servers, aggregators, trainers) -> None:
    """Counted, refused or late: nothing of them is left in the bucket unless the job keeps them."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round:
            hostile(trainers, event, client)
        trainers.answer(event, client)

    for keep, left in ((False, 0), (True, 1)):
        job = start(trainers, spec(rounds={"count": 1, "deadline": "20s"}, keep_updates=keep))
        trainers.until(TrainingEnd, answer)

        keys = servers.blobs().list(names.rounds_prefix(job))
        assert bool([key for key in keys if "/updates/" in key]) == bool(left)


def test_an_update_between_two_asynchronous_rounds_counts_in_the_next(servers, aggregators, trainers) -> None:
    """Its client is at work while the last model is evaluated and no round is open; nobody asks it again."""
    aggregators()
    job_spec = spec(
        strategy={"name": "fedbuff", "buffer_size": 3, "max_staleness": 3},
        rounds={"count": 2, "deadline": "20s"},
        evaluate={"every": 1, "stop": {"target": 2.0}},
    )
    held: list[RoundStart] = []

    def answer(event: RoundStart, client: str) -> None:
        if client == "client-3" and event.round == 1:
            held.append(event)
        else:
            trainers.answer(event, client)

    publish = trainers.bus.publish

    def late(event: AnyEvent, **how: Any) -> None:
        if isinstance(event, ModelEvaluated) and event.round == 1:
            trainers.answer(held[0], "client-3")  # in the mailbox before the evaluation that opens round 2
        publish(event, **how)

    trainers.bus.publish = late  # type: ignore[method-assign]
    job = start(trainers, job_spec)
    end = trainers.until(TrainingEnd, answer)

    assert end.outcome == "finished", end.reason
    second = servers.blobs().get_json(names.manifest_blob(job, 2))
    assert second["carried"] == {"client-3": 1}
    assert {update["client"]: update.get("staleness", 0) for update in second["updates"]}["client-3"] == 1
