"""A trainer as a process of its own: what it makes of round-starts, and how it starts, stops and dies."""

import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from services.trainer.parent.dispatch import Dispatch, on_notice, tasks
from services.trainer.parent.worker import make_app
from services.trainer.signals import EVER, Signals
from services.trainer.slot.model_cache import Cache
from services.trainer.train_task import Task
from shared import names
from shared.aggregation import weights
from shared.errors import BadInput, Refused
from shared.events import BlobRef, EvaluateModel, ModelEvaluated, RoundEnd, RoundStart, TrainingEnd
from shared.process import failpoints, settings
from shared.s3.store import Blobs
from tests.by_hand import ROOT, WAIT, Federation, Servers, digits, until
from tests.faults.tcp_proxy import TcpProxy

UNTIL_STORED = ("trainer.taken", "trainer.fetched", "trainer.trained", "trainer.uploading")
ONCE_STORED = ("trainer.uploaded", "trainer.told")
IN_THE_PARENT = ("trainer.heard", "trainer.dispatched")


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    """A server that neither answers nor goes away."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_round_from_start_to_updates(federation: Federation) -> None:
    """Round 0 gives the whole seeded model, round 1 one update for each client of the cohort."""
    trainer = federation.start("--pool", "cpu", "--slots", "2", "--name", "t1")
    spec, blobs = digits(), federation.blobs

    federation.ask(0, "client-0", spec=spec)
    first = federation.update()
    assert (first.round, first.client, first.trainer, first.examples, first.base) == (0, "client-0", "t1", 1, None)
    assert first.update is not None
    assert first.update.key == names.update_blob(federation.job, 0, "client-0", first.update.digest)
    layout = weights.read_layout(blobs.get(first.update))
    assert {tensor.name: tensor.shape for tensor in layout.tensors} == {"head.bias": (10,), "head.weight": (10, 64)}

    cohort = spec.clients[:4]
    federation.ask(1, *cohort, spec=spec, base=first.update)
    found = {update.client: update for update in (federation.update() for _ in cohort)}
    assert found.keys() == set(cohort)
    for client, update in found.items():
        assert update.error is None
        assert update.update is not None
        assert update.update.key == names.update_blob(federation.job, 1, client, update.update.digest)
        delta = blobs.get(update.update)
        weights.check_header(delta, layout.of_updates())
        assert np.abs(layout.of_updates().flat(delta)).max() > 0
        assert update.base == first.update.digest
        assert update.examples in (143, 144)  # of 1,438, among ten
        assert update.metrics.keys() == {"client_loss", "client_accuracy", "train_loss", "steps"}
        assert update.metrics["train_loss"] < update.metrics["client_loss"] == pytest.approx(2.3, abs=0.3)
        assert update.timings.keys() == {"wait", "fetch", "evaluate", "train", "upload", "total"}
    # The node downloads a base once, whatever its number of slots.
    assert sum(update.downloaded for update in found.values()) == first.update.size

    federation.bus.publish(EvaluateModel(job=federation.job, group="cpu", round=0, model=first.update, spec=spec))
    evaluated = federation.updates.get(timeout=WAIT)
    assert isinstance(evaluated, ModelEvaluated)
    assert (evaluated.examples, evaluated.model) == (359, first.update.digest)
    assert evaluated.metrics["loss"] == pytest.approx(2.3, abs=0.3)
    assert 0 <= evaluated.metrics["accuracy"] < 0.3
    assert evaluated.downloaded == 0  # the node has the model

    file = blobs.get(first.update)
    layout.flat(file)[:] += 1
    other = blobs.put(names.update_blob(federation.job, 0, "client-0", weights.digest_of(file)), file)
    federation.bus.publish(EvaluateModel(job=federation.job, group="cpu", round=0, model=other, spec=spec))
    assert federation.updates.get(timeout=WAIT).downloaded == other.size

    # One queue for Celery: no celeryev, no pidbox, no delays.
    queues = federation.servers.stack.rabbitmq.call("GET", f"queues/{federation.servers.vhost}")
    assert {queue["name"] for queue in queues} == {
        "dead-letters",
        "trainer.rounds.cpu",
        "trainer.tasks.cpu",
        "trainer.notices.t1",
        names.updates_queue(federation.job),
        names.HEARTBEATS,
    }
    exchanges = federation.servers.stack.rabbitmq.call("GET", f"exchanges/{federation.servers.vhost}")
    own = {exchange["name"]: exchange["type"] for exchange in exchanges if not exchange["name"].startswith("amq.")}
    assert own == {"": "direct", names.EVENTS: "topic", names.TASKS: "topic"}

    parent = psutil.Process(trainer.pid)
    assert not [file.path for file in parent.memory_maps() if "libtorch" in file.path]
    assert parent.memory_info().rss < 120e6

    trainer.send_signal(signal.SIGTERM)
    assert trainer.wait(WAIT) == 0
    federation.heartbeat(lambda heartbeat: heartbeat.leaving)
    assert "arning" not in federation.log()
    assert list((federation.directory / "cache" / "trainers").iterdir()) == [
        federation.directory / "cache" / "trainers" / "lock"
    ]


def test_nobody_trains_for_a_round_that_is_over(federation: Federation) -> None:
    """Heard of or read from the store, before or while training: nothing is published."""
    federation.start("--pool", "cpu")
    spec, job = digits(), federation.job
    base = federation.initial(spec)
    signs = {"signs": str(federation.directory), "seconds": 600}
    endless = digits(train={"name": "own_job:patient", "args": signs})

    # One slot: what was asked for first is done with when the next one's update comes.
    federation.blobs.put_json(names.manifest_blob(job, 1), {})
    federation.ask(1, "client-1", base=base, spec=spec)
    federation.ask(2, "client-2", base=base, spec=spec)
    assert federation.update().client == "client-2"

    federation.ask(3, "client-3", base=base, spec=endless)
    until((federation.directory / "client-3-3-began").exists, "client-3 is being trained")
    federation.end(3)
    until(lambda: '"reason": "round 3 is over"' in federation.log(), "client-3 is left alone")
    federation.ask(4, "client-4", base=base, spec=spec)
    assert federation.update().client == "client-4"

    # Another attempt at the same round is no longer what has failed.
    federation.end(5, "failed", attempt=1)
    federation.ask(3, "client-5", base=base, spec=spec)
    federation.ask(5, "client-6", base=base, spec=spec, attempt=2)
    assert federation.update().client == "client-6"

    federation.bus.publish(TrainingEnd(job=job, outcome="stopped", rounds=4, model=base))
    federation.blobs.put_json(names.result_blob(job), {})  # in case the notice comes later than the task
    federation.ask(5, "client-7", base=base, spec=spec, attempt=3)
    other = Federation(federation.servers, federation.directory)
    other.ask(0, "client-0", spec=spec)
    assert other.update().client == "client-0"
    assert federation.updates.empty()

    # Nor is the job that its next owner resumes what has ended.
    federation.blobs.delete(names.result_blob(job))
    federation.ask(5, "client-8", base=base, spec=spec, fence=1)
    assert federation.update().client == "client-8"


def test_an_error_of_the_users_code_is_an_answer(federation: Federation) -> None:
    """The aggregator need not wait for the deadline, and the next client is trained."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="own_job.,nowhere.")
    base = federation.initial(digits())
    federation.ask(1, "client-1", base=base, spec=digits(train={"name": "own_job:broken"}))
    update = federation.update()
    assert (update.update, update.examples, update.error) == (
        None,
        0,
        "ZeroDivisionError: no such luck (own_job.py:15)",
    )
    assert "no such luck" in federation.log()

    federation.ask(1, "client-2", base=base, spec=digits(model={"name": "nowhere:make"}))
    error = federation.update().error
    assert error is not None
    assert error.startswith("model.name: this process has no module nowhere")

    federation.ask(1, "client-5", base=base, spec=digits(limits={"max_examples": 10}, train={"name": "own_job:broken"}))
    error = federation.update().error  # before training, which would fail
    assert error == "client-5 has 144 examples, and limits.max_examples is 10: raise that, or give it fewer"

    federation.ask(1, "client-3", base=base, spec=digits(model={"name": "lenet"}))
    assert (federation.update().error or "").startswith("Refused: this trainer builds another model ")

    federation.ask(1, "client-4", base=base.model_copy(update={"digest": "0" * 64}), spec=digits())
    assert (federation.update().error or "").startswith("Refused: ")

    federation.ask(1, "client-5", base=base, spec=digits())
    assert federation.update().error is None


def test_a_silo_trains_on_its_own_data(federation: Federation) -> None:
    """By its own name, from the module in the directory that it was started in."""
    federation.start("--client", "north", "--name", "n1")
    data, silos = {"name": "own_job:Ward"}, ["south", "north"]
    spec = digits(data=data, pool=None, silos=silos, select={"name": "all"})
    base = federation.initial(spec, group="north")
    federation.ask(1, "north", base=base, spec=spec, group="north")
    update = federation.update()

    assert (update.error, update.client, update.examples) == (None, "north", 4)
    beat = federation.heartbeat(lambda heartbeat: heartbeat.trainer == "n1")
    assert (beat.pool, beat.client, beat.group) == (None, "north", "north")
    federation.bus.publish(EvaluateModel(job=federation.job, group="north", round=1, model=base, spec=spec))
    evaluated = federation.updates.get(timeout=WAIT)
    assert isinstance(evaluated, ModelEvaluated)
    assert (evaluated.examples, evaluated.metrics, evaluated.error) == (0, {}, None)


def test_a_trainer_that_is_asked_to_stop_finishes_what_it_trains(federation: Federation) -> None:
    """It takes nothing new, says goodbye and exits with 0; what it did not begin is done by another."""
    leaver = federation.start("--pool", "cpu", "--name", "leaver")
    base = federation.initial(digits())
    signs = {"signs": str(federation.directory), "seconds": 1}
    spec = digits(train={"name": "own_job:patient", "args": signs})
    federation.ask(1, "client-1", "client-2", base=base, spec=spec)
    until((federation.directory / "client-1-1-began").exists, "client-1 is being trained")
    federation.heartbeat(lambda heartbeat: heartbeat.busy == 1)
    leaver.send_signal(signal.SIGTERM)

    update = federation.update()
    assert (update.client, update.error) == ("client-1", None)
    assert federation.heartbeat(lambda heartbeat: heartbeat.leaving).trainer == "leaver"
    assert leaver.wait(WAIT) == 0
    assert not (federation.directory / "client-2-1-began").exists()

    federation.start("--pool", "cpu", "--name", "heir")
    update = federation.update()
    assert (update.client, update.trainer) == ("client-2", "heir")


def test_what_cannot_be_finished_in_time_is_handed_back(federation: Federation) -> None:
    """Training stops between two batches, and the task is on its queue again."""
    trainer = federation.start("--pool", "cpu", FEDQ_GRACE_S="0.5")
    base = federation.given(digits())
    signs = {"signs": str(federation.directory), "seconds": 600}
    federation.ask(1, "client-1", base=base, spec=digits(train={"name": "own_job:patient", "args": signs}))
    until((federation.directory / "client-1-1-began").exists, "client-1 is being trained")
    children = psutil.Process(trainer.pid).children(recursive=True)
    trainer.send_signal(signal.SIGTERM)

    assert trainer.wait(WAIT) == 0
    assert "this trainer stops before the client is trained" in federation.log()
    assert federation.waiting() == 1
    assert federation.updates.empty()
    assert not psutil.wait_procs(children, timeout=WAIT)[1]
    assert not federation.left_behind()


@pytest.mark.parametrize("server", ["rabbitmq", "s3"])
def test_a_trainer_stops_in_time_though_a_server_hangs(federation: Federation, server: str) -> None:
    """Its slot waits for an answer, or itself does: neither is waited for, and the task goes to another."""
    trainer = federation.start("--pool", "cpu", FEDQ_GRACE_S="0.5")
    base = federation.given(digits())
    signs = {"signs": str(federation.directory), "seconds": 600}
    spec = digits(train={"name": "own_job:patient", "args": signs})
    if server == "rabbitmq":
        federation.ask(1, "client-1", base=base, spec=spec)
        until((federation.directory / "client-1-1-began").exists, "client-1 is being trained")
    with hanging(getattr(federation.servers.stack, server).pid):
        if server == "s3":
            federation.ask(1, "client-1", base=base, spec=spec)
            federation.heartbeat(lambda heartbeat: heartbeat.busy == 1)
        children = psutil.Process(trainer.pid).children(recursive=True)
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(WAIT) == 0
        assert not psutil.wait_procs(children, timeout=WAIT)[1]
        assert not federation.left_behind()
    until(lambda: federation.waiting() == 1, "the task is back")


def test_a_second_signal_ends_a_trainer_at_once(federation: Federation) -> None:
    """Its slots go with it, and its task goes back to the queue."""
    trainer = federation.start("--pool", "cpu")
    base = federation.initial(digits())
    signs = {"signs": str(federation.directory), "seconds": 600}
    federation.ask(1, "client-1", base=base, spec=digits(train={"name": "own_job:patient", "args": signs}))
    until((federation.directory / "client-1-1-began").exists, "client-1 is being trained")
    children = psutil.Process(trainer.pid).children(recursive=True)
    trainer.send_signal(signal.SIGINT)
    until(lambda: "stopping" in federation.log(), "the first signal was heard")

    def gone() -> bool:
        trainer.send_signal(signal.SIGINT)
        return trainer.poll() is not None

    until(gone, "the second one ends it")
    assert trainer.returncode == -signal.SIGINT
    _, alive = psutil.wait_procs(children, timeout=WAIT)
    assert not alive
    queue_name = names.tasks_queue("cpu")
    until(lambda: (federation.bus.depth(queue_name) or (0, 0))[0] == 1, "the task is back")


def test_a_trainer_may_be_stopped_before_it_is_ready(federation: Federation) -> None:
    """While its slots import torch: they go at once."""
    trainer = federation.launch("--pool", "cpu", "--slots", "2")
    children = until(
        lambda: found if len(found := psutil.Process(trainer.pid).children()) >= 3 else [], "its slots are there"
    )
    trainer.send_signal(signal.SIGTERM)

    assert trainer.wait(WAIT) == 0
    _, alive = psutil.wait_procs(children, timeout=WAIT)
    assert not alive
    assert "Traceback" not in federation.log()


def test_a_trainer_may_be_stopped_while_it_waits_for_the_broker(federation: Federation) -> None:
    """It has begun nothing that it would have to finish."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(WAIT)
        trainer = federation.launch("--pool", "cpu", FEDQ_AMQP_URL=f"amqp://me:me@127.0.0.1:{mute.getsockname()[1]}")
        connection, _ = mute.accept()
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(WAIT) == 0
        connection.close()
    assert not federation.left_behind()


def test_a_killed_trainer_leaves_no_process_and_loses_no_task(federation: Federation) -> None:
    """kill -9 of the parent: its slots die with it, and another trainer does its work."""
    trainer = federation.start("--pool", "cpu", "--slots", "2")
    base = federation.initial(digits())
    signs = {"signs": str(federation.directory), "seconds": 600}
    slow = digits(train={"name": "own_job:patient", "args": signs})
    federation.ask(1, "client-1", "client-2", base=base, spec=slow)
    for client in ("client-1", "client-2"):
        until((federation.directory / f"{client}-1-began").exists, f"{client} is being trained")
        (federation.directory / f"{client}-1-began").unlink()
    children = psutil.Process(trainer.pid).children(recursive=True)
    assert len(children) >= 2
    trainer.kill()
    _, alive = psutil.wait_procs(children, timeout=WAIT)
    assert not alive

    federation.start("--pool", "cpu", "--slots", "2")
    for client in ("client-1", "client-2"):
        until((federation.directory / f"{client}-1-began").exists, f"{client} is being trained again")
    folders = [path for path in (federation.directory / "cache" / "trainers").iterdir() if path.is_dir()]
    assert len(folders) == 1  # the dead one's was removed


@pytest.mark.parametrize("points", [UNTIL_STORED, ONCE_STORED], ids=["until it is stored", "once it is stored"])
def test_a_slot_may_die_at_any_point(federation: Federation, points: tuple[str, ...]) -> None:
    """As when the kernel is out of memory: others do its task in the end, and contribute nothing else."""
    spec = digits(model={"name": "mlp", "hidden": [2048]})  # so large that it is sent in pieces
    base = federation.given(spec)
    armed = ",".join(f"{point}=kill:{federation.directory / point}" for point in points)
    trainer = federation.start("--pool", "cpu", FEDQ_FAILPOINT=armed)
    before = psutil.Process(trainer.pid).children(recursive=True)
    federation.ask(1, "client-1", base=base, spec=spec)
    updates = [federation.update()]
    while updates[-1].tries <= len(points):  # told, and not acknowledged
        updates.append(federation.update())

    assert all(f'"name": "{point}"' in federation.log() for point in points)
    assert federation.log().count("exited with 'signal 9 (SIGKILL)'") == len(points)
    assert len({update.update.digest for update in updates if update.update}) == 1
    assert {(update.client, update.error) for update in updates} == {("client-1", None)}
    # What is in the store already is told of, not trained again.
    assert all((update.timings == {}) == (points == ONCE_STORED) for update in updates)

    children = before + psutil.Process(trainer.pid).children(recursive=True)
    trainer.send_signal(signal.SIGTERM)
    assert trainer.wait(WAIT) == 0
    assert not psutil.wait_procs(children, timeout=WAIT)[1]
    assert federation.waiting() == 0
    assert not federation.left_behind()


def test_no_point_is_left_out() -> None:
    """Each one that a trainer passes is one that it dies at here."""
    passed = {point for point in failpoints.POINTS if point.startswith("trainer.")}
    assert {*UNTIL_STORED, *ONCE_STORED, *IN_THE_PARENT} == passed


@pytest.mark.parametrize("point", IN_THE_PARENT)
def test_a_trainer_may_die_with_a_round_in_hand(federation: Federation, point: str) -> None:
    """The round-start goes to another; a client that is then asked twice contributes once."""
    spec = digits()
    base = federation.given(spec)
    trainer = federation.start("--pool", "cpu", FEDQ_FAILPOINT=f"{point}=kill")
    children = psutil.Process(trainer.pid).children(recursive=True)
    federation.ask(1, "client-1", base=base, spec=spec)
    assert trainer.wait(WAIT) == -signal.SIGKILL
    assert not psutil.wait_procs(children, timeout=WAIT)[1]

    heir = federation.start("--pool", "cpu")
    updates = [federation.update() for _ in range(1 if point == "trainer.heard" else 2)]
    assert {update.client for update in updates} == {"client-1"}
    assert len({update.update.digest for update in updates if update.update}) == 1
    heir.send_signal(signal.SIGTERM)
    assert heir.wait(WAIT) == 0
    assert (federation.waiting(), federation.waiting(names.rounds_queue("cpu"))) == (0, 0)
    assert federation.updates.empty()


def test_a_client_that_kills_each_process_is_given_up(federation: Federation) -> None:
    """After five tries it is excluded with the reason, its task is a dead letter, and nothing is left behind."""
    federation.start("--pool", "cpu")
    spec = digits()
    base = federation.given(spec)
    signs = {"signs": str(federation.directory)}
    federation.ask(1, "client-1", base=base, spec=digits(train={"name": "own_job:deadly", "args": signs}))
    update = federation.update()

    assert (update.client, update.update, update.tries) == ("client-1", None, 5)
    assert update.error == (
        "given up after 5 tries: the process for the job's own code was killed (SIGKILL), by lack of memory perhaps"
    )
    until(lambda: federation.bus.depth(names.DEAD_LETTERS) == (1, 0), "it is a dead letter")
    helpers = [int(path.name.partition("-")[2]) for path in federation.directory.glob("helper-*")]
    assert len(helpers) == 5
    until(lambda: not any(alive(helper) for helper in helpers), "what the process had forked dies with it")
    federation.ask(1, "client-2", base=base, spec=spec)
    assert federation.update().error is None


def test_a_task_that_fails_for_the_fifth_time_is_given_up(federation: Federation) -> None:
    """With the reason that is known; before, it is put back."""
    federation.start("--pool", "cpu", FEDQ_FAILPOINT="trainer.taken=raise")
    spec, job = digits(), federation.job
    base = federation.given(spec)
    event = RoundStart(
        job=job, group="cpu", round=1, attempt=1, base=base, cohort=("client-1",), spec=spec, deadline=0, fence=3
    )
    federation.publish_task(next(tasks(event, 0)), headers={"x-delivery-count": 4})
    update = federation.update()
    assert (update.error, update.tries) == ("given up after 5 tries: failpoint trainer.taken", 5)

    asked = EvaluateModel(job=job, group="cpu", round=1, model=base, spec=spec)
    federation.publish_task(next(tasks(asked, 0)), headers={"x-delivery-count": 5})
    found = federation.updates.get(timeout=WAIT)
    assert isinstance(found, ModelEvaluated)
    assert (found.error or "").startswith("given up after 5 tries: each ended without an answer")
    until(lambda: federation.bus.depth(names.DEAD_LETTERS) == (2, 0), "both are dead letters")


def test_a_client_that_is_asked_again_tells_again(federation: Federation) -> None:
    """By another trainer too, of what lies in the store; but not where the base or the settings have changed."""
    spec = digits()
    base = federation.given(spec)
    trainer = federation.start("--pool", "cpu", "--name", "first")
    federation.ask(1, "client-1", base=base, spec=spec)
    first = federation.update()
    federation.ask(1, "client-1", base=base, spec=digits(train={"epochs": 1}))  # as after a job was resumed
    other = federation.update()
    assert first.update is not None
    assert other.update is not None
    assert other.update.digest != first.update.digest
    trainer.send_signal(signal.SIGTERM)
    assert trainer.wait(WAIT) == 0

    federation.blobs.delete(other.update.key)
    federation.start("--pool", "cpu", "--name", "second")
    federation.ask(1, "client-1", base=base, spec=spec, attempt=2, fence=1, again=True)
    again = federation.update()
    assert (again.update, again.trainer, again.examples) == (first.update, "first", first.examples)
    assert (again.metrics, again.attempt, again.timings) == (first.metrics, 2, {})
    federation.ask(1, "client-1", base=first.update, spec=spec, again=True)  # not a model, but another base
    assert federation.update().base == first.update.digest


def test_a_store_that_is_away_costs_no_task(federation: Federation) -> None:
    """The slot tries again for a while; when the trainer is to stop, the task goes back to its queue."""
    with TcpProxy("127.0.0.1", federation.servers.stack.state.ports["s3"]) as line:
        trainer = federation.start("--pool", "cpu", FEDQ_S3_URL=f"http://{line.address}")
        line.down()
        federation.ask(0, "client-0", spec=digits())
        until(lambda: '"trying again"' in federation.log(), "the store is missed")
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(WAIT) == 0

    assert '"requeued"' in federation.log()
    assert (federation.bus.depth(names.tasks_queue("cpu")) or (0, 0))[0] == 1
    federation.start("--pool", "cpu")
    assert federation.update().error is None


def test_a_task_that_is_none_becomes_a_dead_letter(federation: Federation) -> None:
    """A trainer of another version may have sent it; a person finds it, and the next task is done."""
    federation.start("--pool", "cpu")
    federation.publish_task(Task("train", "an id", "what it is", {"what": "is this"}))
    assert federation.initial(digits())
    until(lambda: federation.bus.depth(names.DEAD_LETTERS) == (1, 0), "it is a dead letter")


def test_a_task_that_is_handed_out_again_is_answered_from_memory(federation: Federation) -> None:
    """After a lost connection, say: the same update, at once."""
    federation.start("--pool", "cpu")
    spec = digits()
    base = federation.initial(spec)
    federation.ask(1, "client-1", base=base, spec=spec)
    federation.ask(1, "client-1", base=base, spec=spec)

    assert federation.update() == federation.update()


def test_a_trainer_outlives_its_connections(federation: Federation) -> None:
    """All of them closed by the broker: it comes back by itself, and the next round is trained."""
    federation.start("--pool", "cpu", "--name", "t1")
    base = federation.initial(digits())
    rabbitmq, vhost = federation.servers.stack.rabbitmq, federation.servers.vhost

    def connections() -> list[str]:
        """All five: consuming, publishing, Celery's, that of its publisher, the slot's."""
        found = rabbitmq.call("GET", f"vhosts/{vhost}/connections")
        own = [connection["name"] for connection in found if connection["user"] == "trainer"]
        return own if len(own) == 5 else []

    for name in until(connections, "the management API, which looks every 5 s, knows them"):
        rabbitmq.call("DELETE", f"connections/{name.replace(' ', '%20').replace('>', '%3E')}")
    federation.ask(1, "client-1", "client-2", base=base, spec=digits())

    clients = set()
    while clients != {"client-1", "client-2"}:  # round 0 may be told of twice: its acknowledgement may have been lost
        update = federation.update()
        clients |= {update.client} if update.round == 1 else set()
    signs = {"signs": str(federation.directory), "seconds": 600}
    federation.ask(2, "client-1", base=base, spec=digits(train={"name": "own_job:patient", "args": signs}))
    until((federation.directory / "client-1-2-began").exists, "client-1 is being trained")
    federation.end(2)  # heard, so that its notices come again too
    federation.ask(3, "client-3", base=base, spec=digits())
    assert federation.update().client == "client-3"


def test_a_trainer_outlives_its_queues(federation: Federation) -> None:
    """An operator deletes them, with what is in them: it notices, declares them again and serves."""
    federation.start("--pool", "cpu", "--name", "t1")
    base = federation.initial(digits())
    for name in (names.tasks_queue("cpu"), names.rounds_queue("cpu")):
        federation.bus.delete(name)
        until(lambda name=name: federation.bus.depth(name) == (0, 1), f"{name} is there again, and consumed")  # type: ignore[misc]
    federation.ask(1, "client-1", base=base, spec=digits())
    assert federation.update().error is None


def test_a_task_for_a_queue_that_is_gone_is_not_lost(federation: Federation) -> None:
    """It is declared again: the connection that declared it before knows nothing of its end."""
    configuration = federation.servers.settings(settings.Trainer, "trainer")
    dispatch = Dispatch(federation.bus, make_app(configuration, "cpu", "t1", federation.directory), "cpu")
    event = EvaluateModel(job=federation.job, group="cpu", round=1, model=federation.given(digits()), spec=digits())
    dispatch(event)
    assert federation.waiting() == 1
    federation.bus.delete(names.tasks_queue("cpu"))
    dispatch(event)
    assert federation.waiting() == 1
    dispatch.close()


def test_a_broker_that_hangs_is_noticed(federation: Federation) -> None:
    """By Celery, and by pika in the parent and in the slot; then all goes on."""
    heartbeat = 4
    trainer = federation.start("--pool", "cpu", "--name", "t1", FEDQ_AMQP_HEARTBEAT_S=str(heartbeat))
    base = federation.initial(digits())

    def lost(which: str) -> int:
        return federation.log().count(which)

    with hanging(federation.servers.stack.rabbitmq.pid):
        until(lambda: lost("consumer: Connection to broker lost"), "the worker misses it")
        until(lambda: lost('"event": "connection lost"') == 3, "the parent misses it, twice, and the slot")
    federation.ask(1, "client-1", base=base, spec=digits())
    assert federation.update().error is None
    assert trainer.poll() is None


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A trainer that has only a few seconds' patience with RabbitMQ."""
    code = (
        "import services.trainer.__main__ as trainer, shared.process.service\n"
        "shared.process.service.PATIENCE = 2.5\n"
        "shared.process.service.run(trainer.main)"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        cwd=ROOT,
        env={**inherited, **environment},
        stderr=subprocess.PIPE,
        text=True,
        timeout=WAIT,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "one of the arguments --pool --client is required"),
        (("--pool", "cpu", "--client", "a"), "not allowed with argument"),
        (("--pool", "c p u"), "'c p u' is not a name"),
        (("--pool", "cpu", "--slots", "0"), "'0' is not a number from 1 to 256"),
        (("--pool", "cpu"), "FEDQ_AMQP_URL are not set: set them"),
    ],
)
def test_wrong_arguments_and_settings_are_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    """And exit code 2."""
    found = run(*arguments)

    assert found.returncode == 2
    assert sentence in found.stderr
    assert "Traceback" not in found.stderr


def test_a_broker_that_is_away_at_the_start_is_one_sentence(servers: Servers, tmp_path: Path) -> None:
    """And exit code 3, after a bounded time; nothing is left behind."""
    environment = {**servers.environment("trainer"), "FEDQ_CACHE_DIR": str(tmp_path)}
    away = run("--pool", "cpu", **{**environment, "FEDQ_AMQP_URL": "amqp://guest:guest@127.0.0.1:9"})
    refused = run("--pool", "cpu", **{**environment, "FEDQ_AMQP_URL": environment["FEDQ_AMQP_URL"] + "-other"})

    assert (away.returncode, refused.returncode) == (3, 3)
    assert away.stderr.splitlines()[-1].startswith("error: RabbitMQ at 127.0.0.1:9 cannot be reached (")
    assert refused.stderr.splitlines()[-1].startswith("error: RabbitMQ at 127.0.0.1:")
    assert f"refuses the vhost '{servers.vhost}-other'" in refused.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "trainers").iterdir()] == ["lock"]


def test_a_device_that_is_not_there_is_one_sentence(federation: Federation) -> None:
    """The slots find out, the parent says it."""
    trainer = federation.launch("--pool", "cpu", FEDQ_DEVICE="cuda:99")

    assert trainer.wait(WAIT) == 2
    assert "error: FEDQ_DEVICE: cuda:99 cannot be used here" in federation.log()


def fetch(store: settings.Store, directory: Path, ref: BlobRef) -> tuple[int, str]:
    cache = Cache(directory, 1 << 30, Blobs(store))
    return weights.digest_of(cache.get(ref)) == ref.digest and cache.received, next(iter(cache._open))


def test_processes_of_a_node_download_a_model_once(servers: Servers, tmp_path: Path) -> None:
    """The others wait for the one that does, and see the same bytes."""
    body = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8)
    ref = servers.blobs().put("test/cached", body)
    store = servers.settings(settings.Store)
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        found = [task.result() for task in [pool.submit(fetch, store, tmp_path / "cache", ref) for _ in range(4)]]

    assert sorted(received for received, _ in found) == [0, 0, 0, ref.size]


def test_the_cache_stays_below_its_limit_and_keeps_out_what_is_broken(servers: Servers, tmp_path: Path) -> None:
    """Least recently used go first; who still has one keeps it; a wrong digest never gets in."""
    blobs = servers.blobs()
    refs = [blobs.put(f"test/model-{value}", np.full(600_000, value, np.uint8)) for value in range(3)]
    cache = Cache(tmp_path / "cache", 1_300_000, blobs)
    first = cache.get(refs[0])
    for ref in refs[1:]:
        cache.get(ref)

    def kept() -> set[str]:
        return {path.stem for path in (tmp_path / "cache").glob("*.safetensors")}

    assert kept() == {ref.digest for ref in refs[1:]}
    assert (first == 0).all()
    first[:] = 9  # private: nobody writes into the cache
    assert (cache.get(refs[0]) == 0).all()

    wrong = refs[0].model_copy(update={"digest": "f" * 64})
    with pytest.raises(Refused, match="its digest is"):
        cache.get(wrong)
    assert "f" * 64 not in kept()
    assert not list((tmp_path / "cache").glob("*.part"))


def test_what_a_killed_process_began_to_download_is_removed(servers: Servers, tmp_path: Path) -> None:
    """By the next one; what somebody downloads now stays."""
    Cache(tmp_path, 1, servers.blobs())
    for digest in ("a" * 64, "b" * 64):
        (tmp_path / f"{digest}.part").touch()
    with open(tmp_path / "lock-b", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Cache(tmp_path, 1, servers.blobs())
        assert [path.name for path in tmp_path.glob("*.part")] == [f"{'b' * 64}.part"]
    Cache(tmp_path, 1, servers.blobs())
    assert not list(tmp_path.glob("*.part"))


def test_a_cache_of_another_user_is_refused(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the directory owns the models."""
    another = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    with pytest.raises(BadInput, match="belongs to another user"):
        Cache(tmp_path, 1, servers.blobs())


def test_the_signals_remember_the_latest_end_of_each_job(tmp_path: Path) -> None:
    """Rounds, fences and attempts, in whatever order the notices come; and forgets the oldest jobs."""
    with Signals.create(tmp_path, "t") as signals:
        slot = Signals(signals.directory)  # as another process opens it
        assert not slot.is_over("a", 0, 0, 1)
        signals.end("a", 3, 5, 2)
        assert slot.is_over("a", 3, 5, 2)
        assert slot.is_over("a", 3, 4, 9)  # of an earlier owner
        assert not slot.is_over("a", 3, 5, 3)
        assert not slot.is_over("a", 3, 6, 1)
        signals.end("a", 3)
        signals.end("a", 2)
        assert slot.is_over("a", 3, 6, 1)
        assert not slot.is_over("a", 4, 0, 1)

        for number in range(1100):
            signals.end(f"b-{number}", 1)
        assert not slot.is_over("a", 0, 0, 1)
        assert slot.is_over("b-1099", 1, EVER, EVER)
        assert len(list(signals.directory.iterdir())) < 1100
    assert not signals.directory.exists()


def test_a_job_that_has_ended_may_be_resumed(tmp_path: Path) -> None:
    """What its later owner asks for is not over: the round that was open, though it be round 0, and what follows."""
    base = BlobRef(key="k", size=1, digest="0" * 64)
    with Signals.create(tmp_path, "t") as signals:
        on_notice(signals, TrainingEnd(job="a-aaaaaa", outcome="stopped", rounds=3, model=base, fence=7))
        assert signals.is_over("a-aaaaaa", 3, 8, 1)
        assert signals.is_over("a-aaaaaa", 4, 7, 9)
        assert not signals.is_over("a-aaaaaa", 4, 8, 1)
        on_notice(signals, TrainingEnd(job="b-aaaaaa", outcome="failed", rounds=0, fence=7))
        assert signals.is_over("b-aaaaaa", 0, 7, 9)
        assert not signals.is_over("b-aaaaaa", 0, 8, 1)
        for outcome in ("failed", "stopped"):
            end = RoundEnd.model_validate(
                {
                    "job": "c-aaaaaa",
                    "round": 2,
                    "attempt": 3,
                    "fence": 1,
                    "outcome": outcome,
                    "accepted": 0,
                    "rejected": 0,
                }
            )
            on_notice(signals, end)
            assert signals.is_over("c-aaaaaa", 2, 1, 3)
            assert not signals.is_over("c-aaaaaa", 2, 1, 4)
            assert not signals.is_over("c-aaaaaa", 2, 2, 1)
