"""Code by name: whoever may publish a job or a task runs nothing but what the process that does the work allows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.train_task import Task, TrainTask
from shared import names
from shared.events import ModelUpdate
from tests.by_hand import Federation, digits
from tests.conftest import Servers
from tests.harness import Services
from tests.scripted import DIGITS, Aggregator, Fedq

JOB = "digits-aaaaaa"


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """A file that a command makes, if it runs."""
    return tmp_path / "it-ran"


def command(sign: Path) -> dict[str, Any]:
    """A section of a job that is a command."""
    return {"name": "subprocess:Popen", "args": {"args": ["touch", str(sign)]}}


@pytest.fixture
def federation(servers: Servers, tmp_path: Path) -> Iterator[Federation]:
    """A trainer's peers on the bus, by hand."""
    found = Federation(servers, tmp_path)
    yield found
    for process in found.processes:
        process.kill()
        process.wait()


def refused(update: ModelUpdate, trainer: str, section: str) -> bool:
    """Whether an answer is that this trainer does not run it, and names what to set and to what."""
    return (update.update, update.error) == (
        None,
        f"{section}.name: FEDQ_ALLOW of the trainer {trainer} lacks subprocess:Popen; add that, or subprocess. for its "
        "whole module, where it is to run there",
    )


def test_a_strategy_is_no_command_on_the_aggregator(services: Services, sign: Path) -> None:
    """A16: the job fails at once, and says what was lacking where."""
    services.all()
    services.fedq("start", DIGITS, "--set", f"strategy={json.dumps(command(sign))}", "--id", JOB, "--watch", code=1)

    reason = services.json("show", JOB)["detail"]
    assert reason.startswith("the aggregator gave up: strategy.name: FEDQ_ALLOW of the aggregator ")
    assert " lacks subprocess:Popen; add that, or subprocess. for its whole module" in reason
    assert not sign.exists()


@pytest.mark.parametrize("section", ["model", "data", "train"])
def test_no_section_of_a_job_is_a_command_on_a_trainer_of_a_pool(
    federation: Federation, sign: Path, section: str
) -> None:
    """A17, and that of data and local step: the job fails at once with the first of a round's reasons."""
    more = {"clients": 4} if section == "data" else {}
    federation.start("--pool", "cpu", "--name", "pooled", FEDQ_ALLOW="")
    base = federation.given(digits())
    federation.ask(1, "client-0", base=base, spec=digits(**{section: command(sign) | more}))

    assert refused(federation.update(), "pooled", section)
    assert not sign.exists()


def test_a_forged_round_start_is_no_command_at_another_silo(federation: Federation, sign: Path) -> None:
    """A18: it needs no job and no aggregator, and is answered all the same."""
    federation.start("--client", "hospital-b", "--name", "theirs", FEDQ_ALLOW="")
    spec = digits(model=command(sign), data={"name": "examples.hospital:data"}, silos=["hospital-b"], pool=None)
    federation.ask(0, "hospital-b", spec=spec, group="hospital-b")
    update = federation.update()

    assert update.error is not None
    assert update.error.startswith("data.name: FEDQ_ALLOW of the trainer theirs lacks examples.hospital:data; ")
    assert not sign.exists()


def test_a_forged_task_is_no_command(federation: Federation, sign: Path) -> None:
    """A19: published past every round-start, straight onto the queue of tasks."""
    federation.start("--pool", "cpu", "--name", "pooled", FEDQ_ALLOW="")
    spec = digits(model=command(sign))
    order = TrainTask(job=federation.job, round=0, attempt=1, members=("client-0",), base=None, asked=0, spec=spec)
    federation.publish_task(Task("train", order.identity, "forged", order.model_dump(mode="json")))

    assert refused(federation.update(), "pooled", "model")
    assert not sign.exists()


@pytest.mark.parametrize("command_line", [("verify", JOB), ("replay", JOB, "1")], ids=lambda words: words[0])
def test_a_record_is_no_command_where_it_is_read(
    servers: Servers, tmp_path: Path, sign: Path, command_line: tuple[str, ...]
) -> None:
    """Neither `fedq verify` nor `fedq replay` runs what a manifest names: exit code 2, and the sentence."""
    fedq = Fedq(servers.environment(), tmp_path)
    aggregator = Aggregator(servers, servers.bus("scripted"))
    aggregator.listen()
    fedq("start", DIGITS, "--set", "rounds.count=1", "--set", "keep_updates=true", "--id", JOB)
    job = aggregator.take()
    for number in range(2):
        job.ask(number)
        job.commit(number)
    job.end(rounds=1, accuracy=0.8)
    key = names.manifest_blob(JOB, 1)
    servers.blobs().put_json(key, servers.blobs().get_json(key) | {"strategy": command(sign)})
    done = fedq(*command_line)

    assert done.code == 2, done
    assert "strategy.name: FEDQ_ALLOW of this fedq lacks subprocess:Popen; add that" in done.err
    assert not sign.exists()
