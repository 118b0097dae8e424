"""The job file: each mistake has a sentence, each default a meaning, and nothing is lost on the way."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import names
from shared.errors import BadInput
from shared.job import job_spec
from shared.job.job_spec import JobSpec

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
TOP = (
    "compress, data, evaluate, keep_updates, limits, model, name, pool, rounds, seed, select, silos, simulate, "
    "strategy, train"
)


def document(**changes: Any) -> dict[str, Any]:
    """A job file; `...` leaves a key out."""
    found = {
        "name": "t",
        "model": {"name": "softmax"},
        "data": {"name": "digits", "clients": 4},
        "rounds": {"count": 2},
        "pool": "cpu",
    } | changes
    return {key: value for key, value in found.items() if value is not ...}


def spec(**changes: Any) -> JobSpec:
    return job_spec.parse(document(**changes))


def digits(**changes: Any) -> dict[str, Any]:
    return {"data": {"name": "digits", "clients": 4} | changes}


def in_rounds(**changes: Any) -> dict[str, Any]:
    return {"rounds": {"count": 2} | changes}


EITHER = "give either pool (trainers that share the data's clients) or silos (the clients that own their data)"
NAMES = "letters, digits, - and _, at most 63, starting with a letter or digit"
DURATION = "must be a duration such as 500ms, 60s, 5m or 2h"
MODELS = (
    "allowed: softmax, mlp, lenet, cnn, resnet, vgg9, vgg11, torchvision, char_lstm, transformer, "
    "or your own as module:attribute"
)
DATA = (
    "allowed: digits, mnist, fashion_mnist, cifar10, cifar100, femnist, shakespeare, csv, npz, images, "
    "or your own as module:attribute"
)
PARTITIONS = "allowed: iid, dirichlet, classes, shards, quantity, q_sampler, natural"
SELECTIONS = "allowed: all, random, round_robin, power_of_choice, oort, tifl"
STRATEGIES = (
    "allowed: fedavg, fedavgm, fedadam, fedyogi, fedadagrad, fednova, qfedavg, scaffold, fedbuff, "
    "median, trimmed_mean, krum, multikrum, bulyan, norm_clip, or your own as module:attribute"
)
ENCODINGS = "bf16, int8, int4, topk"
TRAINING = "batch_size, buffers, clip_norm, epochs, fedprox, optimizer, personal, precision, schedule, steps"

YOUR_OWN = "your own is given as module:attribute, such as mypkg.nets:make"
AT_LEAST = "it should be greater than or equal to"

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"name": ...}, "name: is missing"),
    ({"name": "Big Name"}, "name: 'Big Name' is not allowed: lower-case letters, digits and -, at most 39"),
    ({"name": "t\n"}, r"name: 't\n' is not allowed: lower-case letters, digits and -, at most 39"),
    ({"name": "n" * 40}, f"name: '{'n' * 40}' is not allowed: lower-case letters, digits and -, at most 39"),
    ({"seed": -1}, f"seed: -1 is not allowed: {AT_LEAST} 0"),
    ({"seed": 2**31}, "seed: 2147483648 is not allowed: it should be less than 2147483648"),
    ({"seed": 1.5}, "seed: 1.5 is not allowed: it should be a valid integer"),
    ({"roudns": {}}, f"roudns: unknown key (did you mean rounds?); allowed here: {TOP}"),
    ({"colour": "red"}, f"colour: unknown key; allowed here: {TOP}"),
    ({"digits": {"clients": 3}}, f"digits: unknown key (did you mean limits?); allowed here: {TOP}"),
    ({"mlp": {"hidden": [3]}}, f"mlp: unknown key; allowed here: {TOP}"),
    ({"all": 1}, f"all: unknown key; allowed here: {TOP}"),
    ({"model": ...}, "model: is missing"),
    ({"model": {}}, f"model.name: is missing; {MODELS}"),
    ({"model": "lenet"}, f"model: 'lenet' is not allowed: it should be a mapping, such as {{name: lenet}}; {MODELS}"),
    ({"model": {"name": "lenett"}}, f"model.name: 'lenett' is not known (did you mean lenet?); {MODELS}"),
    (
        {"model": {"name": "mlp", "hiden": [3]}},
        "model.hiden: unknown key (did you mean hidden?); allowed here: adapters, hidden, name, start",
    ),
    ({"model": {"name": "mlp", "hidden": [0]}}, f"model.hidden.0: 0 is not allowed: {AT_LEAST} 1"),
    ({"model": {"name": "mlp", "hidden": [True]}}, "model.hidden.0: true is not allowed: it should be a valid integer"),
    ({"model": {"name": "a b:c"}}, f"model.name: 'a b:c' is not allowed: {YOUR_OWN}"),
    (
        {"model": {"name": "m:f", "arg": {}}},
        "model.arg: unknown key (did you mean args?); allowed here: adapters, args, name, start",
    ),
    ({"model": {"name": "cnn", "channels": []}}, "model.channels: [] is not allowed: it should have at least 1 item"),
    (
        {"model": {"name": "resnet", "depth": 19}},
        "model.depth: 19 is not allowed: it should be 18, 20, 32, 44, 50 or 56",
    ),
    ({"model": {"name": "torchvision"}}, "model.arch: is missing"),
    ({"model": {"name": "transformer", "width": 30}}, "model: heads is 4, which does not divide width, 30"),
    (
        {"model": {"name": "torchvision", "arch": "ResNet"}},
        "model.arch: 'ResNet' is not allowed: the name of one of torchvision's models, such as mobilenet_v3_small",
    ),
    ({"model": {"name": "lenet", "adapters": {"rank": 0}}}, f"model.adapters.rank: 0 is not allowed: {AT_LEAST} 1"),
    (
        {"model": {"name": "lenet", "adapters": {"name": "qlora"}}},
        "model.adapters.name: 'qlora' is not allowed: it should be 'lora'",
    ),
    (
        {"model": {"name": "lenet", "adapters": {"rnk": 4}}},
        "model.adapters.rnk: unknown key (did you mean rank?); allowed here: alpha, dropout, name, rank, targets",
    ),
    (
        {"model": {"name": "m:f", "args": [1]}},
        "model.args: [1] is not allowed: it should be a mapping, of keys to values",
    ),
    ({"data": {"name": "digits"}}, "a pool needs data.clients: into how many clients the data is split"),
    ({"data": {"name": "mnis"}}, f"data.name: 'mnis' is not known (did you mean mnist?); {DATA}"),
    ({"data": {"name": "csv", "clients": 4}}, "data.path: is missing"),
    (digits(clients=0), f"data.clients: 0 is not allowed: {AT_LEAST} 1"),
    (digits(clients=10**6 + 1), "data.clients: 1000001 is not allowed: it should be less than or equal to 1000000"),
    (digits(clients="4"), "data.clients: '4' is not allowed: it should be a valid integer"),
    (digits(clients=True), "data.clients: true is not allowed: it should be a valid integer"),
    (digits(test_fraction=1), "data.test_fraction: 1 is not allowed: it should be less than 1"),
    (
        digits(partition={"name": "dirichlt"}),
        f"data.partition.name: 'dirichlt' is not known (did you mean dirichlet?); {PARTITIONS}",
    ),
    (
        digits(partition={"name": "dirichlet", "alpha": 0}),
        "data.partition.alpha: 0 is not allowed: it should be greater than 0",
    ),
    (digits(partition={"name": "iid", "alpha": 1}), "data.partition.alpha: unknown key; allowed here: name, size"),
    ({"data": {"name": "m:d"}}, "a pool needs data.clients: into how many clients the data is split"),
    (
        {"train": {"epoch": 1}},
        f"train.epoch: unknown key (did you mean epochs?); allowed here: {TRAINING}",
    ),
    ({"train": {"name": "sgd"}}, f"train.name: 'sgd' is not allowed: {YOUR_OWN}"),
    (
        {"train": {"optimizer": {"name": "adm"}}},
        "train.optimizer.name: 'adm' is not known (did you mean adam?); allowed: sgd, adam, adamw",
    ),
    (
        {"train": {"optimizer": {"name": "adam", "momentum": 0.9}}},
        "train.optimizer.momentum: unknown key; allowed here: beta_1, beta_2, eps, lr, name, weight_decay",
    ),
    (
        {"train": {"schedule": {"name": "linear"}}},
        "train.schedule.name: 'linear' is not known; allowed: constant, step, exponential, cosine",
    ),
    ({"train": {"fedprox": {"mu": 0}}}, "train.fedprox.mu: 0 is not allowed: it should be greater than 0"),
    ({"train": {"steps": 0}}, f"train.steps: 0 is not allowed: {AT_LEAST} 1"),
    (
        {"train": {"buffers": "none"}},
        "train.buffers: 'none' is not allowed: it should be 'averaged', 'local' or 'left_out'",
    ),
    ({"train": {"personal": "head.*"}}, "train.personal: 'head.*' is not allowed: it should be a list"),
    (
        {"train": {"name": "m:f", "epochs": 2}},
        "train.epochs: unknown key; allowed here: args, buffers, name, personal",
    ),
    ({"train": {"optimizer": {"lr": 0}}}, "train.optimizer.lr: 0 is not allowed: it should be greater than 0"),
    (
        {"train": {"optimizer": {"lr": math.nan}}},
        "train.optimizer.lr: nan is not allowed: it should be a finite number",
    ),
    (
        {"train": {"optimizer": {"lr": math.inf}}},
        "train.optimizer.lr: inf is not allowed: it should be a finite number",
    ),
    ({"train": {"optimizer": {"momentum": 1}}}, "train.optimizer.momentum: 1 is not allowed: it should be less than 1"),
    ({"select": {"name": "randm"}}, f"select.name: 'randm' is not known (did you mean random?); {SELECTIONS}"),
    ({"select": {"name": "random"}}, "select.clients: is missing"),
    ({"select": {"name": "all", "all": 1}}, "select.all: unknown key; allowed here: name"),
    ({"select": {"name": "random", "clients": 5}}, "select.clients is 5, but there are 4 clients"),
    (
        {"select": {"name": "random", "clients": 2, "over_select": 0.5}},
        f"select.over_select: 0.5 is not allowed: {AT_LEAST} 1",
    ),
    ({"rounds": ...}, "rounds: is missing"),
    ({"rounds": 3}, "rounds: 3 is not allowed: it should be a mapping, of keys to values"),
    (in_rounds(count=0), f"rounds.count: 0 is not allowed: {AT_LEAST} 1"),
    (in_rounds(deadline="60"), f"rounds.deadline: '60' is not allowed: {DURATION}"),
    (in_rounds(deadline="-1s"), f"rounds.deadline: '-1s' is not allowed: {DURATION}"),
    (in_rounds(deadline="2 days"), f"rounds.deadline: '2 days' is not allowed: {DURATION}"),
    (in_rounds(deadline="0s"), "rounds.deadline: '0s' is not allowed: it should be greater than 0"),
    (in_rounds(deadline="169h"), "rounds.deadline: '169h' is not allowed: it should be less than or equal to 604800"),
    (in_rounds(target=5), "rounds.target is 5, but a round asks 4 clients"),
    (in_rounds(target=2, minimum=3), "rounds.minimum is 3, more than rounds.target, 2"),
    (in_rounds(minimum=5), "rounds.minimum is 5, more than rounds.target, 4"),
    (in_rounds(minimum=0), f"rounds.minimum: 0 is not allowed: {AT_LEAST} 1"),
    (
        in_rounds(below_minimum="ignore"),
        "rounds.below_minimum: 'ignore' is not allowed: it should be 'fail' or 'retry'",
    ),
    ({"strategy": {"name": "fedprox"}}, f"strategy.name: 'fedprox' is not known; {STRATEGIES}"),
    ({"strategy": {"name": "fedadam", "beta_2": 1}}, "strategy.beta_2: 1 is not allowed: it should be less than 1"),
    ({"strategy": {"name": "fedavg", "lr": 0}}, "strategy.lr: 0 is not allowed: it should be greater than 0"),
    (
        {"strategy": {"name": "trimmed_mean", "beta": 0.5}},
        "strategy.beta: 0.5 is not allowed: it should be less than 0.5",
    ),
    ({"strategy": {"name": "m f:g"}}, f"strategy.name: 'm f:g' is not allowed: {YOUR_OWN}"),
    (
        {"compress": {"update": {"name": "int2"}}},
        f"compress.update.name: 'int2' is not known (did you mean int8?); allowed: {ENCODINGS}",
    ),
    (
        {"compress": {"model": "int8"}},
        f"compress.model: 'int8' is not allowed: it should be a mapping, such as {{name: int8}}; allowed: {ENCODINGS}",
    ),
    (
        {"compress": {"update": {"name": "int8", "block": 12}}},
        "compress.update.block: 12 is not allowed: it should be a multiple of 8",
    ),
    (
        {"compress": {"up": {"name": "int8"}}},
        "compress.up: unknown key; allowed here: model, update",
    ),
    (
        {"simulate": {"speed": {"name": "profile"}}},
        "simulate.speed.name: 'profile' is not known (did you mean profiles?); allowed: profiles, phones, lognormal, "
        "ratios",
    ),
    (
        {"simulate": {"speed": {"name": "ratios", "ratios": {"client-0": 0.5}}}},
        f"simulate.speed.ratios.client-0: 0.5 is not allowed: {AT_LEAST} 1",
    ),
    (
        {"simulate": {"network": {"latency": "1 s", "down": 1}}},
        "simulate.network.down: unknown key (did you mean down_mbps?); "
        "allowed here: down_mbps, latency, sigma, up_mbps",
    ),
    ({"simulate": {"availability": {"name": "cycle", "there": "1m"}}}, "simulate.availability.away: is missing"),
    (
        {"simulate": {"availability": {"name": "trace", "spans": {"client-0": [[0]]}}}},
        "simulate.availability.spans.client-0.0.1: is missing",
    ),
    (
        {"simulate": {"dropout": {"how": "loud"}}},
        "simulate.dropout.how: 'loud' is not allowed: it should be 'silent' or 'error'",
    ),
    (
        {"simulate": {"attack": {"name": "label_flip", "fraction": 2}}},
        "simulate.attack.fraction: 2 is not allowed: it should be less than or equal to 1",
    ),
    ({"limits": {"max_abs": 0}}, "limits.max_abs: 0 is not allowed: it should be greater than 0"),
    ({"evaluate": {"every": -1}}, f"evaluate.every: -1 is not allowed: {AT_LEAST} 0"),
    ({"evaluate": {"where": "me"}}, "evaluate.where: 'me' is not allowed: it should be 'server', 'clients' or 'both'"),
    (
        {"evaluate": {"stop": {"target": 1, "mode": "up"}}},
        "evaluate.stop.mode: 'up' is not allowed: it should be 'max' or 'min'",
    ),
    (
        {"evaluate": {"stop": {"metric": "m" * 65, "target": 1}}},
        f"evaluate.stop.metric: '{'m' * 56}... is not allowed: it should have at most 64 characters",
    ),
    ({"keep_updates": "yes"}, "keep_updates: 'yes' is not allowed: it should be a valid boolean"),
    ({"pool": ...}, EITHER),
    ({"silos": ["a", "b"]}, EITHER),
    ({"pool": "a b"}, f"pool: 'a b' is not allowed: {NAMES}"),
    ({"pool": "p" * 64}, f"pool: '{'p' * 56}... is not allowed: {NAMES}"),
    ({"pool": ..., "silos": ["a", "a"]}, "silos names a client twice"),
    ({"pool": ..., "silos": ["a", "b.c"]}, f"silos.1: 'b.c' is not allowed: {NAMES}"),
    ({"pool": ..., "silos": ["b c"]}, f"silos.0: 'b c' is not allowed: {NAMES}"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES, ids=[sentence[:40] for _, sentence in MISTAKES])
def test_a_mistake_has_its_sentence(changes: dict[str, Any], sentence: str) -> None:
    """Where it is, what was found, and what is allowed: one line, and the right one."""
    with pytest.raises(BadInput) as caught:
        job_spec.parse(document(**changes))

    assert str(caught.value).splitlines() == [sentence]


@pytest.mark.parametrize(
    ("changes", "where", "allowed"),
    [
        (digits(partition={}), "data.partition", ("iid", "dirichlet")),
        (digits(partition={"alpha": 1}), "data.partition", ("iid", "dirichlet")),
        ({"select": {}}, "select", ("all", "random")),
        ({"select": {"clients": 3}}, "select", ("all", "random")),
        ({"pool": ..., "silos": []}, "silos", ("at least 1",)),
    ],
)
def test_a_choice_that_was_not_made_is_explained(changes: dict[str, Any], where: str, allowed: tuple[str, ...]) -> None:
    """A section without its name says which names there are, and nothing of how it was read."""
    with pytest.raises(BadInput) as caught:
        spec(**changes)

    assert str(caught.value).startswith(where)
    assert all(word in str(caught.value) for word in allowed)
    assert "discriminator" not in str(caught.value)


def test_a_key_that_is_no_text_is_explained() -> None:
    """YAML has keys of every kind."""
    with pytest.raises(BadInput, match=r"^1: 1 is not allowed: keys should be strings$"):
        job_spec.parse({**document(), 1: 2})


def test_every_mistake_is_named_at_once() -> None:
    """Not the first one alone."""
    with pytest.raises(BadInput) as caught:
        spec(name=..., seed=-1, model={"name": "x"}, rounds={"count": 0, "deadline": "1d"})
    lines = str(caught.value).splitlines()

    assert [line.partition(":")[0] for line in lines] == [
        "name",
        "seed",
        "model.name",
        "rounds.count",
        "rounds.deadline",
    ]


@pytest.mark.parametrize("found", [None, [], "name: t", 3, [document()]])
def test_what_is_no_mapping_is_no_job(found: object) -> None:
    """The sentence says what a job file starts with."""
    with pytest.raises(BadInput, match="a job file is a mapping that starts with name:, model:, data:, rounds:"):
        job_spec.parse(found)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["random", "m:f"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "clients", "args", "count", "optimizer", "partition", "all", "custom", "builtin"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from([*JobSpec.model_fields, "digits", "custom", "x"]), value=values)
def test_whatever_stands_in_a_file_is_a_job_or_a_sentence(path: str, value: Any) -> None:
    """No value under any key is a traceback."""
    try:
        sentence = spec(**{path: value}).name
    except BadInput as error:
        sentence = str(error)

    assert sentence.strip()


# --- defaults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "asked", "target", "minimum"),
    [
        ({}, 4, 4, 4),
        (in_rounds(target=3), 4, 3, 3),
        (in_rounds(target=3, minimum=1), 4, 3, 1),
        (in_rounds(minimum=2), 4, 4, 2),
        ({"select": {"name": "random", "clients": 2}}, 2, 2, 2),
        ({"select": {"name": "random", "clients": 2, "over_select": 1.5}}, 3, 2, 2),
        ({"select": {"name": "random", "clients": 3, "over_select": 10}}, 4, 3, 3),
        ({"select": {"name": "random", "clients": 2, "over_select": 2}} | in_rounds(target=4), 4, 4, 4),
        ({"select": {"name": "random", "clients": 2, "over_select": 2}} | in_rounds(target=1), 4, 1, 1),
        ({"pool": ..., "silos": ["b", "a"], "data": {"name": "m:d"}}, 2, 2, 2),
    ],
)
def test_who_is_asked_and_who_is_waited_for(changes: dict[str, Any], asked: int, target: int, minimum: int) -> None:
    """Target is all that were meant to answer, and minimum is the target, unless the file says otherwise."""
    found = spec(**changes)

    assert (found.cohort_size, found.target, found.minimum) == (asked, target, minimum)


@pytest.mark.parametrize(
    ("clients", "over", "asked"), [(10, 1.0, 10), (10, 1.1, 11), (10, 1.3, 13), (3, 1.1, 4), (100, 1.1, 110)]
)
def test_over_selection_rounds_up_and_not_by_a_float(clients: int, over: float, asked: int) -> None:
    """10 × 1.1 is 11.000000000000002 in floating point, and eleven."""
    found = spec(
        data={"name": "digits", "clients": 1000}, select={"name": "random", "clients": clients, "over_select": over}
    )

    assert found.cohort_size == asked


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [(1, "client-0", "client-0"), (10, "client-0", "client-9"), (11, "client-00", "client-10")],
)
def test_clients_are_named_in_order(count: int, first: str, last: str) -> None:
    """With as many digits as the last one needs, so that sorting keeps the order."""
    found = spec(**digits(clients=count)).clients

    assert (found[0], found[-1], len(found)) == (first, last, count)
    assert list(found) == sorted(found)


def test_silos_are_the_clients_and_have_queues_of_their_own() -> None:
    """In the order of the file; a pool's clients share the pool's."""
    silos = spec(pool=..., silos=["b", "a"], data={"name": "m:d"})

    assert (silos.clients, silos.population, silos.group_of("a")) == (("b", "a"), 2, "a")
    assert spec().group_of("client-1") == "cpu"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("60s", 60), ("1.5m", 90), (" 2 h ", 7200), (30, 30), (0.25, 0.25), ("168h", 604800)],
)
def test_a_duration_has_a_unit_or_is_seconds(written: Any, seconds: float) -> None:
    """As a person writes it."""
    assert spec(**in_rounds(deadline=written)).rounds.deadline == seconds


# --- override -----------------------------------------------------------------------------------


def test_overriding_sets_paths_and_leaves_the_original() -> None:
    """Sections that are not there are made, and the last assignment wins."""
    before = document()
    found = job_spec.override(
        before, [("rounds.count", 3), ("train.optimizer.lr", 0.1), ("model", {"name": "lenet"}), ("rounds.count", 4)]
    )

    assert found["rounds"] == {"count": 4}
    assert found["train"] == {"optimizer": {"lr": 0.1}}
    assert found["model"] == {"name": "lenet"}
    assert before == document()
    assert job_spec.override(before, []) == before


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("name.x", "--set name.x: name holds a value, not a section"),
        ("rounds.count.x.y", "--set rounds.count.x.y: rounds.count holds a value, not a section"),
    ],
)
def test_overriding_into_a_value_is_a_mistake(path: str, sentence: str) -> None:
    """It says which part of the path is one."""
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        job_spec.override(document(), [(path, 1)])


def test_an_override_is_checked_like_the_file() -> None:
    """A path that leads nowhere is an unknown key."""
    with pytest.raises(BadInput, match=r"rounds\.cuont: unknown key \(did you mean count\?\)"):
        job_spec.parse(job_spec.override(document(), [("rounds.cuont", 3)]))


def test_job_ids_are_names_with_an_ending() -> None:
    """Each is another, even of the longest name, and of the form that events take."""
    found = {job_spec.new_job_id("n" * 39) for _ in range(100)}

    assert len(found) == 100
    assert all(re.fullmatch(names.JOB_ID, job) for job in found)


# --- to and from others -------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip

FULL = document(
    seed=7,
    model={"name": "mlp", "hidden": [32, 16]},
    data={"name": "digits", "clients": 20, "partition": {"name": "dirichlet", "alpha": 0.3}, "test_fraction": 0.1},
    train={"epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
    select={"name": "random", "clients": 10, "over_select": 1.3},
    rounds={"count": 5, "target": 9, "minimum": 3, "deadline": "1.5m", "below_minimum": "retry", "attempts": 2},
    limits={"max_abs": 10, "max_norm": 3.5},
    evaluate={"every": 2, "deadline": "500ms"},
    keep_updates=True,
)


RICH = document(
    model={
        "name": "cnn",
        "channels": [8, 16],
        "start": "begin.safetensors",
        "adapters": {"rank": 4, "targets": ["a.*"]},
    },
    data={"name": "mnist", "clients": 9, "partition": {"name": "quantity", "sigma": 0.5}, "local_test": 0.2},
    train={
        "steps": 20,
        "optimizer": {"lr": 0.01},
        "schedule": {"name": "cosine", "warmup": 2},
        "fedprox": {"mu": 0.1},
        "clip_norm": 5,
        "personal": ["head.*"],
    },
    select={"name": "tifl", "clients": 3, "tiers": 3},
    rounds={"count": 50},
    strategy={"name": "fedyogi", "weights": "equal"},
    compress={"update": {"name": "int4", "block": 64}, "model": {"name": "topk", "ratio": 0.1}},
    evaluate={"where": "clients", "clients": 5, "stop": {"metric": "local_accuracy", "target": 0.9, "patience": 3}},
    simulate={
        "speed": {"name": "ratios", "ratios": {"client-3": 2}},
        "network": {"latency": "50ms", "up_mbps": 5},
        "availability": {"name": "trace", "spans": {"client-1": [[0, 10.5], [20, 30]]}, "period": "1h"},
        "dropout": {"rate": 0.2, "how": "error"},
        "attack": {"name": "scaled_update", "fraction": 0.1},
        "seed": 3,
    },
)


@pytest.mark.parametrize(
    "found",
    [
        document(),
        FULL,
        RICH,
        document(pool=..., silos=["b", "a"], data={"name": "m:d", "args": {"x": [1, {"y": None}]}}),
        document(strategy={"name": "fedbuff", "buffer_size": 3, "max_staleness": 0}),
    ],
    ids=["least", "full", "rich", "silos", "fedbuff"],
)
def test_a_job_survives_the_way_to_others(found: dict[str, Any]) -> None:
    """What goes into job.json and into events is read as the same job, with the defaults written out."""
    parsed = job_spec.parse(found)
    dumped = parsed.model_dump(mode="json")

    assert job_spec.parse(dumped) == parsed
    assert job_spec.parse(dumped).model_dump(mode="json") == dumped
    assert set(dumped) == set(JobSpec.model_fields)
    assert conforms(found, SCHEMA)
    assert conforms(dumped, SCHEMA)


@settings(max_examples=100, deadline=None)
@given(args=st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_arguments_of_ones_own_survive_too(args: dict[str, Any]) -> None:
    """Whatever JSON can say reaches the trainer's function as it stands in the file."""
    custom = {"name": "m:f", "args": args}
    parsed = spec(model=custom, data=custom | {"clients": 3}, train=custom, strategy=custom)

    for section in (parsed.model, parsed.data, parsed.train, parsed.strategy):
        assert section.model_dump(include={"name", "args"}) == custom
    assert job_spec.parse(parsed.model_dump(mode="json")) == parsed


KINDS: dict[str, Any] = {
    "string": str, "integer": int, "number": int | float, "boolean": bool, "array": list, "object": dict,
    "null": type(None),
}  # fmt: skip
#: Each word of JSON Schema that ours uses, as an editor applies it.
WORDS: dict[str, Callable[[Any, Any], bool]] = {
    "type": lambda value, kind: isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool)),
    "$ref": lambda value, name: conforms(value, SCHEMA["$defs"][name.rpartition("/")[2]]),
    "oneOf": lambda value, parts: sum(conforms(value, part) for part in parts) == 1,
    "anyOf": lambda value, parts: any(conforms(value, part) for part in parts),
    "const": lambda value, only: value == only,
    "enum": lambda value, allowed: value in allowed,
    "pattern": lambda value, pattern: not isinstance(value, str) or re.search(pattern, value) is not None,
    "minimum": lambda value, limit: not isinstance(value, int | float) or value >= limit,
    "maximum": lambda value, limit: not isinstance(value, int | float) or value <= limit,
    "exclusiveMinimum": lambda value, limit: not isinstance(value, int | float) or value > limit,
    "exclusiveMaximum": lambda value, limit: not isinstance(value, int | float) or value < limit,
    "multipleOf": lambda value, part: not isinstance(value, int | float) or value % part == 0,
    "minLength": lambda value, least: not isinstance(value, str) or len(value) >= least,
    "maxLength": lambda value, most: not isinstance(value, str) or len(value) <= most,
    "maxItems": lambda value, most: not isinstance(value, list) or len(value) <= most,
    "minItems": lambda value, least: not isinstance(value, list) or len(value) >= least,
    "items": lambda value, part: not isinstance(value, list) or all(conforms(item, part) for item in value),
    "prefixItems": lambda value, parts: not isinstance(value, list) or all(map(conforms, value, parts)),
    "required": lambda value, keys: not isinstance(value, dict) or set(keys) <= set(value),
    "properties": lambda value, parts: (
        not isinstance(value, dict) or all(conforms(value[key], part) for key, part in parts.items() if key in value)
    ),
}
REMARKS = {"$defs", "additionalProperties", "default", "description", "discriminator", "title"}


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is what `schema` describes."""
    others = schema.get("additionalProperties", True)
    if isinstance(value, dict) and others is not True:
        strangers = [inner for key, inner in value.items() if key not in schema.get("properties", {})]
        if strangers and (others is False or not all(conforms(inner, others) for inner in strangers)):
            return False
    return all(check(value, schema[word]) for word, check in WORDS.items() if word in schema)


SCHEMA = JobSpec.model_json_schema()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_schema_accepts_the_examples(file: Path) -> None:
    """As written, and with every default written out: an editor underlines nothing that we accept."""
    found = yaml.safe_load(file.read_text())

    assert conforms(found, SCHEMA)
    assert conforms(job_spec.parse(found).model_dump(mode="json"), SCHEMA)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ...}, {"name": "Big"}, {"colour": 1}, {"model": {"name": "lenett"}}, {"model": "lenet"},
        {"rounds": {"count": 0}}, {"rounds": {"count": 1, "dead": 1}}, digits(clients=0), {"seed": -1},
        {"train": {"optimizer": {"name": "adm"}}}, {"select": {"name": "randm"}}, {"keep_updates": "yes"},
        {"pool": "a b"}, {"silos": []}, digits(partition={"name": "dirichlet", "alpha": 0}), digits(partition={}),
        {"model": {}}, {"select": {"clients": 3}}, {"train": {"optimizer": {"beta_1": 0.5}}}, {"strategy": {"lr": 1}},
        {"compress": {"update": {"name": "int8", "block": 12}}}, {"model": {"name": "resnet", "depth": 19}},
        {"simulate": {"speed": {"name": "ratios", "ratios": {"client-0": 0.5}}}},
        {"simulate": {"availability": {"name": "trace", "spans": {"client-0": [[0]]}}}},
        {"evaluate": {"stop": {"metric": "m" * 65}}}, {"rounds": {"count": 1, "deadline": 0}},
    ],
)  # fmt: skip
def test_the_schema_refuses_mistakes_that_an_editor_can_see(changes: dict[str, Any]) -> None:
    """What a single value or key is wrong about."""
    assert conforms(document(), SCHEMA)
    assert not conforms(document(**changes), SCHEMA)


def test_the_schema_is_made_of_words_of_json_schema() -> None:
    """An editor passes over a word it does not know, and a limit with it."""

    def words(schema: dict[str, Any]) -> set[str]:
        inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
        inner += [part for word in ("oneOf", "anyOf", "prefixItems") for part in schema.get(word, [])]
        inner += [schema[word] for word in ("items", "additionalProperties") if isinstance(schema.get(word), dict)]
        return set(schema).union(*map(words, inner))

    assert words(SCHEMA) <= WORDS.keys() | REMARKS
