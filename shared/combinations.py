"""Settings that are each allowed and cannot go together: the reasons that `fedq validate` gives.

Pure.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.catalog.data import Natural, Quantity, Shared
from shared.catalog.models import CharLstm, CustomModel, Mlp, Softmax, Torchvision
from shared.catalog.selection import PowerOfChoice, Tifl
from shared.catalog.strategies import (
    ROBUST,
    Bulyan,
    FedBuff,
    FedNova,
    Krum,
    MultiKrum,
    NormClip,
    QFedAvg,
    Scaffold,
)
from shared.catalog.training import CustomTrain, Sgd, TrainSpec

if TYPE_CHECKING:
    from shared.jobs import JobSpec

KEYED = ("csv", "npz")  #: data sets whose natural partition needs a key


def problems(spec: "JobSpec") -> Iterator[str]:
    """Why a job could not do what its file says, one sentence each."""
    for check in (_strategy, _robust, _asynchronous, _adapters, _personal, _batches, _data, _selection, _evaluation):
        yield from check(spec)


def _strategy(spec: "JobSpec") -> Iterator[str]:
    strategy, train = spec.strategy, spec.train
    if isinstance(strategy, Scaffold | FedNova | QFedAvg):
        if isinstance(train, CustomTrain):
            yield f"strategy {strategy.name} changes the local step: it needs the built-in one, not your own"
        elif isinstance(strategy, Scaffold | FedNova) and not isinstance(train.optimizer, Sgd):
            yield f"strategy {strategy.name} is defined for sgd; train.optimizer is {train.optimizer.name}"
    if isinstance(strategy, Scaffold):
        if spec.compress.update is not None:
            yield (
                "strategy scaffold sends control variates beside its updates, and those cannot be compressed: "
                "leave compress.update out"
            )
        if isinstance(train, TrainSpec) and (train.personal or train.buffers != "averaged"):
            yield "strategy scaffold needs all of the model on the server: leave train.personal and train.buffers out"


def _robust(spec: "JobSpec") -> Iterator[str]:
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


def _asynchronous(spec: "JobSpec") -> Iterator[str]:
    if isinstance(spec.strategy, FedBuff) and spec.rounds.target not in (None, spec.strategy.buffer_size):
        yield (
            f"rounds.target is {spec.rounds.target} and strategy.buffer_size {spec.strategy.buffer_size}: with fedbuff "
            "the buffer closes a round, so leave rounds.target out"
        )


def _adapters(spec: "JobSpec") -> Iterator[str]:
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


def _personal(spec: "JobSpec") -> Iterator[str]:
    train = spec.train
    stays = "train.personal" if train.personal else "train.buffers: local" if train.buffers == "local" else ""
    if stays and spec.evaluate.every and spec.evaluate.on != "clients":
        yield (
            f"{stays} keeps a part of the model on the clients, so that the server has none to evaluate: "
            "set evaluate.on to clients, or evaluate.every to 0"
        )


def _batches(spec: "JobSpec") -> Iterator[str]:
    if spec.rounds.clients_per_task == 1:
        return
    place, strategy = "rounds.clients_per_task folds several clients into one update", spec.strategy
    if spec.silos is not None:
        yield f"{place}: that is for a pool, and this job has silos"
    if isinstance(strategy, (*ROBUST, NormClip)):
        yield f"{place}, and strategy {strategy.name} needs each by itself"
    if isinstance(strategy, Scaffold | FedBuff):
        yield f"{place}, which strategy {strategy.name} has no use for: leave it at 1"
    if spec.compress.update is not None:
        yield f"{place}, whose sum is exact: leave compress.update out"
    if spec.train.personal or spec.train.buffers == "local":
        yield f"{place}, and train.personal and train.buffers: local keep something of each"


def _data(spec: "JobSpec") -> Iterator[str]:
    data = spec.data
    if not isinstance(data, Shared):
        return
    if spec.silos is not None:
        yield f"silos bring their own data, by module:attribute; data.name is {data.name}, which a pool shares out"
    partition = data.partition
    if isinstance(partition, Quantity) and partition.weights is not None and len(partition.weights) != data.clients:
        yield f"data.partition.weights has {len(partition.weights)} weights for {data.clients} clients"
    if isinstance(partition, Natural):
        if data.name in KEYED and partition.key is None:
            yield f"data.partition: natural needs the key by which {data.name} is shared out: a column, or an array"
        elif data.name not in (*KEYED, "femnist", "shakespeare"):
            yield (
                f"data.partition: {data.name} does not say whose its examples are; natural is for femnist, "
                f"shakespeare, {' and '.join(KEYED)}"
            )


def _selection(spec: "JobSpec") -> Iterator[str]:
    select = spec.select
    if isinstance(select, PowerOfChoice) and select.candidates is not None and select.candidates < select.size:
        yield f"select.candidates is {select.candidates}, fewer than the {select.size} clients that a round asks"
    if isinstance(select, Tifl) and select.tiers * select.size > spec.population:
        yield (
            f"select.tiers is {select.tiers}: {spec.population} clients make tiers of "
            f"{spec.population // select.tiers}, and a round asks {select.size} of one tier"
        )


def _evaluation(spec: "JobSpec") -> Iterator[str]:
    evaluate = spec.evaluate
    if evaluate.clients is not None and evaluate.clients > spec.population:
        yield f"evaluate.clients is {evaluate.clients}, but there are {spec.population} clients"
    stop = evaluate.stop
    if stop is None:
        return
    if not evaluate.every:
        yield "evaluate.stop needs evaluations: evaluate.every is 0"
    if stop.target is None and stop.patience is None:
        yield "evaluate.stop: give a target, or a patience, or both"
