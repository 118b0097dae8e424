"""A job's figures on their way out: as CSV, into TensorBoard's files, and into MLflow by its own client."""

import csv
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Servers
from tests.scripted import COHORT, DIGITS, Aggregator, Fedq, Scripted

JOB = "digits-aaaaaa"


@pytest.fixture
def fedq(servers: Servers, tmp_path: Path) -> Any:
    runs = Fedq(servers.environment() | {"MLFLOW_ALLOW_FILE_STORE": "true"}, tmp_path)
    yield runs
    for process in runs.running:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def aggregator(servers: Servers) -> Aggregator:
    found = Aggregator(servers, servers.bus("scripted"))
    found.listen()
    return found


@pytest.fixture
def job(fedq: Fedq, aggregator: Aggregator) -> Scripted:
    """A job of two rounds that has been taken."""
    assert fedq("start", DIGITS, "--set", "rounds.count=2", "--id", JOB).code == 0
    return aggregator.take()


def rounds(job: Scripted, first: int, last: int) -> None:
    for number in range(first, last + 1):
        job.ask(number, COHORT if number else COHORT[:1])
        job.commit(number, accuracy=0.25 * (1 + number))


# --- what TensorBoard would read ----------------------------------------------------------------


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every scalar below a folder, with the checksums that TensorBoard holds records to."""
    from tensorboardX.crc32c import crc32c  # noqa: PLC0415 - these are heavy, and few tests need them
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

    def checksum(data: bytes) -> int:
        found = crc32c(data)
        return (((found >> 15) | (found << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    points = []
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            length, check = struct.unpack("<QI", data[:12])
            body, (after,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
            assert (checksum(data[:8]), checksum(body)) == (check, after)
            event = Event.FromString(body)
            points += [
                (value.tag, event.step, value.simple_value)
                for value in event.summary.value
                if value.HasField("simple_value")
            ]
            data = data[16 + length :]
    return points


def series(folder: Path, tag: str) -> list[tuple[int, float]]:
    return sorted((step, value) for found, step, value in scalars(folder) if found == tag)


def test_every_round_is_in_tensorboards_files(fedq: Fedq, job: Scripted, tmp_path: Path) -> None:
    """While the job runs, from before its first round to its end; what is shown is what `fedq watch` shows."""
    process = fedq.begin("track", JOB, "--tensorboard", "tb")
    assert process.stdout is not None
    while "running" not in process.stdout.readline():
        pass
    rounds(job, 0, 2)
    job.end(rounds=2, accuracy=0.75)
    done = fedq.finish(process)

    assert (done.code, done.err) == (0, "")
    assert "round 2/2: test loss 0.500, accuracy 0.750" in done.out
    assert done.lines[-1] == "accuracy 0.750 after 2 rounds (12.3 s)"
    folder = tmp_path / "tb" / JOB
    assert series(folder, "test/accuracy") == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert series(folder, "test/loss") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert series(folder, "train/client_loss") == [(1, 1.5), (2, 1.5)]
    assert series(folder, "round/accepted") == [(1, 2.0), (2, 2.0)]
    assert series(folder, "round/rejected") == [(1, 1.0), (2, 1.0)]
    assert series(folder, "round/examples") == [(1, 21.0), (2, 21.0)]
    assert series(folder, "round/seconds") == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert series(folder, "client/client-01/examples") == [(1, 11.0), (2, 11.0)]
    assert b"max_abs: 256.0" in b"".join(file.read_bytes() for file in folder.iterdir())


def test_a_job_that_is_over_is_told_at_once_and_only_once(fedq: Fedq, job: Scripted, tmp_path: Path) -> None:
    """Tracked again, it adds nothing; resumed, only what is new, also after a file that was cut off."""
    rounds(job, 0, 1)
    job.end("failed", "too few", rounds=1)
    for _ in range(2):
        done = fedq("track", JOB, "--tensorboard", "tb", "--clients", "1")
        assert (done.code, done.err.splitlines()[-1]) == (1, f"error: job {JOB} failed: too few")
    folder = tmp_path / "tb"
    once = Counter((tag, step) for tag, step, _ in scalars(folder))
    assert set(once.values()) == {1}
    assert {tag for tag, _ in once if tag.startswith("client/")} == {
        f"client/client-00/{name}" for name in ("examples", "norm")
    }

    rounds(job, 2, 2)
    job.end(rounds=2, accuracy=0.75)
    (tmp_path / "tb" / JOB / "events.out.tfevents.1.torn").write_bytes(struct.pack("<QI", 99, 0) + b"torn")
    process = fedq("track", JOB, "--tensorboard", "tb")
    (tmp_path / "tb" / JOB / "events.out.tfevents.1.torn").unlink()
    assert series(folder, "test/accuracy") == [(0, 0.25), (1, 0.5), (2, 0.75)], process
    assert max(Counter((tag, step) for tag, step, _ in scalars(folder)).values()) == 1


# --- MLflow -------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store of MLflow's own, as its own client reads it."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    return MlflowClient(tracking_uri=(tmp_path / "runs").as_uri())


def runs(store: Any) -> list[Any]:
    experiment = store.get_experiment_by_name("fedq")
    return list(store.search_runs([experiment.experiment_id]))


def history(store: Any, run: Any, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in store.get_metric_history(run.info.run_id, key))


def test_every_round_is_in_mlflow(fedq: Fedq, job: Scripted, store: Any, tmp_path: Path) -> None:
    """One run of the job's name, with its settings, and the job's status; the URI may be from the environment."""
    process = fedq.begin("track", JOB, MLFLOW_TRACKING_URI=(tmp_path / "runs").as_uri())
    assert process.stdout is not None
    while "running" not in process.stdout.readline():
        pass
    (run,) = runs(store)
    assert (run.info.run_name, run.info.status) == (JOB, "RUNNING")
    rounds(job, 0, 2)
    job.end(rounds=2, accuracy=0.75)
    done = fedq.finish(process)

    assert (done.code, done.err) == (0, "")
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert history(store, run, "test/accuracy") == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert history(store, run, "client/client-00/examples") == [(1, 10.0), (2, 10.0)]
    params = run.data.params
    assert (params["seed"], params["train.optimizer.lr"], params["rounds.count"]) == ("7", "0.1", "2")
    assert params["data.partition.name"] == "dirichlet"
    assert "model.adapters" not in params  # what is left out is no setting


def test_a_job_has_one_run(fedq: Fedq, job: Scripted, store: Any, tmp_path: Path) -> None:
    """Tracked again it is continued: nothing twice, and the status is that of its last end."""
    where = ("track", JOB, "--mlflow", (tmp_path / "runs").as_uri())
    rounds(job, 0, 1)
    job.end("failed", "too few", rounds=1)
    assert fedq(*where).code == 1
    (run,) = runs(store)
    assert run.info.status == "FAILED"

    assert fedq("start", "--resume", JOB, "--set", "rounds.count=3").code == 0
    job.fence = job.servers.ledger().claim(JOB, "scripted", 60)
    rounds(job, 2, 3)
    job.end("stopped", "enough", rounds=3)
    for _ in range(2):
        done = fedq(*where)
        assert done.err == f"error: job {JOB} stopped: enough\n"
    (run,) = runs(store)
    assert run.info.status == "KILLED"
    assert run.data.params["rounds.count"] == "2"  # a parameter of MLflow's is for ever
    for key in ("test/accuracy", "round/seconds"):
        assert [step for step, _ in history(store, run, key)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "say where to: --tensorboard DIR, or --mlflow URI (or MLFLOW_TRACKING_URI), or both"),
        (["--mlflow", "http://me:secret@127.0.0.1:1"], 3, "MLflow at http://127.0.0.1:1: API request to "),
        (["--mlflow", "nonsense://x"], 2, "MLflow at nonsense://x: "),
        (["--tensorboard", "file/tb"], 2, "file/tb/digits-aaaaaa: cannot be written: Not a directory"),
    ],
)
def test_what_cannot_be_told_is_explained(
    fedq: Fedq, job: Scripted, tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    """In one sentence, without a password."""
    (tmp_path / "file").write_text("")
    job.end(rounds=0)
    done = fedq("track", JOB, *arguments, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")

    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(f"error: {sentence}")
    assert done.err.count("\n") == 1
    assert "secret" not in done.err


@pytest.mark.parametrize(
    ("package", "option", "name"),
    [("tensorboardX", "--tensorboard", "tensorboardX"), ("mlflow", "--mlflow", "mlflow-skinny")],
)
def test_a_package_that_is_missing_is_named(
    fedq: Fedq, job: Scripted, tmp_path: Path, package: str, option: str, name: str
) -> None:
    """With what to install; the folder a process runs in comes first on its path."""
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{package}'\")")
    job.end(rounds=0)
    done = fedq("track", JOB, option, "somewhere")

    assert (done.code, done.err) == (2, f"error: {name} is not installed here: install fedq[tracking]\n")


# --- tables -------------------------------------------------------------------------------------


def test_results_save_a_row_for_each_round_and_client(fedq: Fedq, job: Scripted, tmp_path: Path) -> None:
    """Whole or not at all, and never over a file that is there."""
    rounds(job, 0, 2)
    job.end(rounds=2)
    file = tmp_path / "rows.csv"
    done = fedq("results", JOB, "--csv", str(file))
    assert (done.code, done.err) == (0, f"saved {file}\n")
    with file.open(newline="") as opened:
        found = list(csv.DictReader(opened))

    assert [(row["round"], row["client"], row["state"]) for row in found] == [
        ("0", "", "committed"),
        *[
            (number, client, state)
            for number in ("1", "2")
            for client, state in (
                ("", "committed"),
                ("client-00", "accepted"),
                ("client-01", "accepted"),
                ("client-09", "rejected"),
            )
        ],
    ]
    assert (found[1]["accuracy"], found[1]["client_loss"], found[1]["examples"]) == ("0.5", "1.5", "21")
    assert found[2]["examples"] == "10"
    again = fedq("results", JOB, "--csv", str(file))
    assert (again.code, again.err) == (2, f"error: {file}: exists already; --force overwrites it\n")
    assert fedq("results", JOB, "--csv", str(file), "--force").code == 0


def test_show_says_who_took_part(fedq: Fedq, job: Scripted) -> None:
    """How often each was asked and what came of it, the stranger too."""
    rounds(job, 0, 2)
    job.end(rounds=2)

    assert fedq("show", JOB, "--json").document["participation"] == {
        "client-00": {"asked": 2, "accepted": 2, "rejected": 0, "last": 2},
        "client-01": {"asked": 2, "accepted": 2, "rejected": 0, "last": 2},
        "client-09": {"asked": 0, "accepted": 0, "rejected": 2, "last": None},
    }
    shown = fedq("show", JOB).out
    assert "2 of 20 clients were asked, 2 times each, and 2 updates of each were accepted" in shown
    assert ["client-09", "0", "0", "2"] in [line.split() for line in shown.splitlines()]
