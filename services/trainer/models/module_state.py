"""State of a module that its `state_dict` does not tell: tied tensors, hidden ones, and what training leaves behind.

- Tied: a tensor that is one under several names, such as weights that two layers share. Names are those of a model's
  state. Such a tensor travels once, under the first name that is a trained parameter's, so that it is encoded once and
  counts once in a norm; loaded, it is there under all of its names, as their memory is one.
- Hidden: a tensor that the state does not show as it is. What is trained there would stay with one trainer.
- Transient: the gradients, hooks and attributes that training leaves in a model besides its tensors.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shared.errors import BadInput

_WORK = 1_000_000  # most steps that NumPy may spend to find out if two views have an element in common


def tied(state: Mapping[str, Tensor], parameters: Collection[str] = ()) -> dict[str, str]:
    """The other names of tensors that have several, each with the name that the tensor goes by."""
    names: dict[tuple[object, ...], str] = {}
    found = {}
    # Parameters first, otherwise in the order of the state.
    for name in sorted(state, key=lambda name: name not in parameters):
        if state[name].numel():
            first = names.setdefault(_view(state[name]), name)
            if first != name:
                found[name] = first
    return found


def is_one(one: Tensor, other: Tensor) -> bool:
    """True if two tensors are the same memory, seen in the same way."""
    return _view(one) == _view(other)


def tie(model: nn.Module, names: Iterable[tuple[str, str]]) -> None:
    """Makes each first name one with the second again: moved to another device, a shared buffer becomes two."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, first in names:
        tensors[name].data = tensors[first].data


def refuse_overlaps(state: dict[str, Tensor], beside: dict[str, Tensor]) -> None:
    """`BadInput` if two tensors share a part of their memory, or see it in two ways, such as transposed.

    The mean of each would not be a mean of the other, and what is left out of one by an encoding is not of the other.
    Tensors of `beside`, which are not in the state, are put back for each client, and must not take the state along;
    they may share memory among themselves.
    """
    # Tensors that may reach into the next one, with the addresses of their ends.
    before: list[tuple[int, str, Tensor]] = []
    for name, tensor in sorted((state | beside).items(), key=lambda item: item[1].data_ptr()):
        if not tensor.numel():
            continue
        before = [found for found in before if found[0] > tensor.data_ptr() and found[2].device == tensor.device]
        for _, other, earlier in before:
            if not {other, name} <= beside.keys() and _shares(earlier, tensor):
                how = "one of them is not persistent" if is_one(earlier, tensor) else "are not the same tensor"
                raise BadInput(
                    f"model: {other} and {name} share memory and {how}; let one module own it, and make the other of "
                    "it in forward, or clone it"
                )
        last = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True))
        before.append((tensor.data_ptr() + (last + 1) * tensor.element_size(), name, tensor))


def refuse_expanded(tensors: Mapping[str, Tensor]) -> None:
    """`BadInput` if a tensor, of floats or not, has several values in one place: torch copies nothing into such."""
    for name, tensor in tensors.items():
        if any(side > 1 and not stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise BadInput(f"model: {name} has one place in memory for several values, as expand() leaves it; clone it")


def unite(model: nn.Module) -> None:
    """Makes one parameter of trained ones that are the same memory: else weight decay or FedProx would count twice."""
    firsts: dict[tuple[object, ...], nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.requires_grad and parameter.numel():
                first = firsts.setdefault(_view(parameter), parameter)
                if first is not parameter:
                    setattr(module, name, first)  # a recurrent layer's own list of weights follows


def _view(tensor: Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _shares(one: Tensor, other: Tensor) -> bool:
    try:
        # NumPy's own types know of 0 and −1 alone.
        return np.shares_memory(_addresses(one), _addresses(other), max_work=_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _addresses(tensor: Tensor) -> npt.NDArray[np.void]:
    """An array of the same addresses, on any device: the memory itself is never read."""
    size = tensor.element_size()
    return np.asarray(_Memory({
        "version": 3,
        "typestr": f"|V{size}",
        "data": (tensor.data_ptr(), True),
        "shape": tuple(tensor.shape),
        "strides": tuple(size * stride for stride in tensor.stride()),
    }))  # fmt: skip


class _Memory:
    def __init__(self, interface: dict[str, object]) -> None:
        self.__array_interface__ = interface


_REGISTERED = ("_parameters", "_buffers", "_modules")


def refuse_hidden(model: nn.Module) -> None:
    """`BadInput` if the state has a tensor that is not the model's own, or lacks one that is trained."""
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


_PLAIN = (bool, int, float, str, type(None))  # values that cannot be changed in place
_OF_TENSORS = ("_backward_hooks", "_post_accumulate_grad_hooks")

Hooks = dict[int, Any]


class TransientState:
    """The transient state of a model that was just built, to be put back before each client.

    Code that builds its model for each client need not remove a hook that adds to gradients; left there, it would add
    twice to the next client's. Nor need it forget a hidden state that its forward keeps. Here attributes that were not
    there are removed, and tensors are what they were. A list or an object that an attribute names is not looked into.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = [(module, set(vars(module))) for module in model.modules()]
        self._plain = [(module, _plain(module)) for module in model.modules()]
        self._tensors = [(module, name, held, held.detach().clone()) for module, name, held in _tensors(model)]
        self._buffers = [(module, dict(module._buffers)) for module in model.modules()]
        self._hooks = {where: dict(hooks) for where, hooks in _hooks(model).items()}

    def put_back(self) -> None:
        """Makes the model what it was, but for the tensors of its state and for buffers that have a value."""
        self._model.zero_grad(set_to_none=True)
        for module, names in self._names:
            for name in vars(module).keys() - names:
                del vars(module)[name]
        for module, values in self._plain:
            vars(module).update(values)
        with torch.no_grad():
            for module, name, held, first in self._tensors:
                held.copy_(first)
                vars(module)[name] = held
        for module, buffers in self._buffers:
            _forget(module, buffers)
        for where, hooks in _hooks(self._model).items():
            before = self._hooks.get(where, {})
            if hooks != before:  # autograd holds this very dict and would not look at another one
                hooks.clear()
                hooks.update(before)


def _forget(module: nn.Module, before: dict[str, Tensor | None]) -> None:
    """Takes the values of buffers that are not persistent, and had none before."""
    for name in module._non_persistent_buffers_set & module._buffers.keys():
        if name not in before:
            delattr(module, name)
        elif before[name] is None:
            module._buffers[name] = None


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}


def _tensors(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """The tensors that attributes name, but for views of parameters and buffers: their memory is put back there.

    A tensor that is computed of parameters, such as an old weight norm's weight, is made again in each pass.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    return [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_leaf and value.untyped_storage().data_ptr() not in known
    ]


def _hooks(model: nn.Module) -> dict[tuple[str, str], Hooks]:
    """The hooks of each module and each parameter, by its name and by their kind."""
    kinds = {
        (path, kind): hooks
        for path, module in model.named_modules()
        for kind, hooks in vars(module).items()
        if "_hooks" in kind and isinstance(hooks, dict)
    }
    tensors = {
        (name, kind): getattr(parameter, kind) for name, parameter in model.named_parameters() for kind in _OF_TENSORS
    }
    return kinds | {where: hooks for where, hooks in tensors.items() if hooks}
