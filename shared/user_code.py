"""The user's own code, by `module:attribute`, called with what its signature takes."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from shared.errors import BadInput


def find(name: str, section: str) -> Callable[..., Any]:
    """The callable that `module:attribute` names, or `BadInput`; what the module itself raises passes through."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # it may have been installed since this process began
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise BadInput(
                f"{section}.name: this process has no module {error.name}; "
                "install it there, or start fedq in the directory that holds it"
            ) from error
        raise
    found = getattr(module, attribute, None)
    if found is None:
        raise BadInput(f"{section}.name: the module {module_name} has no {attribute}")
    if not callable(found):
        raise BadInput(f"{section}.name: {name} is a {type(found).__name__}, not something to call")
    return found  # type: ignore[no-any-return]


def call(function: Callable[..., Any], args: Mapping[str, Any], offered: Mapping[str, Any]) -> Any:
    """Calls `function` with the job file's `args`, and with what is `offered` where its signature names it."""
    wanted = _parameters(function)
    extra = {key: value for key, value in offered.items() if key in wanted and key not in args}
    return function(**extra, **args)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether the signature names a parameter."""
    return name in _parameters(function)


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except ValueError:  # a callable of C code may have none
        return frozenset()
