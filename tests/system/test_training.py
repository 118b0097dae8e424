"""Real processes on real servers train real data to a good model."""

import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.numpy import save
from torch import nn

from services.trainer.data import dataset
from services.trainer.models import catalog
from services.trainer.training import loop
from shared import names
from shared.aggregation import weights
from shared.amqp import topology
from shared.events import BlobRef, Heartbeat
from shared.job import job_spec
from tests.harness import SECONDS, Services


def test_digits_train_to_a_good_model_and_replay_agrees(services: Services) -> None:
    """The example job reaches 0.95; its last line says so; its rounds replay to the same digests."""
    services.all()
    out = services.fedq("start", "examples/digits.yaml", "--watch")
    last = out.strip().splitlines()[-1]
    found = re.fullmatch(r"accuracy (0\.\d{3}) after 15 rounds \((\d+\.\d) s\)", last)
    assert found, last
    assert float(found[1]) >= 0.95

    (job,) = services.json("jobs")
    for number in (0, 1, 15):
        assert services.json("replay", job["id"], str(number))["agrees"] is True
    assert queues(services) == {
        names.COMMANDS,
        names.HEARTBEATS,
        names.DEAD_LETTERS,
        names.rounds_queue("cpu"),
        names.tasks_queue("cpu"),
        *(names.notices_queue(member["trainer"]) for member in services.json("nodes")),
    }


def queues(services: Services) -> set[str]:
    server = services.servers.stack.rabbitmq
    return {queue["name"] for queue in server.call("GET", f"queues/{services.servers.vhost}")}


SMALL = (
    "--set",
    "rounds.count=3",
    "--set",
    "train.epochs=1",
    "--set",
    "model={name: softmax}",
    "--set",
    "evaluate.every=0",
)


def test_the_same_seed_commits_the_same_digests(services: Services) -> None:
    """Round by round, whatever the order in which the two trainers finish."""
    services.all()
    first, second = (
        services.fedq("start", "examples/digits.yaml", *SMALL, "--watch", "--id", job)
        for job in ("digits-same01", "digits-same02")
    )
    assert "3 rounds" in first
    assert "3 rounds" in second

    assert services.digests("digits-same01") == services.digests("digits-same02")


def test_one_client_with_all_data_equals_central_training(services: Services, tmp_path: Path) -> None:
    """Federation adds nothing and loses nothing: the same steps without it give the same model to 1e-6."""
    document = {
        "name": "central",
        "seed": 5,
        "model": {"name": "mlp", "hidden": [16]},
        "data": {"name": "digits", "clients": 1},
        "train": {"epochs": 2, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.1}},
        "rounds": {"count": 3},
        "evaluate": {"every": 0},
        "pool": "cpu",
    }
    file = tmp_path / "central.yaml"
    file.write_text(json.dumps(document))
    services.all(trainers=1)
    services.fedq("start", str(file), "--watch", "--id", "central-alone1")
    result = services.servers.blobs().get_json(names.result_blob("central-alone1"))
    blob = services.servers.blobs().get(BlobRef.model_validate(result["model"]))
    federated = weights.read_layout(blob).views(blob)

    spec = job_spec.parse(document)
    loaded = dataset.load(spec)
    x, y = dataset.of_client(loaded, spec, "client-0")
    model = catalog.build(spec.model, loaded.shape, loaded.classes, spec.seed)
    model.train()
    for number in (1, 2, 3):
        for epoch in range(2):
            generator = torch.Generator().manual_seed(loop.shuffle_seed(spec.seed, "client-0", number, epoch))
            for batch in torch.randperm(len(y), generator=generator).split(32):
                model.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        assert parameter.grad is not None
                        parameter.sub_(0.1 * parameter.grad)
    for name, central in model.state_dict().items():
        np.testing.assert_allclose(federated[name], central.numpy(), atol=1e-6)


def test_several_jobs_run_at_once_on_several_aggregators(services: Services) -> None:
    """Four jobs, two aggregators, two trainers: all finish, and both aggregators had some."""
    services.start("registry")
    for _ in range(2):
        services.start("aggregator", FEDQ_MAX_JOBS="2")
    services.trainers()
    started = [services.fedq("start", "examples/digits.yaml", *SMALL).strip().splitlines()[-1] for _ in range(4)]
    for job in started:
        services.fedq("watch", job)

    assert len({services.servers.ledger().required(job).owner for job in started}) == 2


def test_silos_train_on_data_of_their_own(services: Services) -> None:
    """Two hospitals, one process each, and no pool."""
    services.start("registry")
    services.start("aggregator")
    for silo in ("hospital-a", "hospital-b"):
        services.start("trainer", "--client", silo, role="trainer")
    out = services.fedq("start", "examples/silos.yaml", "--watch")

    assert re.search(r"after \d+ rounds", out.strip().splitlines()[-1])


def test_own_model_by_module_and_attribute(services: Services) -> None:
    """The example with a network of the user's own trains."""
    services.all(trainers=1)
    out = services.fedq("start", "examples/own_model.yaml", "--watch", "--set", "rounds.count=2")

    assert "after 2 rounds" in out.strip().splitlines()[-1]


def test_a_mistake_in_the_users_code_ends_the_job_with_its_words(services: Services) -> None:
    """Not at the deadline, and not with a traceback: at once, naming the module."""
    services.all(trainers=1)
    failing = ("--set", "model={name: 'no_such_module:make'}", "--id", "digits-wrong1")
    services.fedq("start", "examples/digits.yaml", *failing, "--watch", code=1)

    assert "no_such_module" in json.dumps(services.json("show", "digits-wrong1"))


def test_an_initial_model_that_is_no_numbers_ends_the_job_at_once(services: Services, tmp_path: Path) -> None:
    """Long before the deadline, with the file and the tensor, and without faults that were none."""
    services.all(trainers=2)
    tensors = {"head.weight": np.full((10, 64), np.nan, np.float32), "head.bias": np.zeros(10, np.float32)}
    (tmp_path / "start.safetensors").write_bytes(save(tensors))
    job = yaml.safe_load(Path("examples/digits.yaml").read_text(encoding="utf-8"))
    job |= {"model": {"name": "softmax", "start": "start.safetensors"}}
    job["rounds"] |= {"deadline": "10m"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    services.fedq("start", str(tmp_path / "job.yaml"), "--id", "digits-nan001", "--watch", code=1)
    shown = services.json("show", "digits-nan001")

    assert re.fullmatch(
        r"round 0 has 0 of the 1 updates it needs and nobody is left to answer \(asked 1, failed 1\); client-\d+: "
        r"model\.start, start\.safetensors: the model's tensor head\.weight holds NaN or Inf, or values beyond float32",
        shown["detail"],
    )
    assert {line["fault"] for line in shown["log"]} == {"client-failed", "round-failed"}


def test_a_model_whose_loss_is_no_number_has_not_just_finished(services: Services) -> None:
    """Its rounds were committed; the exit code, the reason and the results say what they are worth."""
    services.all(trainers=1)
    changes = ("--set", "model={name: 'tests.unsound:make'}", "--set", "rounds.count=2", "--id", "digits-nan002")
    services.fedq("start", "examples/digits.yaml", *changes, "--watch", code=1)

    reason = "the model's loss is not a finite number since the evaluation of round 0;"
    assert services.json("show", "digits-nan002")["detail"].startswith(reason)
    found = services.json("results", "digits-nan002")
    assert (found["result"]["outcome"], found["result"]["rounds"]) == ("failed", 2)
    assert [past["loss"] for past in found["rounds"]] == [None, None, None]
    assert services.json("verify", "digits-nan002")["holds"] is True


def test_stop_ends_training_and_leaves_the_model(services: Services) -> None:
    """`fedq stop` ends a job in the middle; a child that trains stops too."""
    services.all(trainers=1)
    services.fedq("start", "examples/digits.yaml", "--set", "train.epochs=10000", "--id", "digits-stops1")
    bus = services.servers.bus("waiting")
    opened = threading.Event()
    bus.serve(topology.Queue("test.rounds", ("round-start.cpu",)), lambda event: opened.set() if event.round else None)
    record = services.servers.ledger().required("digits-stops1")
    assert record.round >= 0 or opened.wait(SECONDS), services.tails()
    services.fedq("stop", "digits-stops1")

    assert services.servers.ledger().required("digits-stops1").status == "stopped"
    idle = threading.Event()

    def on_heartbeat(event: Any) -> None:
        if isinstance(event, Heartbeat) and event.busy == 0:
            idle.set()

    bus.serve(topology.Queue("test.beats", ("heartbeat.#",)), on_heartbeat)
    assert idle.wait(SECONDS), "the trainer still trains for a job that is stopped"


def test_a_trainer_that_is_asked_to_stop_leaves_the_roster(services: Services) -> None:
    """SIGTERM: it finishes, says goodbye, exits 0; nobody waits for its lease."""
    services.start("registry")
    (trainer,) = services.trainers(1)
    left = threading.Event()
    bus = services.servers.bus("leaving")
    bus.serve(topology.Queue("test.beats", ("heartbeat.#",)), lambda event: left.set() if event.leaving else None)
    os.kill(trainer.pid, signal.SIGTERM)

    assert left.wait(SECONDS), services.tails()
    bus.close()
    services.stop()
    assert services.servers.roster().alive() == []
