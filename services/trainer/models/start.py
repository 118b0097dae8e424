"""The tensors that a job's model begins with, from a safetensors file; never a pickle, which may run anything."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from services.trainer.models.module_state import has_adapters, tied
from shared.errors import BadInput


def begin_with(model: nn.Module, path: Path) -> None:
    """Gives a model that was just built the tensors of the file, by name and shape; `BadInput` if they do not fit.

    All of its tensors or, so that a trained model may begin with other classes, all but those of its last layer, which
    stays as it was drawn. A tensor that has several names may be there under any of them, and if it is under more,
    they must be the same. If the model has adapters, the file is of the model without them. Floats may be of any
    width.
    """
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"model.start: the file cannot be read as safetensors: {error}") from error
    wanted = model.state_dict()
    if has_adapters(model):  # without adapters, such names are the model's own tensors
        wanted = {_plain(name): tensor for name, tensor in wanted.items() if not _adapter(name)}
    last = {name for name in wanted if name.rpartition(".")[0] == _last_layer(wanted)}
    others = tied(wanted)
    given = {others.get(name, name): name for name in found}  # the name of each tensor in the file
    missing = [
        name for name in wanted if others.get(name, name) not in given and not (name in last and last.isdisjoint(found))
    ]
    if missing:
        raise BadInput(
            f"model.start: the file has no tensor {missing[0]} {_shape(wanted[missing[0]])}, and the model has"
        )
    if extra := sorted(found.keys() - wanted.keys()):
        raise BadInput(f"model.start: the file has a tensor {extra[0]}, and the model has none of that name")
    for name, tensor in found.items():
        _check(name, tensor, wanted[name], name in last)
        other = given[others.get(name, name)]
        if other != name and not torch.equal(tensor, found[other]):
            raise BadInput(
                f"model.start: {name} and {other} are one tensor in the model, and the file has two that differ; leave "
                "one of them out"
            )
    with torch.no_grad():
        for name, tensor in found.items():
            wanted[name].copy_(tensor)


def _check(name: str, found: Tensor, wanted: Tensor, in_last: bool) -> None:
    if found.shape != wanted.shape:
        advice = "; leave the last layer out of the file to begin with a new one" if in_last else ""
        raise BadInput(
            f"model.start: tensor {name} is {_shape(found)} in the file and {_shape(wanted)} in the model{advice}"
        )
    if found.is_floating_point() != wanted.is_floating_point():
        raise BadInput(f"model.start: tensor {name} is {found.dtype} in the file and {wanted.dtype} in the model")
    if not found.is_floating_point() and not torch.equal(found.to(wanted.dtype).to(found.dtype), found):
        raise BadInput(
            f"model.start: tensor {name} has values in the file that {wanted.dtype}, as in the model, cannot hold"
        )


def _last_layer(tensors: dict[str, Tensor]) -> str:
    return next(reversed(tensors)).rpartition(".")[0]


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def _plain(name: str) -> str:
    """A tensor's name before peft put an adapter around its layer."""
    return ".".join(part for part in name.split(".") if part != "base_layer")
