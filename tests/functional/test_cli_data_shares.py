"""Who has what, as the command line asks the trainer's code and shows it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.jobs import data_shares, jobfile
from services.cli.report.plotting import shares
from shared.errors import BadInput

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits.yaml"
COUNTS = {"client-0": [3, 0, 1], "client-1": [0, 2, 0]}
ANSWER = {"classes": ["cat", "dog", "fox"], "clients": COUNTS, "test": [1, 1, 1], "shape": [3, 32, 32]}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes some code stand in for the trainer's."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def behave(code: str) -> None:
        (tmp_path / "stand_in.py").write_text(code)
        monkeypatch.setattr(data_shares, "MODULE", "stand_in")

    return behave


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["data", str(DIGITS), *arguments])


def test_the_trainers_code_says_who_has_what() -> None:
    """All examples of the data set, once each, and the job file's overrides are heard."""
    found = run("--set", "data.clients=12", "--set", "data.test_fraction=0.5", "--json")

    assert found.exit_code == 0, found.stderr
    document = json.loads(found.stdout)
    assert list(document["clients"]) == [f"client-{number:02d}" for number in range(12)]
    assert sum(map(sum, document["clients"].values())) + sum(document["test"]) == 1797
    assert sum(document["test"]) in (898, 899)
    assert (document["classes"], document["shape"]) == ([str(digit) for digit in range(10)], [1, 8, 8])


def test_the_table_sums_each_client_up(trainer: Any) -> None:
    """How many examples, of how many classes, and of which most."""
    trainer(f"import sys; sys.stdin.read(); print('''{json.dumps(ANSWER)}''')")
    lines = run().stdout.splitlines()

    assert lines[:2] == [
        "2 clients have 6 examples of 3 classes and shape 3×32×32: 2 to 4 each, half of them 4 or more",
        "the test set has 3",
    ]
    assert [line.split() for line in lines[2:]] == [
        ["client", "examples", "classes", "most", "of"],
        ["client-0", "4", "2", "cat", "(3),", "fox", "(1)"],
        ["client-1", "2", "1", "dog", "(2)"],
    ]


def test_a_long_table_is_cut_and_says_so(trainer: Any) -> None:
    """JSON has all clients."""
    many = ANSWER | {"clients": {f"client-{number:03d}": [1, 0, 0] for number in range(100)}, "test": None}
    trainer(f"import sys; sys.stdin.read(); print('''{json.dumps(many)}''')")
    text = run().stdout

    assert "100 clients have 100 examples of 3 classes and shape 3×32×32: 1 each\n" in text
    assert "client-039" in text
    assert "client-040" not in text
    assert "and 60 more clients; --json has all of them, --plot shows them" in text
    assert "test set" not in text
    assert json.loads(run("--json").stdout) == many


def test_the_job_is_what_the_trainers_code_reads(trainer: Any) -> None:
    """As a trainer gets it: whole, with its defaults."""
    trainer("import json, sys; print(json.dumps({'job': json.load(sys.stdin)}))")
    spec = jobfile.load(DIGITS)

    assert data_shares.counted(spec)["job"] == spec.model_dump(mode="json")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (
            "import sys; sys.exit('a warning\\nerror: data.clients is 9000, but there are 3')",
            "data.clients is 9000, but",
        ),
        ("raise KeyError('x')", "data digits: KeyError: 'x'"),
        ("import sys; sys.exit(3)", "data digits: it ended with code 3 and no word"),
        (
            "raise ModuleNotFoundError(\"No module named 'torch'\")",
            "torch is not installed here: install fedq[trainer]",
        ),
        (
            "import sys; sys.exit(\"error: ModuleNotFoundError: No module named 'sklearn.datasets'\")",
            "sklearn is not installed here: install fedq[trainer]",
        ),
        ("raise ModuleNotFoundError(\"No module named 'mypkg'\")", "No module named 'mypkg'"),
    ],
)
def test_what_goes_wrong_there_is_one_sentence_here(trainer: Any, code: str, sentence: str) -> None:
    """The last line that it said, or what to install."""
    trainer(code)
    found = run()

    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert sentence in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_split_that_does_not_end_is_ended(trainer: Any, tmp_path: Path) -> None:
    """Its process too."""
    trainer(f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    with pytest.raises(BadInput, match="data digits was not read within 2 s"):
        data_shares.counted(jobfile.load(DIGITS), patience=2)

    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_ctrl_c_ends_both_without_a_word(tmp_path: Path) -> None:
    """A terminal interrupts the whole group."""
    (tmp_path / "slow.py").write_text(f"open({str(tmp_path / 'there')!r}, 'w'); import time; time.sleep(60)")
    code = (
        "from services.cli import __main__; from services.cli.jobs import data_shares; "
        "data_shares.MODULE = 'slow'; __main__.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "data", str(DIGITS)],
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "there").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (10, 10), (60, 10), (300, 62), (1000, 10), (2500, 3)])
def test_few_and_many_clients_are_drawn(tmp_path: Path, clients: int, classes: int) -> None:
    """Into a picture that has more colours the more classes there are."""
    counts = {f"client-{number:04d}": [number % 7 + label for label in range(classes)] for number in range(clients)}
    shares("job", [str(label) for label in range(classes)], counts, tmp_path / "split.png")
    pixels = matplotlib.image.imread(tmp_path / "split.png")

    assert pixels.shape[1] > pixels.shape[0] > 500
    colours = {tuple(pixel) for pixel in pixels[::3, ::3].reshape(-1, pixels.shape[2])}
    assert len(colours) > classes


def test_a_picture_is_saved_whole_and_replaces_nothing(trainer: Any, tmp_path: Path) -> None:
    """Unless --force; what cannot be saved is said before any data are read."""
    trainer(f"import sys; sys.stdin.read(); print('''{json.dumps(ANSWER)}''')")
    picture = tmp_path / "split.png"
    assert run("--plot", str(picture)).stderr == f"saved {picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")

    trainer("raise SystemExit('it was read')")
    again = run("--plot", str(picture))
    assert (again.exit_code, again.stderr) == (2, f"error: {picture}: exists already; --force overwrites it\n")
    assert "it was read" in run("--plot", str(picture), "--force").stderr
