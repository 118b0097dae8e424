"""A small job of every kind: each strategy, encoding, selection, and whatever else changes how a round is made."""

from typing import Any

Document = dict[str, Any]

ROUNDS = 4


def _digits(clients: int, **more: Any) -> Document:
    return {"name": "digits", "clients": clients, "partition": {"name": "dirichlet", "alpha": 1.0}} | more


def _strategy(name: str, clients: int = 4, **parameters: Any) -> Document:
    return {"strategy": {"name": name, **parameters}, "data": _digits(clients)}


LOCAL = {"data": _digits(4, local_test=0.25), "evaluate": {"every": 1, "where": "clients"}}

#: What a job of the kind has instead of what `document` gives it.
STRATEGIES: dict[str, Document] = {
    "fedavg": _strategy("fedavg", lr=0.5, weights="equal"),
    "fedavgm": _strategy("fedavgm", momentum=0.5),
    "fedadam": _strategy("fedadam", lr=0.05),
    "fedyogi": _strategy("fedyogi", lr=0.05),
    "fedadagrad": _strategy("fedadagrad", lr=0.05),
    "fednova": _strategy("fednova"),
    "qfedavg": _strategy("qfedavg", q=1.0),
    "scaffold": _strategy("scaffold"),
    "median": _strategy("median"),
    "trimmed_mean": _strategy("trimmed_mean", beta=0.25),
    "krum": _strategy("krum", clients=5),
    "multikrum": _strategy("multikrum", clients=5),
    "bulyan": _strategy("bulyan", clients=7),
    "norm_clip": _strategy("norm_clip", max_norm=0.2),
    "own strategy": {"strategy": {"name": "examples.own_strategy:Nesterov", "args": {"momentum": 0.5}}},
    "fedbuff, buffer of all": _strategy("fedbuff", buffer_size=4, max_staleness=0),
}
ENCODINGS: dict[str, Document] = {
    "update int8": {"compress": {"update": {"name": "int8"}}},
    "update topk": {"compress": {"update": {"name": "topk", "ratio": 0.05}}},
    "model int8": {"compress": {"model": {"name": "int8"}}},
    "topk up, int4 down, fedadam": {
        "compress": {"update": {"name": "topk", "ratio": 0.1}, "model": {"name": "int4"}},
        "strategy": {"name": "fedadam", "lr": 0.05},
    },
}
ROUNDABOUTS: dict[str, Document] = {
    "2 clients per task": {"rounds": {"count": ROUNDS, "clients_per_task": 2}},
    "2 clients per task, fednova": {"rounds": {"count": ROUNDS, "clients_per_task": 2}, **_strategy("fednova")},
    "personal": LOCAL | {"model": {"name": "mlp", "hidden": [16]}, "train": {"personal": ["head.*"]}},
    "evaluated on clients": LOCAL,
    "power_of_choice": {"data": _digits(6), "select": {"name": "power_of_choice", "clients": 3, "candidates": 4}},
    "lora": {
        "model": {
            "name": "transformer",
            "width": 16,
            "layers": 1,
            "adapters": {"name": "lora", "rank": 2, "alpha": 8},
        },
    },
}
#: Kinds that give the same bits whoever dies.
SAME: dict[str, Document] = STRATEGIES | ENCODINGS | ROUNDABOUTS
#: Kinds whose cohorts follow from seconds that were measured, or whose updates come in the order of the day.
OTHERWISE: dict[str, Document] = {
    "oort": {"data": _digits(6), "select": {"name": "oort", "clients": 3, "over_select": 1.3}},
    "tifl": {
        "data": _digits(6),
        "select": {"name": "tifl", "clients": 2, "tiers": 3, "interval": 1},
        "rounds": {"count": 6},
    },
    "fedbuff, buffer of some": _strategy("fedbuff", clients=6, buffer_size=3, max_staleness=3),
}


def document(**changes: Any) -> Document:
    """A job of four rounds of a quarter of a second."""
    found = {
        "name": "kind",
        "seed": 3,
        "model": {"name": "softmax"},
        "data": _digits(4),
        "train": {},
        "rounds": {"count": ROUNDS},
        "evaluate": {"every": 0},
        "keep_updates": True,
        "pool": "cpu",
    } | changes
    found["train"] = {"epochs": 1, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.2}} | found["train"]
    found["rounds"] = {"deadline": "60s"} | found["rounds"]
    return found
