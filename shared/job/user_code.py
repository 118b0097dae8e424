"""The user's own code, by `module:attribute`: run where this process allows it, called with what its signature takes.

A job comes over the bus, and whoever may publish one would choose what runs here. So a process runs only what its
settings allow, and nothing until it has said so. Checked is the name, before anything is imported, and then the module
in which what it leads to was defined: a module that imports `Popen` is no way to `Popen`.
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

#: Of the allow list: a module with all below it, `mypkg.`, or one attribute, `mypkg.nets:make`.
ENTRY = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\.|:[A-Za-z_]\w*)"

_CACHED = type(functools.cache(len))


@dataclass(frozen=True)
class Policy:
    """Allow list of a process, and the name that a person has for that process."""

    entries: frozenset[str] = frozenset()
    process: str = "this process"

    def allows(self, module: str, attribute: str) -> bool:
        """An entry `mypkg.` allows the attributes of `mypkg` itself, and those of all modules below it."""
        within = any(entry.endswith(".") and f"{module}.".startswith(entry) for entry in self.entries)
        return within or f"{module}:{attribute}" in self.entries


_policy = Policy()


def permit(entries: Sequence[str], process: str) -> None:
    """Says what this process may run from now on, and how its refusals call it, such as `the aggregator h-12`."""
    global _policy  # noqa: PLW0603 - one policy for one process
    _policy = Policy(frozenset(entries), process)


def find(name: str, section: str) -> Callable[..., Any]:
    """The callable that `module:attribute` names, or `BadInput`; what the module itself raises passes through."""
    module_name, _, attribute = name.partition(":")
    if not _policy.allows(module_name, attribute):
        raise _refusal(section, module_name, attribute)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # it may have been installed since this process began
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
    """`BadInput` where this process would go on with code that was replaced on its disk."""
    user_modules.take_down()
    if files := user_modules.changed():
        raise BadInput(f"{section}.name: {files[0]} has changed since it was imported; restart {_policy.process}")


def call(function: Callable[..., Any], args: Mapping[str, Any], offered: Mapping[str, Any]) -> Any:
    """Calls `function` with the job file's `args`, and with what is `offered` where its signature names it."""
    wanted = _parameters(function)
    extra = {key: value for key, value in offered.items() if key in wanted and key not in args}
    with running():
        return function(**extra, **args)


@contextmanager
def running() -> Iterator[None]:
    """Around the user's code: of our own errors it may raise none that would be taken for ours.

    `Stale` would leave its client without an answer, and `Unavailable` would have it asked again and again.
    """
    try:
        yield
    except (Stale, Unavailable) as error:
        raise failure(error) from error


def failure(error: Exception) -> BadInput:
    """What an error of ours that the user's code raised is."""
    return BadInput(f"the job's own code raised {type(error).__name__}: {error}")


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether the signature names a parameter."""
    return name in _parameters(function)


def _refusal(section: str, module: str, attribute: str, way: str = "") -> BadInput:
    # In its first 120 characters is all that matters: of a client in a batch, no more is told.
    return BadInput(
        f"{section}.name: FEDQ_ALLOW of {_policy.process} lacks {module}:{attribute}{way}; add that, or {module}. for "
        "its whole module, where it is to run there"
    )


def _origin(found: Any) -> tuple[str, str]:
    """The module and the name with which a callable was defined: of an object, its class's; of a wrapper, the inner's.

    A function that wraps another by `functools.wraps` says so itself; so does a class.
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
    except ValueError:  # a callable of C code may have none
        return frozenset()
