"""State of a model beside its tensors: the gradients, hooks and plain attributes that training leaves in it."""

from typing import Any

from torch import nn

_PLAIN = (bool, int, float, str, type(None))  # what cannot be changed in place
_OF_TENSORS = ("_backward_hooks", "_post_accumulate_grad_hooks")

Hooks = dict[int, Any]


class Beside:
    """All that of a model that was just built, to be put back before each client.

    Code that makes its model anew for each client has no need to remove a hook that adds to gradients: left there, the
    next client's would be added to twice. A list or an object that an attribute names is not looked into.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._plain = [(module, _plain(module)) for module in model.modules()]
        self._hooks = {where: dict(hooks) for where, hooks in _hooks(model).items()}

    def put_back(self) -> None:
        """Makes the model what it was, but for its tensors."""
        self._model.zero_grad(set_to_none=True)
        for module, values in self._plain:
            vars(module).update(values)
        for where, hooks in _hooks(self._model).items():
            before = self._hooks.get(where, {})
            if hooks != before:  # autograd has this very dict, and another one would not be looked at
                hooks.clear()
                hooks.update(before)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}


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
