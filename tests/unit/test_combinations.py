"""Settings that cannot go together: each pair has a sentence, and what the sentence advises is a job."""

import ast
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shared.errors import BadInput
from shared.job import combinations, job_spec

POOL = {
    "name": "t",
    "model": {"name": "mlp"},
    "data": {"name": "digits", "clients": 12},
    "rounds": {"count": 2},
    "pool": "cpu",
}
SILOS = {"pool": None, "silos": ["north", "south"]}
OWN = {"name": "m:f"}
SHOWN = "`fedq data FILE`, run where a silo's data are, shows its own"


def job(changes: dict[str, Any]) -> dict[str, Any]:
    """A job of twelve clients; a dotted key sets a value within a section."""
    return job_spec.override(POOL, list(changes.items()))


#: What cannot be, the sentence it has, and what makes it a job again.
IMPOSSIBLE: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (
        {"strategy": {"name": "scaffold"}, "train": OWN},
        "strategy scaffold changes the local step: it needs the built-in one, not your own",
        {"train": {}},
    ),
    (
        {"strategy": {"name": "qfedavg"}, "train": OWN},
        "strategy qfedavg changes the local step: it needs the built-in one, not your own",
        {"strategy.name": "fedavg"},
    ),
    (
        {"strategy": {"name": "fednova"}, "train": {"optimizer": {"name": "adam"}}},
        "strategy fednova is defined for sgd; train.optimizer is adam",
        {"train.optimizer.name": "sgd"},
    ),
    (
        {"strategy": {"name": "fednova"}, "train": {"optimizer": {"lr": 0.5}, "fedprox": {"mu": 2}}},
        "train.fedprox.mu times train.optimizer.lr is 1, a pull beyond the round's model, and fednova cannot say how "
        "far such steps go: keep it below 1",
        {"train.fedprox.mu": 1.9},
    ),
    (
        {"strategy": {"name": "scaffold"}, "compress": {"update": {"name": "int8"}}},
        "strategy scaffold sends control variates beside its updates, and those cannot be compressed: "
        "leave compress.update out",
        {"compress.update": None},
    ),
    (
        {"strategy": {"name": "scaffold"}, "train": {"buffers": "left_out"}},
        "strategy scaffold needs all of the model on the server: leave train.personal and train.buffers out",
        {"train.buffers": "averaged"},
    ),
    (
        {"limits": {"max_abs": 2**20, "max_examples": 2**28}, "data": {"name": "digits", "clients": 1000}},
        "limits.max_abs 1.04858e+06, limits.max_examples 268435456 and the 1000 clients of a round leave 4 of the 8 "
        "binary places that the fold needs: lower the limits",
        {"limits.max_abs": 2**16},
    ),
    (
        {"strategy": {"name": "krum", "byzantine": 2}, "rounds": {"count": 2, "minimum": 6}},
        "strategy krum with byzantine 2 needs 7 updates, and a round may have 6 (rounds.minimum): "
        "ask more clients, or tolerate fewer attackers",
        {"rounds.minimum": 7},
    ),
    (
        {"strategy": {"name": "bulyan", "byzantine": 3}},
        "strategy bulyan with byzantine 3 needs 15 updates, and a round may have 12 (rounds.minimum): "
        "ask more clients, or tolerate fewer attackers",
        {"strategy.byzantine": 2},
    ),
    (
        {"strategy": {"name": "multikrum", "byzantine": 2, "keep": 11}},
        "strategy.keep is 11; of 12 updates (rounds.minimum) 2 may be byzantine, so at most 10 can be kept",
        {"strategy.keep": 10},
    ),
    *[
        (
            {"strategy": {"name": name}, "compress": {"update": {"name": "topk"}}},
            f"strategy {name} compares updates value by value: leave compress.update out (compress.model may stay)",
            {"compress": {"model": {"name": "topk"}}},
        )
        for name in ("median", "trimmed_mean", "krum", "multikrum", "bulyan")
    ],
    (
        {"strategy": {"name": "fedbuff", "buffer_size": 4}, "rounds": {"count": 2, "target": 5}},
        "rounds.target is 5 and strategy.buffer_size 4: with fedbuff the buffer closes a round, so leave rounds.target "
        "out",
        {"rounds.target": None},
    ),
    (
        {"model": {"name": "char_lstm"}},
        "model char_lstm reads sequences of characters, which digits has none of: shakespeare has",
        {"data.name": "shakespeare"},
    ),
    *[
        (
            {"model": model, "data": {"name": "csv", "clients": 12, "path": "rows.csv"}},
            f"model {model['name']} sees images, and csv has none",
            {"model": {"name": "mlp"}},
        )
        for model in (
            {"name": "lenet"},
            {"name": "cnn"},
            {"name": "resnet"},
            {"name": "vgg9"},
            {"name": "vgg11"},
            {"name": "torchvision", "arch": "resnet18"},
        )
    ],
    (
        {"model": {"name": "resnet"}, "data": {"name": "shakespeare", "clients": 12}},
        "model resnet sees images, and shakespeare has none",
        {"model": {"name": "transformer"}},
    ),
    (
        {"model": {"name": "transformer"}, "data": {"name": "csv", "clients": 12, "path": "rows.csv"}},
        "model transformer reads sequences or images, and csv has neither: mlp and softmax take rows of numbers",
        {"model": {"name": "softmax"}},
    ),
    (
        {"model": {"name": "vgg11"}, "data": {"name": "mnist", "clients": 12}},
        "model vgg11 needs images of 32×32 pixels or more, and those of mnist have 28×28",
        {"data.name": "cifar10"},
    ),
    (
        {"model": {"name": "vgg11"}, "data": {"name": "images", "path": "cats", "clients": 12, "size": 16}},
        "model vgg11 needs images of 32×32 pixels or more, and those of images have 16×16",
        {"data.size": 32},
    ),
    (
        {"model": {"name": "transformer", "patch": 16}},
        "model.patch is 16, and the images of digits have 8×8 pixels",
        {"model.patch": 4},
    ),
    (
        {"model": {"name": "softmax", "adapters": {}}},
        "model.adapters: softmax has no layer below its last one: lora has no target there",
        {"model.adapters": None},
    ),
    (
        {"model": {"name": "mlp", "hidden": [], "adapters": {}}},
        "model.adapters: mlp has no layer below its last one: lora has no target there",
        {"model.hidden": [8]},
    ),
    (
        {"model": {"name": "char_lstm", "adapters": {}}, "data": {"name": "shakespeare", "clients": 12}},
        "model.adapters: below its last layer char_lstm has recurrent ones: lora has no target there",
        {"model.adapters": None},
    ),
    (
        {"model": OWN | {"adapters": {}}},
        "model.adapters: lora has no target, because m:f is not known here: name its modules in model.adapters.targets",
        {"model.adapters.targets": ["layer"]},
    ),
    (
        {"train": {"personal": ["*"]}, "evaluate": {"every": 0}},
        "train.personal keeps all of the model on the clients: nothing is left to train together",
        {"train.personal": ["head.*"]},
    ),
    (
        {"train": {"personal": ["batch_norm"]}, "evaluate": {"every": 0}},
        "train.personal keeps batch_norm on the clients, and model mlp has none",
        {"model": {"name": "resnet"}},
    ),
    (
        {
            "train": {"personal": ["batch_norm"]},
            "evaluate": {"every": 0},
            "model": {"name": "resnet", "norm": "group"},
        },
        "train.personal keeps batch_norm on the clients, and model resnet has none",
        {"model.norm": "batch"},
    ),
    (
        {"train": {"personal": ["head.*"]}},
        "train.personal keeps a part of the model on the clients, so that the server has none to evaluate: "
        "set evaluate.where to clients, or evaluate.every to 0",
        {"evaluate.where": "clients", "data.local_test": 0.2},
    ),
    (
        {"train": {"buffers": "local"}, "evaluate": {"where": "both"}, "data.local_test": 0.2},
        "train.buffers: local keeps a part of the model on the clients, so that the server has none to evaluate: "
        "set evaluate.where to clients, or evaluate.every to 0",
        {"evaluate.every": 0},
    ),
    (
        {**SILOS, "data": OWN, "rounds.clients_per_task": 2},
        "rounds.clients_per_task folds several clients into one update: that is for a pool, and this job has silos",
        {"rounds.clients_per_task": 1},
    ),
    *[
        (
            {"strategy": {"name": name}, "rounds.clients_per_task": 2},
            f"rounds.clients_per_task folds several clients into one update, and strategy {name} needs each by itself",
            {"rounds.clients_per_task": 1},
        )
        for name in ("median", "trimmed_mean", "krum", "multikrum", "bulyan", "norm_clip", "qfedavg")
    ],
    *[
        (
            {"strategy": {"name": name}, "rounds.clients_per_task": 2},
            f"rounds.clients_per_task folds several clients into one update, which strategy {name} has no use for: "
            "leave it at 1",
            {"rounds.clients_per_task": 1},
        )
        for name in ("scaffold", "fedbuff")
    ],
    (
        {"strategy": OWN, "rounds.clients_per_task": 2},
        "rounds.clients_per_task folds several clients into one update, and strategy m:f needs each by itself",
        {"rounds.clients_per_task": 1},
    ),
    (
        {"compress": {"update": {"name": "bf16"}}, "rounds.clients_per_task": 2},
        "rounds.clients_per_task folds several clients into one update, whose sum is exact: leave compress.update out",
        {"compress": {"model": {"name": "bf16"}}},
    ),
    (
        {"train": {"buffers": "local"}, "rounds.clients_per_task": 2, "evaluate": {"every": 0}},
        "rounds.clients_per_task folds several clients into one update, and train.personal and train.buffers: local "
        "keep something of each",
        {"train.buffers": "averaged"},
    ),
    (
        {**SILOS, "data": OWN | {"clients": 8}},
        "data.clients is how many clients a pool plays, and the silos are the clients: leave it out",
        {"data.clients": None},
    ),
    (
        SILOS,
        "data.clients is how many clients a pool plays, and the silos are the clients: leave it out",
        {"data": {"name": "digits"}},
    ),
    (
        {**SILOS, "data": {"name": "digits", "partition": {"name": "quantity", "weights": [1, 2, 3]}}},
        "data.partition.weights has 3 weights for 2 clients",
        {"data.partition.weights": [1, 2]},
    ),
    (
        {"data.partition": {"name": "quantity", "weights": [1, 2]}},
        "data.partition.weights has 2 weights for 12 clients",
        {"data.clients": 2},
    ),
    (
        {"data": {"name": "npz", "path": "a.npz", "clients": 12, "partition": {"name": "natural"}}},
        "data.partition: natural needs the key by which npz is shared out: a column, or an array",
        {"data.partition.key": "writer"},
    ),
    (
        {"data.partition": {"name": "natural"}},
        "data.partition: digits does not say whose its examples are; natural is for femnist, shakespeare, csv and npz",
        {"data.name": "femnist"},
    ),
    (
        {**SILOS, "data": {"name": "images", "path": "p", "classes": ["a", "b"], "partition": {"name": "shards"}}},
        "data.partition shares out what all clients have, and each silo has a file of its own: leave it out",
        {"data.partition": {"name": "iid"}},
    ),
    (
        {**SILOS, "data": {"name": "images", "path": "photos"}},
        "data.classes is missing: labels and their order are the same at all silos, and none sees another's file; "
        f"write data.classes: [LABEL, …]; {SHOWN}",
        {"data.classes": ["cat", "dog"]},
    ),
    (
        {**SILOS, "data": {"name": "npz", "path": "a.npz"}},
        "data.classes is missing: labels and their order are the same at all silos, and none sees another's file; "
        f"write data.classes: [LABEL, …], or how many there are; {SHOWN}",
        {"data.classes": 2},
    ),
    (
        {**SILOS, "data": {"name": "csv", "path": "a.csv", "classes": ["ill", "well"], "scale": False}},
        "data.columns is missing: features and their order are the same at all silos; "
        f"write data.columns: [COLUMN, …]; {SHOWN}",
        {"data.columns": ["age"]},
    ),
    (
        {**SILOS, "data": {"name": "csv", "path": "a.csv", "classes": [0, 1], "columns": ["age"]}},
        "data.scale is true, and each silo would scale by its own rows: write what all of them scale by, "
        f"data.statistics: {{mean: […], deviation: […]}}, or data.scale: false; {SHOWN}",
        {"data.statistics": {"mean": [54], "deviation": [9.5]}},
    ),
    (
        {"select": {"name": "power_of_choice", "clients": 4, "over_select": 1.5, "candidates": 5}},
        "select.candidates is 5, fewer than the 6 clients that a round asks",
        {"select.candidates": 6},
    ),
    (
        {"select": {"name": "power_of_choice", "clients": 4, "candidates": 13}},
        "select.candidates is 13, but there are 12 clients",
        {"select.candidates": 12},
    ),
    (
        {"select": {"name": "tifl", "clients": 4, "tiers": 4}},
        "select.tiers is 4: 12 clients make tiers of 3, and a round asks 4 of one tier",
        {"select.tiers": 3},
    ),
    (
        {**SILOS, "data": OWN, "simulate": {}},
        "simulate is for the clients that a pool plays, and silos are real: leave simulate out, or use a pool",
        {"simulate": None},
    ),
    (
        {"simulate.speed": {"name": "profiles", "slow": 0.6, "medium": 0.6}},
        "simulate.speed: slow and medium are shares of all clients, and together more than all of them",
        {"simulate.speed.medium": 0.4},
    ),
    (
        {"simulate.network": {"sigma": 1}},
        "simulate.network: give a latency, down_mbps or up_mbps",
        {"simulate.network.up_mbps": 10},
    ),
    (
        {"simulate.dropout": {"rate": 1}},
        "simulate.dropout.rate is 1: no client would ever answer",
        {"simulate.dropout.rate": 0.5},
    ),
    (
        {"simulate.speed": {"name": "ratios", "ratios": {"client-3": 2}}},
        "simulate.speed.ratios names client-3; the clients are client-00 to client-11",
        {"simulate.speed.ratios": {"client-03": 2}},
    ),
    (
        {"simulate.availability": {"name": "trace", "spans": {"client-12": [[0, 1]], "client-13": [[0, 1]]}}},
        "simulate.availability.spans names client-12; the clients are client-00 to client-11",
        {"simulate.availability.spans": {"client-11": [[0, 1]]}},
    ),
    (
        {"simulate.availability": {"name": "trace", "spans": {"client-00": [[5, 9], [3, 4]]}}},
        "simulate.availability.spans.client-00: [3.0, 4.0] does not follow on the span before it: order them, "
        "from 0 on",
        {"simulate.availability.spans": {"client-00": [[3, 4], [5, 9]]}},
    ),
    (
        {"simulate.availability": {"name": "trace", "spans": {"client-00": [[0, 90]]}, "period": "1m"}},
        "simulate.availability.spans.client-00: a span ends at 90 s, after simulate.availability.period, 60 s",
        {"simulate.availability.period": "90s"},
    ),
    (
        {"evaluate": {"where": "clients", "clients": 13}, "data.local_test": 0.2},
        "evaluate.clients is 13, but there are 12 clients",
        {"evaluate.clients": 12},
    ),
    (
        {"evaluate": {"clients": 3}},
        "evaluate.clients is how many clients evaluate, and evaluate.where is server: set that to clients or both",
        {"evaluate.where": "both", "data.local_test": 0.2},
    ),
    (
        {"evaluate": {"where": "both"}},
        "evaluate.where is both, and the clients hold out no examples for it: set data.local_test, such as to 0.2",
        {"data.local_test": 0.2},
    ),
    (
        {"data.test_fraction": 0},
        "data.test_fraction is 0, so that the server has nothing to evaluate on: "
        "set evaluate.every to 0, or evaluate.where to clients",
        {"evaluate.every": 0},
    ),
    (
        {"evaluate": {"every": 0, "stop": {"target": 0.9}}},
        "evaluate.stop needs evaluations: evaluate.every is 0",
        {"evaluate.every": 1},
    ),
    (
        {"evaluate": {"stop": {}}},
        "evaluate.stop: give a target, or a patience, or both",
        {"evaluate.stop.patience": 3},
    ),
    (
        {"evaluate": {"stop": {"metric": "acuracy", "patience": 3}}},
        "evaluate.stop.metric: no evaluation measures 'acuracy'; "
        "with evaluate.where: server it is one of loss, accuracy",
        {"evaluate.stop.metric": "accuracy"},
    ),
    (
        {"data.local_test": 0.2, "evaluate": {"where": "clients", "stop": {"target": 0.9}}},
        "evaluate.stop.metric: no evaluation measures 'accuracy'; with evaluate.where: clients it is one of "
        "local_loss, local_accuracy, local_loss_mean, local_accuracy_mean, local_accuracy_worst_decile",
        {"evaluate.stop.metric": "local_accuracy"},
    ),
    (
        {"evaluate": {"stop": {"metric": "loss", "patience": 3}}},
        "evaluate.stop: of a loss, less is better: set evaluate.stop.mode to min",
        {"evaluate.stop.mode": "min"},
    ),
]


@pytest.mark.parametrize(("changes", "sentence", "mended"), IMPOSSIBLE, ids=[each[1][:60] for each in IMPOSSIBLE])
def test_what_cannot_go_together_has_its_sentence(
    changes: dict[str, Any], sentence: str, mended: dict[str, Any]
) -> None:
    """One line, and the right one; what it advises makes a job of it."""
    found = job(changes)
    with pytest.raises(BadInput) as caught:
        job_spec.parse(found)

    assert str(caught.value).splitlines() == [sentence]
    assert job_spec.parse(job_spec.override(found, list(mended.items())))


def test_all_that_cannot_be_is_said_at_once() -> None:
    """In the order of the rules."""
    found = job(
        {"strategy": {"name": "krum", "byzantine": 9}, "evaluate": {"stop": {}}, "model": {"name": "char_lstm"}}
    )
    with pytest.raises(BadInput) as caught:
        job_spec.parse(found)

    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == ["strategy", "model", "evaluate.stop:"]


def test_every_reason_there_is_was_given_here() -> None:
    """A rule that no job above breaks is a rule that nobody has seen work."""
    file = Path(combinations.__file__)
    reasons = {node.lineno for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Yield)}
    seen: set[int] = set()

    def watch(frame: FrameType, _event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != combinations.__file__:
            return None
        seen.add(frame.f_lineno)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        for changes, _, _ in IMPOSSIBLE:
            with pytest.raises(BadInput):
                job_spec.parse(job(changes))
    finally:
        sys.settrace(before)

    assert reasons - seen == set()
