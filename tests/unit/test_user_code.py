"""The user's code by name: what a process may run, and what it refuses before anything of it runs."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.native import services
from shared.errors import BadInput
from shared.job import user_code

MODULE = """
    import functools, os, subprocess, types
    from subprocess import Popen
    from operator import attrgetter
    from {package}.sub import inner
    from elsewhere_{package} import foreign

    class Net:
        def __init__(self, width=1): self.width = width
        def __call__(self): return self.width
        def make(self): return self.width

    class Runner(Popen): pass

    def make(width=1): return width
    def _outer(function):
        @functools.wraps(function)
        def wrapper(*args): return function(*args)
        return wrapper

    wide = functools.partial(Net, width=64)
    cached = functools.cache(make)
    wrapped = _outer(make)
    lambda_ = lambda: 1
    net = Net()
    bound = net.make
    run = functools.partial(subprocess.run, check=False)
    twice = functools.partial(functools.partial(Popen), ["true"])
    remembered = functools.cache(Popen)
    disguised = _outer(Popen)
    method = types.MethodType(Popen, ["true"])
    alias = list[int]
    append = [].append
    system = os.system
    environ = os.environ.get
    number = 3
"""

OURS = ["make", "Net", "Runner", "wide", "cached", "wrapped", "lambda_", "net", "bound", "inner"]
FOREIGN = {
    "Popen": "subprocess:Popen",
    "run": "subprocess:run",
    "twice": "subprocess:Popen",
    "remembered": "subprocess:Popen",
    "disguised": "subprocess:Popen",
    "method": "subprocess:Popen",
    "attrgetter": "operator:attrgetter",
    "alias": "types:GenericAlias",
    "append": "builtins:append",
    "system": "posix:system",
    "environ": "collections.abc:get",
    "__class__": "builtins:module",
    "__init__": "builtins:method-wrapper",
    "__reduce_ex__": "builtins:__reduce_ex__",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's, with all that a module may hold and that can be called."""
    name = "mine_" + "".join(letter for letter in tmp_path.name if letter.isalnum())
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("def top(): return 0\n")
    (folder / "sub.py").write_text("def inner(): return 1\n")
    (folder / "kinds.py").write_text(textwrap.dedent(MODULE.format(package=name)))
    (tmp_path / f"elsewhere_{name}.py").write_text("def foreign(): return 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_nothing_is_allowed_unless_it_is_listed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even imported, and the refusal says who refuses, what to set and what to write there."""
    monkeypatch.setattr(user_code, "_policy", user_code.Policy(process="the trainer ward-3"))
    with pytest.raises(BadInput) as caught:
        user_code.find(f"{package}.kinds:make", "model")

    assert package not in sys.modules
    assert str(caught.value) == (
        f"model.name: FEDQ_ALLOW of the trainer ward-3 lacks {package}.kinds:make; add that, or {package}.kinds. for "
        "its whole module, where it is to run there"
    )


@pytest.mark.parametrize("attribute", OURS)
def test_a_module_with_all_below_it_is_allowed_by_its_name_and_a_dot(
    package: str, attribute: str, allow: Callable[..., None]
) -> None:
    """Functions, classes, objects, and what the standard library makes of them, as long as they are of one's own."""
    allow(f"{package}.")

    assert callable(user_code.find(f"{package}.kinds:{attribute}", "model"))
    assert user_code.find(f"{package}:top", "model")() == 0


@pytest.mark.parametrize(("attribute", "origin"), FOREIGN.items())
def test_what_a_module_has_from_elsewhere_is_not_its_own(
    package: str, attribute: str, origin: str, allow: Callable[..., None]
) -> None:
    """However it is dressed up, and though the list names it as an attribute of the module."""
    for entry in (f"{package}.", f"{package}.kinds:{attribute}"):
        allow(entry)
        with pytest.raises(BadInput, match=f" lacks .*{origin}, to which {package}.kinds:{attribute} leads; "):
            user_code.find(f"{package}.kinds:{attribute}", "model")


def test_an_attribute_is_allowed_by_its_whole_name(package: str, allow: Callable[..., None]) -> None:
    """It alone; what it was imported from has to be listed as well."""
    allow(f"{package}.kinds:make", f"{package}.kinds:inner", f"{package}.kinds:foreign", f"elsewhere_{package}.")

    assert user_code.find(f"{package}.kinds:make", "model")() == 1
    assert user_code.find(f"{package}.kinds:foreign", "model")() == 2
    for attribute, lacking in (("Net", f"{package}.kinds:Net; "), ("inner", f"{package}.sub:inner, to which ")):
        with pytest.raises(BadInput, match=f" lacks {lacking}"):
            user_code.find(f"{package}.kinds:{attribute}", "model")


def test_a_name_that_only_begins_like_an_entry_is_another(package: str, allow: Callable[..., None]) -> None:
    """An entry ends where a part of the name does."""
    allow("min.", f"{package}.kin.", f"{package}:kinds", f"{package}.kinds:mak")
    with pytest.raises(BadInput, match="FEDQ_ALLOW"):
        user_code.find(f"{package}.kinds:make", "model")
    assert package not in sys.modules


def test_what_is_allowed_and_is_not_there_is_named(package: str, allow: Callable[..., None]) -> None:
    allow(f"{package}.", "nowhere.")
    with pytest.raises(BadInput, match="this process has no module nowhere"):
        user_code.find("nowhere.at:all", "data")
    with pytest.raises(BadInput, match=f"the module {package}.kinds has no maker"):
        user_code.find(f"{package}.kinds:maker", "data")
    with pytest.raises(BadInput, match="is a int, not something to call"):
        user_code.find(f"{package}.kinds:number", "data")


def test_a_stack_on_one_machine_allows_the_examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what .env says in place of them, or the environment."""
    monkeypatch.delenv("FEDQ_ALLOW", raising=False)
    monkeypatch.chdir(tmp_path)
    assert services.allowed() == "examples."

    (tmp_path / ".env").write_text("FEDQ_ALLOW=mypkg.,examples.own_model:residual\n")
    assert services.allowed() == "mypkg.,examples.own_model:residual"
    monkeypatch.setenv("FEDQ_ALLOW", "other.")
    assert services.allowed() == "other."
