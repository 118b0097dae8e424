"""State of a model beside its tensors: the gradients, hooks and attributes that training leaves in it."""

from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None))  # what cannot be changed in place
_OF_TENSORS = ("_backward_hooks", "_post_accumulate_grad_hooks")

Hooks = dict[int, Any]


class Beside:
    """All that of a model that was just built, to be put back before each client.

    Code that makes its model anew for each client has no need to remove a hook that adds to gradients: left there, the
    next client's would be added to twice. Nor has it to forget a hidden state that its forward keeps: attributes that
    were not there are removed, and tensors are what they were. A list or an object that an attribute names is not
    looked into.
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
            if hooks != before:  # autograd has this very dict, and another one would not be looked at
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

    What is computed of parameters, as an old weight norm's weight, is made anew in each pass.
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
