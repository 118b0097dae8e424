"""Tensors that a model's state does not show as they are: what is trained there would stay with one trainer."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from services.trainer.models.tied import is_one
from shared.errors import BadInput

_REGISTERED = ("_parameters", "_buffers", "_modules")


def refuse_hidden(model: nn.Module) -> None:
    """`BadInput` where the state has a tensor that is not the model's own, or lacks one that is trained."""
    state = model.state_dict()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = parameters | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in state.items():
        if name not in own or not is_one(tensor, own[name]):
            raise BadInput(
                f"model: its state_dict has {name}, which is no parameter and no buffer of that name; what is loaded "
                "there would be lost, so register it as a buffer"
            )
    for name, parameter in parameters.items():
        if parameter.requires_grad and name not in state:
            raise BadInput(
                f"model: {name} would be trained and not shared, as its state_dict leaves it out; freeze it with "
                "requires_grad_(False), or leave it in"
            )
    known = {id(parameter) for parameter in parameters.values()}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in _REGISTERED:
                continue
            for inner, tensor in _inside(value):
                if tensor.requires_grad and tensor.is_leaf and id(tensor) not in known:
                    name = f"{path}.{attribute}{inner}".removeprefix(".")
                    raise BadInput(
                        f"model: {name} has requires_grad and is no parameter of the model, so it would be neither "
                        "trained nor shared; register it (nn.Parameter, nn.ModuleList, nn.ParameterList), or freeze it "
                        "with requires_grad_(False)"
                    )


def has_adapters(model: nn.Module) -> bool:
    """True if peft changed the model: it leaves its configuration on it."""
    return any(hasattr(module, "peft_config") for module in model.modules())


def _inside(value: Any, deep: int = 3) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an attribute's value, in a list or a module that it holds, each with the way to it."""
    if isinstance(value, Tensor):
        yield "", value
    elif isinstance(value, nn.Module):
        for name, parameter in value.named_parameters():
            yield f".{name}", parameter
    elif deep and isinstance(value, list | tuple | Mapping):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            for inner, tensor in _inside(item, deep - 1):
                yield f"[{key!r}]{inner}", tensor
