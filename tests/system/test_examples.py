"""Every example job file runs, made short, on one federation that they share."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from deploy.native.stack import Stack
from services.trainer.data import leaf
from tests.conftest import Servers
from tests.datasets import leaf_file, mnist_files, write, writer
from tests.harness import ROOT, Services

pytestmark = pytest.mark.timeout(300)

EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.yaml"))}
AT_ONCE = 6  #: jobs that share the two trainers

#: How an example is overridden, beside having two rounds.
SHORT: dict[str, tuple[str, ...]] = {
    # Its photographs cannot be small: torchvision looks at the files' sums, in the trainer's process. Others stand in.
    "cifar10": (
        "data={name: npz, path: photographs.npz, clients: 10, partition: {name: dirichlet, alpha: 0.5}}",
        "select.clients=4",
        "rounds.minimum=2",
        "pool=cpu",
    ),
    "femnist": ("data.clients=12",),
    "mnist": ("data.clients=20",),
    "shakespeare": ("data.clients=12", "model.hidden=32"),
    "lora": ("train.epochs=1",),
    "personal": ("train.epochs=1",),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What trainers find below FEDQ_DATA_DIR."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "mnist", mnist_files("MNIST", train=1000, test=50))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (120, 3, 32, 32)).astype(np.uint8)
    np.savez(folder / "photographs.npz", x=pixels, y=np.arange(120) % 10)
    for part, size in (("train", 12), ("test", 2)):
        writers = {f"f{number:02d}": writer(size, number) for number in range(12)}
        roles = {f"ROLE {number:02d}": speech(size, number) for number in range(12)}
        write(folder / "femnist" / part, {"a.json": leaf_file(writers)})
        write(folder / "shakespeare" / part, {"a.json": leaf_file(roles)})
    for example in ("csv", "hospital_csv"):
        made_as_told(EXAMPLES[example], folder)
    return folder


def speech(size: int, seed: int) -> tuple[list[str], list[str]]:
    """Lines of 80 characters, and the one that follows each."""
    letters = np.random.default_rng(seed).choice(list(leaf.VOCABULARY), (size, 81))
    return ["".join(line[:80]) for line in letters], [str(line[80]) for line in letters]


def made_as_told(example: Path, folder: Path) -> None:
    """Runs the command by which the example says how its table is made: the first of those in its comment."""
    lines = example.read_text().splitlines()
    told = lines[next(place for place, line in enumerate(lines) if line.startswith("#   ")) :]
    command = "\n".join(line.removeprefix("#   ") for line in told[: told.index("#")])
    (folder / "as-told").mkdir(exist_ok=True)
    if not (folder / "as-told" / "data").exists():
        (folder / "as-told" / "data").symlink_to(folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", command], cwd=folder / "as-told", env={**os.environ, "PATH": path}, check=True)


@pytest.fixture(scope="module")
def federation(stack: Stack, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """An aggregator and two trainers of the pool."""
    servers = Servers(stack, vhost="examples", database=0, buses=[])
    servers.redis().flushdb()
    stack.add_vhost(servers.vhost)
    folder = tmp_path_factory.mktemp("federation")
    found = Services(servers, folder)
    found.settings = {"FEDQ_DATA_DIR": str(data), "FEDQ_STATE_DIR": str(folder / "state"), "FEDQ_THREADS": "1"}
    try:
        found.all()
        yield found
    finally:
        found.stop()
        for bus in servers.buses:
            bus.close()
        stack.remove_vhost(servers.vhost)
        servers.blobs().delete("jobs/")


@pytest.fixture(scope="module")
def runs(federation: Services, data: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, "Future[Any]"]]:
    """The examples that were asked for, on their way: several at once, in the order of their tests."""
    asked = [
        item.callspec.params["example"]
        for item in request.session.items
        if item.path == Path(__file__) and hasattr(item, "callspec")
    ]
    for silo in (silo for example in asked for silo in document(example).get("silos", ())):
        own = {"FEDQ_DATA_DIR": str(data / silo)} if (data / silo).exists() else {}
        federation.start("trainer", "--client", silo, role="trainer", **own)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {example: pool.submit(run, federation, example) for example in asked}
        pool.shutdown(cancel_futures=True)


def document(example: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(EXAMPLES[example].read_text())
    return found


def run(federation: Services, example: str) -> dict[str, Any]:
    """What a person sees of an example: whether it is valid, all lines of its life, and whether its record holds."""
    file = f"examples/{example}.yaml"
    changes = [word for key in ("rounds.count=2", *SHORT.get(example, ())) for word in ("--set", key)]
    lines = federation.fedq("start", file, *changes, "--watch").splitlines()
    return {
        "valid": federation.fedq("validate", file),
        "lines": lines,
        "verified": federation.json("verify", lines[0]),
    }


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_valid_trains_and_keeps_every_promise(runs: dict[str, "Future[Any]"], example: str) -> None:
    """As it is written, it is a job file; made short, it ends with an accuracy, and its record holds."""
    found = runs[example].result()

    assert found["valid"].startswith(f"examples/{example}.yaml: fine, ")
    last = found["lines"][-1]
    assert re.fullmatch(r"accuracy [01]\.\d{3} (on the clients )?after 2 rounds \(\d+\.\d s\)(; .+)?", last), found[
        "lines"
    ]
    committed = [line for line in found["lines"] if ": committed " in line]
    assert [line.partition(":")[0] for line in committed] == ["round 1/2", "round 2/2"]
    assert all(re.search(r", clients' loss \d+\.\d{3}, accuracy [01]\.\d{3}, ", line) for line in committed), committed
    assert found["verified"]["holds"] is True, found["verified"]


def test_only_examples_are_made_short() -> None:
    """An override of an example that is gone would be read by nobody."""
    assert SHORT.keys() <= EXAMPLES.keys()


def test_a_mistake_in_the_users_strategy_ends_the_job_with_its_words(federation: Services) -> None:
    """At once, and not at a deadline: what a person got wrong stays wrong however often it is tried."""
    wrong = ("--set", "strategy.args={momentun: 0.5}", "--set", "rounds.deadline=10m", "--id", "own-strategy-wrong1")
    federation.fedq("start", "examples/own_strategy.yaml", *wrong, "--watch", code=1)

    reason = federation.json("show", "own-strategy-wrong1")["detail"]
    assert reason.startswith("the aggregator gave up: strategy.name: examples.own_strategy:Nesterov raised TypeError")
    assert "'momentun'" in reason


def test_a_mistake_that_trainers_find_is_the_reason_of_the_end(federation: Services) -> None:
    """Whoever reads only how the job ended learns what to mend."""
    federation.fedq(
        "start", "examples/csv.yaml", "--set", "data.path=no.csv", "--id", "irises-wrong1", "--watch", code=1
    )

    reason = federation.json("show", "irises-wrong1")["detail"]
    assert "(asked 1, failed 1); client-0: data.name is csv: this trainer has no " in reason
