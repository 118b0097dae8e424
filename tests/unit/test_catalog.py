"""The catalog as it is listed: everything that a job file may name, and nothing that it may not."""

import json
import typing
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from typer.testing import CliRunner

from docs import catalog_page
from services.cli.__main__ import app
from services.cli.report.catalog import default_of
from shared.job.catalog import listing
from shared.job.job_spec import JobSpec
from tests.unit.test_job_spec import conforms

FOUND = listing.families()
ENTRIES = [(family, entry) for family, entries in FOUND.items() for entry in entries]
#: A value for each key that is required somewhere.
NEEDED: dict[str, Any] = {"clients": 2, "path": "file", "arch": "resnet18", "there": "1m", "away": "1m", "count": 2}
NEEDED |= {"ratios": {"client-0": 2}, "spans": {"client-0": [[0, 1]]}}


def kinds(annotation: Any) -> set[type[BaseModel]]:
    """A section and all that lie in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}.union(*(kinds(field.annotation) for field in annotation.model_fields.values()))
    return set().union(*map(kinds, typing.get_args(annotation)))


def test_every_section_of_a_job_is_in_a_family() -> None:
    """What is added to the job file and not to the list is found here; classes are told apart by their names."""
    listed = {kind for annotation in listing.FAMILIES.values() for kind in kinds(annotation)}

    assert kinds(JobSpec) - listed == {JobSpec}
    assert listed < kinds(JobSpec)
    assert len({kind.__name__ for kind in listed}) == len(listed)


@pytest.mark.parametrize(("family", "entry"), ENTRIES, ids=[f"{family}-{entry.name}" for family, entry in ENTRIES])
def test_an_entry_is_what_the_list_says(family: str, entry: listing.Entry) -> None:
    """Read with what is required and no more, it has the defaults listed; an editor has nothing against it."""
    adapter: TypeAdapter[Any] = TypeAdapter(listing.FAMILIES[family])
    section = {one.name: NEEDED[one.name] for one in entry.parameters if one.required}
    if entry.name is not None:
        section["name"] = "m:f" if entry.name == listing.OWN else entry.name
    found = adapter.dump_python(adapter.validate_python(section), mode="json")

    assert found.keys() - {"name"} == {one.name for one in entry.parameters}
    assert all(found[one.name] == one.default for one in entry.parameters if not one.required)
    assert entry.line.strip().endswith(".")
    assert conforms(section, adapter.json_schema())
    assert conforms(found, adapter.json_schema())
    assert not conforms(section | {"nmae": 1}, adapter.json_schema())


def test_every_name_and_key_is_text_to_yaml() -> None:
    """`on` and `off` are booleans there, and would have to be quoted."""
    names = [entry.name for _, entry in ENTRIES if entry.name is not None and entry.name != listing.OWN]
    keys = [one.name for _, entry in ENTRIES for one in entry.parameters]
    choices = [word for _, entry in ENTRIES for one in entry.parameters if one.type == "choice"
               for word in one.allowed.split(", ") if not word.isdecimal()]  # fmt: skip

    assert [word for word in (*names, *keys, *choices) if yaml.safe_load(word) != word] == []


@pytest.mark.parametrize(
    ("family", "name", "key", "kind", "default", "allowed"),
    [
        ("model", "mlp", "hidden", "list of integers", "[64]", "each ≥ 1, ≤ 65,536"),
        ("model", "cnn", "channels", "list of integers", "[32, 64]", "at least 1, each ≥ 1, ≤ 65,536"),
        ("model", "resnet", "depth", "choice", "20", "18, 20, 32, 44, 50, 56"),
        ("model", "lenet", "adapters", "section", "none", "see model.adapters"),
        ("data", "digits", "clients", "integer", "none", "≥ 1, ≤ 1,000,000"),
        ("data", "femnist", "partition", "section", "natural", None),
        ("data.partition", "dirichlet", "alpha", "number", "0.5", "> 0, ≤ 1,000,000"),
        ("train", None, "optimizer", "section", "sgd", "sgd, adam, adamw"),
        ("train", None, "personal", "list of texts", "[]", ""),
        ("train", listing.OWN, "args", "mapping", "{}", ""),
        ("rounds", None, "deadline", "duration", "60s", "> 0, ≤ 7 days"),
        ("rounds", None, "below_minimum", "choice", "fail", "fail, retry"),
        ("compress", None, "update", "section", "none", "bf16, int8, int4, topk"),
        ("simulate", None, "aware", "true or false", "true", ""),
        ("simulate.network", None, "latency", "duration", "none", "> 0, ≤ 7 days"),
        ("simulate.speed", "ratios", "ratios", "mapping to numbers", "required", "each ≥ 1, ≤ 1,000"),
        ("simulate.availability", "trace", "spans", "mapping to lists of lists of 2 numbers", "required", None),
        ("evaluate.stop", None, "metric", "text", "accuracy", "at most 64 characters"),
    ],
)
def test_a_parameter_is_told_in_words(
    family: str, name: str | None, key: str, kind: str, default: str, allowed: str | None
) -> None:
    """Its type, what it is where it is left out, and its bounds."""
    (found,) = [one for entry in FOUND[family] if entry.name == name for one in entry.parameters if one.name == key]

    assert (found.type, default_of(found)) == (kind, default)
    assert allowed is None or found.allowed == allowed


def test_what_all_have_is_told_once() -> None:
    """And of what is alone, or the user's own, nothing is common."""
    assert [one.name for one in listing.in_common(FOUND["model"])] == ["start", "adapters"]
    assert listing.in_common(FOUND["select"]) == ()  # `all` asks everybody
    assert listing.in_common(FOUND["rounds"]) == ()


@pytest.mark.parametrize(
    ("wanted", "families"),
    [
        ("train", ["train", "train.optimizer", "train.schedule", "train.fedprox"]),
        ("train.optimizer", ["train.optimizer"]),
        ("partition", ["data.partition"]),
        ("model", ["model", "model.adapters"]),
        ("update", ["compress.update"]),
        ("trai", []),
    ],
)
def test_a_family_is_found_as_a_person_names_it(wanted: str, families: list[str]) -> None:
    """With what lies in it, or by the last word of its place."""
    assert list(listing.matching(wanted)) == families


def test_the_page_is_what_the_catalog_is() -> None:
    """The guide's tables are generated."""
    page = catalog_page.PAGE.read_text()

    assert catalog_page.rendered(page) == page, f"docs/guide/catalog.md is stale: run `{catalog_page.COMMAND}`"


def test_the_page_has_a_place_for_each_family() -> None:
    """A family that is added is not left out in silence, and what stands between the markers is replaced."""
    page = catalog_page.PAGE.read_text()
    with pytest.raises(ValueError, match=r"no place for select: "):
        catalog_page.rendered(page.replace("<!-- select -->", ""))

    assert catalog_page.rendered(page.replace("| `krum` |", "| `crumb` |")) == page


def test_the_command_lists_all_of_it() -> None:
    """As JSON for programs, and as text."""
    found = CliRunner().invoke(app, ["catalog", "--json"])
    text = CliRunner().invoke(app, ["catalog"]).stdout

    assert found.exit_code == 0
    document = json.loads(found.stdout)
    assert list(document) == list(listing.FAMILIES)
    assert {entry["name"] for entry in document["train.optimizer"]} == {"sgd", "adam", "adamw"}
    (sgd,) = [entry for entry in document["train.optimizer"] if entry["name"] == "sgd"]
    assert sgd["parameters"][0] == {
        "name": "lr",
        "type": "number",
        "default": 0.05,
        "required": False,
        "allowed": "> 0",
    }
    for family, entry in ENTRIES:
        assert f"{family}:" in text
        assert entry.line in text
        assert all(one.name in text for one in entry.parameters)


def test_an_unknown_family_is_explained() -> None:
    """With those there are."""
    found = CliRunner().invoke(app, ["catalog", "optimiser"])

    assert found.exit_code == 2
    assert found.stderr.startswith("error: there is no family optimiser; these are: model, model.adapters, data, ")
