"""An exported model is used as the guide's page says, by the page's own lines."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from services.trainer.models import catalog, start
from tests.harness import ROOT, Services

PAGE = ROOT / "docs/guide/load.md"
COLOURS = ("blau", "grün", "rot")


def lines(folder: Path, rows: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the names of the page's lines hold after they have run beside the exported file."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(folder)
    found = {"rows": rows}
    exec(code, found)  # noqa: S102 - our own page
    return found


def test_the_lines_of_the_page_tell_labels_from_rows(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows as the file has them: far from zero, of very different scales, and labels that are words."""
    random = np.random.default_rng(1)
    kinds = random.integers(0, 3, 240)
    x = random.normal([500.0, -0.02], [40.0, 0.01], (240, 2)) + np.outer(kinds, [200.0, 0.05])
    rows = "".join(f"{a},{b},{COLOURS[kind]}\n" for (a, b), kind in zip(x, kinds, strict=True))
    (tmp_path / "colours.csv").write_text(f"a,b,colour\n{rows}", encoding="utf-8")
    job = tmp_path / "job.yaml"
    job.write_text(
        "name: colours\nseed: 1\nmodel: {name: softmax}\npool: cpu\nrounds: {count: 4}\n"
        "data: {name: csv, path: colours.csv, label: colour, scale: true, clients: 2}\n"
        "train: {epochs: 20, batch_size: 16, optimizer: {name: sgd, lr: 0.5}}\n"
    )
    services.start("registry")
    services.start("aggregator")
    services.trainers(1, FEDQ_DATA_DIR=str(tmp_path))
    services.fedq("start", str(job), "--watch")
    services.fedq("results", "last", "--export", str(tmp_path / "model.safetensors"))

    found = lines(tmp_path, x.tolist(), monkeypatch)
    right = [label == COLOURS[kind] for label, kind in zip(found["labels"], kinds, strict=True)]
    assert sum(right) / len(right) > 0.95
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a handle, no mapping
    (record,) = services.json("jobs")
    last = services.json("results", "last")["rounds"][-1]
    assert (about["fedq.job"], json.loads(about["fedq.round"])) == (record["id"], 4)
    assert about["fedq.digest"] == last["model"]["digest"]
    assert json.loads(about["fedq.model"])["name"] == "softmax"
    assert json.loads(about["fedq.inputs"])["labels"] == list(COLOURS)
    for name, value in found["model"].state_dict().items():
        assert np.array_equal(tensors[name], value.numpy())

    fresh = catalog.build(found["TypeAdapter"](found["ModelSpec"]).validate_json(about["fedq.model"]), (2,), 3, seed=9)
    start.begin_with(fresh, tmp_path / "model.safetensors")  # another job may begin with it
    for name, value in fresh.state_dict().items():
        assert np.array_equal(tensors[name], value.numpy())
