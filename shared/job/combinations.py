"""Checks for settings that are each allowed but cannot go together: the reasons that `fedq validate` gives.

Pure.
"""

import math
from collections.abc import Iterator, Mapping

from shared.job.catalog.data import Csv, Digits, Iid, Images, InFiles, Natural, Npz, Quantity, Shared
from shared.job.catalog.models import (
    CharLstm,
    Cnn,
    CustomModel,
    LeNet,
    Mlp,
    ResNet,
    Softmax,
    Torchvision,
    Transformer,
    Vgg9,
    Vgg11,
)
from shared.job.catalog.rounds import EvaluateSpec, StopSpec
from shared.job.catalog.selection import PowerOfChoice, Tifl
from shared.job.catalog.simulation import Profiles, Ratios, Trace
from shared.job.catalog.strategies import (
    ROBUST,
    Bulyan,
    CustomStrategy,
    FedBuff,
    FedNova,
    Krum,
    MultiKrum,
    NormClip,
    QFedAvg,
    Scaffold,
)
from shared.job.catalog.training import CustomTrain, Sgd, TrainSpec
from shared.job.job_fields import JobFields

KEYED = ("csv", "npz")  #: data sets whose natural partition needs a key
FEWEST_BITS = 8  #: fractional bits of a folded value, in addition to those of its weight
PIXELS = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "femnist": 28, "cifar10": 32, "cifar100": 32}  #: per side
NO_BATCH_NORM = (Softmax, Mlp, LeNet, Cnn, CharLstm, Transformer)


def problems(spec: JobFields) -> Iterator[str]:
    """The reasons why a job could not do what its file says, one sentence each."""
    for check in _CHECKS:
        yield from check(spec)


def _strategy(spec: JobFields) -> Iterator[str]:
    strategy, train = spec.strategy, spec.train
    if isinstance(strategy, Scaffold | FedNova | QFedAvg):
        if isinstance(train, CustomTrain):
            yield f"strategy {strategy.name} changes the local step: it needs the built-in one, not your own"
        elif isinstance(strategy, Scaffold | FedNova) and not isinstance(train.optimizer, Sgd):
            yield f"strategy {strategy.name} is defined for sgd; train.optimizer is {train.optimizer.name}"
    if isinstance(strategy, FedNova) and isinstance(train, TrainSpec) and train.fedprox is not None:
        pull = train.fedprox.mu * train.optimizer.lr
        if pull >= 1:
            yield (
                f"train.fedprox.mu times train.optimizer.lr is {pull:g}, a pull beyond the round's model, and "
                "fednova cannot say how far such steps go: keep it below 1"
            )
    if isinstance(strategy, Scaffold):
        if spec.compress.update is not None:
            yield (
                "strategy scaffold sends control variates beside its updates, and those cannot be compressed: "
                "leave compress.update out"
            )
        if isinstance(train, TrainSpec) and (train.personal or train.buffers != "averaged"):
            yield "strategy scaffold needs all of the model on the server: leave train.personal and train.buffers out"


def _grid(spec: JobFields) -> Iterator[str]:
    limits, asked = spec.limits, spec.cohort_size
    bits = 62 - sum(math.ceil(math.log2(bound)) for bound in (limits.max_abs, limits.max_examples * asked))
    if bits < FEWEST_BITS:
        yield (
            f"limits.max_abs {limits.max_abs:g}, limits.max_examples {limits.max_examples} and the {asked} clients of "
            f"a round leave {max(bits, 0)} of the {FEWEST_BITS} binary places that the fold needs: lower the limits"
        )


def _robust(spec: JobFields) -> Iterator[str]:
    strategy, fewest = spec.strategy, spec.minimum
    if isinstance(strategy, Krum | MultiKrum | Bulyan):
        needed = (4 if isinstance(strategy, Bulyan) else 2) * strategy.byzantine + 3
        if fewest < needed:
            yield (
                f"strategy {strategy.name} with byzantine {strategy.byzantine} needs {needed} updates, and a round may "
                f"have {fewest} (rounds.minimum): ask more clients, or tolerate fewer attackers"
            )
    if isinstance(strategy, MultiKrum) and strategy.keep is not None and strategy.keep > fewest - strategy.byzantine:
        yield (
            f"strategy.keep is {strategy.keep}; of {fewest} updates (rounds.minimum) {strategy.byzantine} may be "
            f"byzantine, so at most {fewest - strategy.byzantine} can be kept"
        )
    if isinstance(strategy, ROBUST) and spec.compress.update is not None:
        yield (
            f"strategy {strategy.name} compares updates value by value: leave compress.update out "
            "(compress.model may stay)"
        )


def _asynchronous(spec: JobFields) -> Iterator[str]:
    if isinstance(spec.strategy, FedBuff) and spec.rounds.target not in (None, spec.strategy.buffer_size):
        yield (
            f"rounds.target is {spec.rounds.target} and strategy.buffer_size {spec.strategy.buffer_size}: with fedbuff "
            "the buffer closes a round, so leave rounds.target out"
        )


def _adapters(spec: JobFields) -> Iterator[str]:
    model = spec.model
    if model.adapters is None:
        return
    if isinstance(model, Softmax) or (isinstance(model, Mlp) and not model.hidden):
        yield f"model.adapters: {model.name} has no layer below its last one: lora has no target there"
    if isinstance(model, CharLstm):
        yield "model.adapters: below its last layer char_lstm has recurrent ones: lora has no target there"
    if model.adapters.targets is None and isinstance(model, CustomModel | Torchvision):
        yield (
            f"model.adapters: lora has no target, because {model.name} is not known here: name its modules in "
            "model.adapters.targets"
        )


def _model(spec: JobFields) -> Iterator[str]:
    model, data = spec.model, spec.data
    if isinstance(model, CharLstm) and data.name in (*PIXELS, "images", "csv"):
        yield f"model char_lstm reads sequences of characters, which {data.name} has none of: shakespeare has"
    if isinstance(model, LeNet | Cnn | ResNet | Vgg9 | Vgg11 | Torchvision) and data.name in ("shakespeare", "csv"):
        yield f"model {model.name} sees images, and {data.name} has none"
    if isinstance(model, Transformer) and data.name == "csv":
        yield "model transformer reads sequences or images, and csv has neither: mlp and softmax take rows of numbers"
    side = data.size if isinstance(data, Images) else PIXELS.get(data.name)
    if isinstance(model, Vgg11) and side is not None and side < 32:
        yield f"model vgg11 needs images of 32×32 pixels or more, and those of {data.name} have {side}×{side}"
    if isinstance(model, Transformer) and side is not None and model.patch > side:
        yield f"model.patch is {model.patch}, and the images of {data.name} have {side}×{side} pixels"


def _personal(spec: JobFields) -> Iterator[str]:
    train, model = spec.train, spec.model
    if "*" in train.personal:
        yield "train.personal keeps all of the model on the clients: nothing is left to train together"
    without = isinstance(model, NO_BATCH_NORM) or (isinstance(model, ResNet) and model.norm != "batch")
    if "batch_norm" in train.personal and without:
        yield f"train.personal keeps batch_norm on the clients, and model {model.name} has none"
    stays = "train.personal" if train.personal else "train.buffers: local" if train.buffers == "local" else ""
    if stays and spec.evaluate.every and spec.evaluate.where != "clients":
        yield (
            f"{stays} keeps a part of the model on the clients, so that the server has none to evaluate: "
            "set evaluate.where to clients, or evaluate.every to 0"
        )


def _batches(spec: JobFields) -> Iterator[str]:
    if spec.rounds.clients_per_task == 1:
        return
    place, strategy = "rounds.clients_per_task folds several clients into one update", spec.strategy
    if spec.silos is not None:
        yield f"{place}: that is for a pool, and this job has silos"
    if isinstance(strategy, (*ROBUST, NormClip, QFedAvg, CustomStrategy)):
        yield f"{place}, and strategy {strategy.name} needs each by itself"
    if isinstance(strategy, Scaffold | FedBuff):
        yield f"{place}, which strategy {strategy.name} has no use for: leave it at 1"
    if spec.compress.update is not None:
        yield f"{place}, whose sum is exact: leave compress.update out"
    if spec.train.personal or spec.train.buffers == "local":
        yield f"{place}, and train.personal and train.buffers: local keep something of each"


def _data(spec: JobFields) -> Iterator[str]:
    data = spec.data
    if spec.silos is not None and data.clients is not None:
        yield "data.clients is how many clients a pool plays, and the silos are the clients: leave it out"
    if not isinstance(data, Shared):
        return
    partition = data.partition
    if isinstance(partition, Quantity) and partition.weights is not None and len(partition.weights) != spec.population:
        yield f"data.partition.weights has {len(partition.weights)} weights for {spec.population} clients"
    if isinstance(partition, Natural):
        if data.name in KEYED and partition.key is None:
            yield f"data.partition: natural needs the key by which {data.name} is shared out: a column, or an array"
        elif data.name not in (*KEYED, "femnist", "shakespeare"):
            yield (
                f"data.partition: {data.name} does not say whose its examples are; natural is for femnist, "
                f"shakespeare, {' and '.join(KEYED)}"
            )


def _silos(spec: JobFields) -> Iterator[str]:
    """Problems with keys that silos with separate files must agree on: they share a model, but not their files."""
    data = spec.data
    if not spec.has_own_files or not isinstance(data, InFiles):
        return
    if data.partition != Iid():
        yield "data.partition shares out what all clients have, and each silo has a file of its own: leave it out"
    shown = "`fedq data FILE`, run where a silo's data are, shows its own"
    if data.classes is None:
        how = "[LABEL, …], or how many there are" if isinstance(data, Npz) else "[LABEL, …]"
        yield (
            "data.classes is missing: labels and their order are the same at all silos, and none sees another's file; "
            f"write data.classes: {how}; {shown}"
        )
    if isinstance(data, Csv) and data.columns is None:
        yield (
            "data.columns is missing: features and their order are the same at all silos; "
            f"write data.columns: [COLUMN, …]; {shown}"
        )
    if isinstance(data, Csv) and data.scale and data.statistics is None:
        yield (
            "data.scale is true, and each silo would scale by its own rows: write what all of them scale by, "
            f"data.statistics: {{mean: […], deviation: […]}}, or data.scale: false; {shown}"
        )


def _selection(spec: JobFields) -> Iterator[str]:
    select = spec.select
    if isinstance(select, PowerOfChoice) and select.candidates is not None and select.candidates < select.size:
        yield f"select.candidates is {select.candidates}, fewer than the {select.size} clients that a round asks"
    if isinstance(select, PowerOfChoice) and (select.candidates or 0) > spec.population:
        yield f"select.candidates is {select.candidates}, but there are {spec.population} clients"
    if isinstance(select, Tifl) and select.tiers * select.size > spec.population:
        yield (
            f"select.tiers is {select.tiers}: {spec.population} clients make tiers of "
            f"{spec.population // select.tiers}, and a round asks {select.size} of one tier"
        )


def _simulation(spec: JobFields) -> Iterator[str]:
    found = spec.simulate
    if found is None:
        return
    if spec.silos is not None:
        yield "simulate is for the clients that a pool plays, and silos are real: leave simulate out, or use a pool"
        return
    if isinstance(found.speed, Profiles) and found.speed.slow + found.speed.medium > 1:
        yield "simulate.speed: slow and medium are shares of all clients, and together more than all of them"
    if (
        found.network is not None
        and (found.network.latency, found.network.down_mbps, found.network.up_mbps) == (None,) * 3
    ):
        yield "simulate.network: give a latency, down_mbps or up_mbps"
    if found.dropout is not None and found.dropout.rate == 1:
        yield "simulate.dropout.rate is 1: no client would ever answer"
    named: dict[str, Mapping[str, object]] = {
        "simulate.speed.ratios": found.speed.ratios if isinstance(found.speed, Ratios) else {},
        "simulate.availability.spans": found.availability.spans if isinstance(found.availability, Trace) else {},
    }
    for where, clients in named.items():
        for client in sorted(client for client in clients if client not in spec.clients)[:1]:
            yield f"{where} names {client}; the clients are {spec.clients[0]} to {spec.clients[-1]}"
    if isinstance(found.availability, Trace):
        yield from _spans(found.availability)


def _spans(trace: Trace) -> Iterator[str]:
    for client, spans in trace.spans.items():
        where, before = f"simulate.availability.spans.{client}", 0.0
        for pair in spans:
            if not before <= pair[0] < pair[1]:
                yield f"{where}: {list(pair)} does not follow on the span before it: order them, from 0 on"
                break
            before = pair[1]
        else:
            if trace.period is not None and before > trace.period:
                yield f"{where}: a span ends at {before:g} s, after simulate.availability.period, {trace.period:g} s"


def _evaluation(spec: JobFields) -> Iterator[str]:
    evaluate, data = spec.evaluate, spec.data
    if evaluate.clients is not None and evaluate.clients > spec.population:
        yield f"evaluate.clients is {evaluate.clients}, but there are {spec.population} clients"
    if evaluate.clients is not None and evaluate.where == "server":
        yield "evaluate.clients is how many clients evaluate, and evaluate.where is server: set that to clients or both"
    if evaluate.every and evaluate.where != "server" and not data.local_test:
        yield (
            f"evaluate.where is {evaluate.where}, and the clients hold out no examples for it: "
            "set data.local_test, such as to 0.2"
        )
    held_out = data.test_fraction if isinstance(data, Digits | Csv | Npz | Images) else 1  # LEAF may bring a test set
    if evaluate.every and evaluate.where != "clients" and not held_out:
        yield (
            "data.test_fraction is 0, so that the server has nothing to evaluate on: "
            "set evaluate.every to 0, or evaluate.where to clients"
        )
    if evaluate.stop is not None:
        yield from _stop(evaluate, evaluate.stop)


def _stop(evaluate: EvaluateSpec, stop: StopSpec) -> Iterator[str]:
    if not evaluate.every:
        yield "evaluate.stop needs evaluations: evaluate.every is 0"
    if stop.target is None and stop.patience is None:
        yield "evaluate.stop: give a target, or a patience, or both"
    known = evaluate.measured
    if stop.metric not in known:
        yield (
            f"evaluate.stop.metric: no evaluation measures {stop.metric!r}; "
            f"with evaluate.where: {evaluate.where} it is one of {', '.join(known)}"
        )
    if "loss" in stop.metric and stop.mode == "max":
        yield "evaluate.stop: of a loss, less is better: set evaluate.stop.mode to min"


_CHECKS = (
    _strategy, _grid, _robust, _asynchronous, _model, _adapters, _personal, _batches, _data, _silos, _selection,
    _simulation, _evaluation,
)  # fmt: skip
