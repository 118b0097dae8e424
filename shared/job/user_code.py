"""The user's own code, by `module:attribute`: run if this process allows it, called with what its signature takes.

A job comes over the bus, so anyone with the right to publish could choose the code that runs here. A process therefore
runs only what its settings allow, and nothing before `permit`. It checks the name before it imports anything, and then
the module that defines the object found: a module that imports `Popen` does not give access to `Popen`.
"""

import functools
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shared.errors import BadInput, Stale, Unavailable
from shared.job import user_modules

#: Pattern of an entry in the allow list: a module with all below it, `mypkg.`, or one attribute, `mypkg.nets:make`.
ENTRY = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\.|:[A-Za-z_]\w*)"

_CACHED = type(functools.cache(len))


@dataclass(frozen=True)
class Policy:
    """Allow list of a process, and the name of that process in messages to users."""

    entries: frozenset[str] = frozenset()
    process: str = "this process"

    def allows(self, module: str, attribute: str) -> bool:
        """True if an entry names the attribute, or its module: `mypkg.` allows `mypkg` and all modules below it."""
        within = any(entry.endswith(".") and f"{module}.".startswith(entry) for entry in self.entries)
        return within or f"{module}:{attribute}" in self.entries


_policy = Policy()


def permit(entries: Sequence[str], process: str) -> None:
    """Sets what this process may run from now on, and its name in refusals, such as `the aggregator h-12`."""
    global _policy  # noqa: PLW0603 - one policy for one process
    _policy = Policy(frozenset(entries), process)


def find(name: str, section: str) -> Callable[..., Any]:
    """The callable that `module:attribute` names, or `BadInput`; an error of the module itself passes through."""
    module_name, _, attribute = name.partition(":")
    if not _policy.allows(module_name, attribute):
        raise _refusal(section, module_name, attribute)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # the module may have been installed since this process began
    try:
        with running(), user_modules.importing(module_name.partition(".")[0]):
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
    home, defined = _origin(found)
    if home != module_name and not _policy.allows(home, defined):
        raise _refusal(section, home, defined, f", to which {name} leads")
    return found  # type: ignore[no-any-return]


def check_unchanged(section: str) -> None:
    """Raises `BadInput` if this process would go on with code that was replaced on its disk."""
    user_modules.take_down()
    if files := user_modules.changed():
        raise BadInput(f"{section}.name: {files[0]} has changed since it was imported; restart {_policy.process}")


def call(function: Callable[..., Any], args: Mapping[str, Any], offered: Mapping[str, Any]) -> Any:
    """Calls `function` with the job file's `args`, and with those of the `offered` values that its signature names."""
    wanted = _parameters(function)
    extra = {key: value for key, value in offered.items() if key in wanted and key not in args}
    with running():
        return function(**extra, **args)


@contextmanager
def running() -> Iterator[None]:
    """Runs the user's code in a `with` block and turns fedq's own errors from it into `BadInput`.

    A `Stale` from there would leave its client without an answer, and `Unavailable` would repeat the task forever.
    """
    try:
        yield
    except (Stale, Unavailable) as error:
        raise failure(error) from error


def failure(error: Exception) -> BadInput:
    """The `BadInput` that stands for an error of fedq's classes which the user's code raised."""
    return BadInput(f"the job's own code raised {type(error).__name__}: {error}")


def takes(function: Callable[..., Any], name: str) -> bool:
    """True if the signature names the parameter."""
    return name in _parameters(function)


def _refusal(section: str, module: str, attribute: str, way: str = "") -> BadInput:
    # The first 120 characters hold all that matters: for a client in a batch, the record keeps no more.
    return BadInput(
        f"{section}.name: FEDQ_ALLOW of {_policy.process} lacks {module}:{attribute}{way}; add that, or {module}. for "
        "its whole module, where it is to run there"
    )


def _origin(found: Any) -> tuple[str, str]:
    """The module and the name that define a callable: for an object, its class's; for a wrapper, the inner function's.

    Functions wrapped by `functools.wraps`, and classes, carry the right names themselves.
    """
    while True:
        if isinstance(found, functools.partial):
            found = found.func
        elif isinstance(found, types.MethodType):
            found = found.__func__
        elif isinstance(found, _CACHED):
            found = found.__wrapped__
        else:
            break
    if not isinstance(found, type | types.FunctionType | types.BuiltinFunctionType):
        found = type(found)
    return str(found.__module__ or "builtins"), found.__name__  # built-in methods have no module


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except ValueError:  # a callable of C code may have no signature
        return frozenset()
