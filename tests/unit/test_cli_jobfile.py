"""From a file and its overrides to a job, or to a sentence that says where the mistake is."""

from pathlib import Path

import pytest

from services.cli.jobs import jobfile, plain_yaml
from shared.errors import BadInput
from shared.job import job_spec

EXAMPLES = Path(__file__).parents[2] / "examples"


def write(folder: Path, text: str) -> Path:
    file = folder / "job.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_is_a_job(file: Path) -> None:
    """What we show works."""
    assert jobfile.load(file).rounds.count > 0


def test_the_digits_example_is_the_one_of_the_guide() -> None:
    """Its figures are quoted in several places."""
    spec = jobfile.load(EXAMPLES / "digits.yaml")

    assert (spec.name, spec.seed, spec.model.name, spec.population) == ("digits", 7, "mlp", 20)
    assert (spec.rounds.count, spec.target, spec.minimum, spec.rounds.deadline) == (15, 10, 8, 60.0)
    assert spec.keep_updates


def test_assignments_override_the_file_with_values_of_yaml() -> None:
    """Numbers become numbers, sections sections, and null unsets."""
    sets = ["rounds.count=3", "train.optimizer.lr=1e-3", "model={name: mlp, hidden: [8]}", "rounds.minimum=null"]
    spec = jobfile.load(EXAMPLES / "digits.yaml", sets)

    assert spec.rounds.count == 3
    assert spec.train.model_dump()["optimizer"]["lr"] == 0.001
    assert spec.model.model_dump(exclude_unset=True) == {"name": "mlp", "hidden": (8,)}
    assert spec.rounds.minimum is None


@pytest.mark.parametrize("text", ["rounds.count", "=3", "rounds..count=3", ".=1", "a={"])
def test_an_assignment_that_is_none_is_explained(text: str) -> None:
    """With the assignment itself in the sentence."""
    with pytest.raises(BadInput, match=r"--set "):
        jobfile.load(EXAMPLES / "digits.yaml", [text])


def test_an_assignment_into_a_value_is_explained() -> None:
    """`seed` holds a number, so nothing can be set inside it."""
    with pytest.raises(BadInput, match="seed holds a value, not a section"):
        jobfile.load(EXAMPLES / "digits.yaml", ["seed.x=1"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a\nmodel: {name: lenet\nseed: 3\n", r"job\.yaml:3:\d+: is not YAML"),
        ("name: a\nname: b\n", r"job\.yaml:2:1: is not YAML: the key 'name' is given twice"),
        ("name: !!python/object:os.system x\n", r"job\.yaml:1:\d+: is not YAML"),
        ("- a\n- b\n", "a job file is a mapping"),
        ("", "a job file is a mapping"),
        ("\x00", "is not YAML"),
        ("name: [" * 3000, r"job\.yaml:1:\d+: is not YAML: the file is more than 64 levels deep"),
        ("a: &a [*a]\n", r"job\.yaml:1:8: is not YAML: the alias \*a stands within what it repeats"),
        ("name: !!binary aGk=\n", "is not YAML"),
        ("seed: !!int many\n", "is not YAML: 'many' is no int"),
        ("seed: 1e999\n", "is not YAML: the number 1e999… is too large"),
        (f"seed: {'9' * 5000}\n", "is not YAML: the number 9{20}… is too large"),
        ("? [a]\n: b\n", "is not YAML: a key is one word"),
        ("base: &b {x: 1}\nname: {<<: *b, <<: *b}\n", "is not YAML: the key '<<' is given twice"),
    ],
)
def test_a_file_that_is_no_job_file_is_explained(tmp_path: Path, text: str, sentence: str) -> None:
    """With the line where there is one."""
    with pytest.raises(BadInput, match=sentence):
        jobfile.load(write(tmp_path, text))


def test_a_file_that_is_endless_is_refused() -> None:
    """A device, say."""
    with pytest.raises(BadInput, match="/dev/zero: is no job file: it is longer than 4 MiB"):
        jobfile.load(Path("/dev/zero"))


def test_a_value_that_may_mean_two_things_is_refused_with_its_place(tmp_path: Path) -> None:
    """File, line, key, what was written, and what to write instead."""
    file = write(tmp_path, "name: a\nmodel: {name: softmax}\ndata:\n  name: digits\n  clients: 010\n")
    with pytest.raises(BadInput) as caught:
        jobfile.load(file)

    assert str(caught.value) == (
        f"{file}:5:12: data.clients: 010 counts in eights to some readers of YAML: "
        "write it without leading zeros, or quote it"
    )


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("data.clients=010", r"--set data.clients=010: 010 counts in eights.*: --set 'data.clients=\"010\"'$"),
        ("silos=[a, no]", r"--set silos=\[a, no\]: 1: no means false to some readers of YAML: .* or quote it$"),
        ("name=123", "name: 123 is not allowed: unquoted it means a number, and a word is wanted: quote it"),
        ("name=1.50", "name: 1.50 is not allowed: unquoted it means a number"),
        ("name=True", "name: True is not allowed: unquoted it means true or false"),
        ("name=null", "name: null is not allowed: unquoted it means nothing"),
        ("name=", "name: null is not allowed: unquoted it means nothing"),
        ("data.partition={name: dirichlet, alpha: true}", "data.partition.alpha: true is not allowed: it should be a"),
    ],
)
def test_an_assignment_is_read_as_the_file_is(assignment: str, sentence: str) -> None:
    """One reader for both, and what was written in the sentence."""
    with pytest.raises(BadInput, match=sentence):
        jobfile.load(EXAMPLES / "digits.yaml", [assignment])


def test_blanks_around_a_key_are_none_of_it() -> None:
    """As they are none of a value in YAML."""
    assert jobfile.load(EXAMPLES / "digits.yaml", [" rounds.count = 3"]).rounds.count == 3


def test_an_assignment_reaches_one_section_of_two_that_an_alias_made_one(tmp_path: Path) -> None:
    """Both are the same value in memory."""
    text = "model: &section {name: mlp}\nother: *section\n"
    found = job_spec.override(plain_yaml.read(text).value, [("model.name", "softmax")])

    assert found == {"model": {"name": "softmax"}, "other": {"name": "mlp"}}


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    """Absent, a directory, or no text."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, sentence in (
        (tmp_path / "none.yaml", "there is no such file$"),
        (Path("-"), "there is no such file; what is piped in is /dev/stdin$"),
        (tmp_path, "cannot be read: Is a directory"),
        (binary, "byte 0 is not UTF-8"),
    ):
        with pytest.raises(BadInput, match=sentence):
            jobfile.load(path)


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    """Each on a line of its own, with the file's name."""
    file = write(
        tmp_path, "name: a\nmodel: {name: lenett}\ndata: {name: digits, clients: 0}\nrounds: {count: 1}\npool: p\n"
    )
    with pytest.raises(BadInput) as caught:
        jobfile.load(file)

    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{file}: ") for line in lines)
