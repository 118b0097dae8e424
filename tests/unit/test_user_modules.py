"""The user's modules as they were imported, and the files that are no longer so."""

import importlib
import os
import sys
from pathlib import Path

import pytest

from services.trainer.slot import replies
from shared.errors import BadInput
from shared.job import user_code, user_modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the user's that imports one module of its own, one beside it, and one of what is installed."""
    folder = tmp_path / ("job_" + "".join(letter for letter in tmp_path.name if letter.isalnum()))
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "nets.py").write_text(f"import {folder.name}_beside\nfrom . import parts\ndef make(): return 1\n")
    (folder / "parts.py").write_text("")
    (folder / "late.py").write_text("")
    (tmp_path / f"{folder.name}_beside.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in (("_before", frozenset()), ("_named", set()), ("_files", {}), ("_seen", set())):
        monkeypatch.setattr(user_modules, name, value)
    monkeypatch.setattr(user_code, "_policy", user_code.Policy(frozenset([f"{folder.name}."]), "the aggregator h-1"))
    return folder


def edit(file: Path) -> None:
    """Another time of change; nothing else differs."""
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_what_is_edited_after_its_import_is_known(package: Path) -> None:
    """The module that was named, what it imported, and what it imports later; no other file."""
    user_code.find(f"{package.name}.nets:make", "strategy")
    assert user_modules.changed() == []

    edit(package / "late.py")
    assert user_modules.changed() == []
    importlib.import_module(f"{package.name}.late")
    user_modules.take_down()
    assert user_modules.changed() == []
    edited = [
        package / "late.py",
        package / "nets.py",
        package / "parts.py",
        package.parent / f"{package.name}_beside.py",
    ]
    for file in edited:
        edit(file)
    assert user_modules.changed() == sorted(map(str, edited))


class Lazy:
    """Stands for a module that is not installed, as libraries do for what few of their users need."""

    def __getattr__(self, name: str) -> object:
        raise ImportError(f"{name}: not installed")


@pytest.mark.parametrize("kind", [Lazy, type(None), object])
def test_what_stands_for_a_module_is_not_asked(package: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """Anything may lie among the modules, and what one job brings along is no other's trouble."""
    monkeypatch.setitem(sys.modules, f"{package.name}_optional", kind())

    assert user_code.find(f"{package.name}.nets:make", "strategy")() == 1
    user_code.check_unchanged("strategy")
    assert user_modules.digest((f"{package.name}.nets", f"{package.name}_optional"))


def test_a_file_that_is_gone_has_changed(package: Path) -> None:
    user_code.find(f"{package.name}.nets:make", "strategy")
    (package / "parts.py").unlink()

    assert user_modules.changed() == [str(package / "parts.py")]


def test_a_module_that_fails_to_be_imported_is_known_too(package: Path) -> None:
    """By what it had imported until then."""
    (package / "nets.py").write_text("from . import parts\n1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        user_code.find(f"{package.name}.nets:make", "strategy")
    edit(package / "parts.py")

    assert user_modules.changed() == [str(package / "parts.py")]


def test_an_aggregator_says_that_it_is_to_be_restarted(package: Path) -> None:
    """In place of folding by what is no longer on its disk."""
    user_code.find(f"{package.name}.nets:make", "strategy")
    user_code.check_unchanged("strategy")
    edit(package / "nets.py")

    with pytest.raises(BadInput) as caught:
        user_code.check_unchanged("strategy")
    assert str(caught.value) == (
        f"strategy.name: {package}/nets.py has changed since it was imported; restart the aggregator h-1"
    )


def test_what_was_there_before_is_nobodys_own(package: Path) -> None:
    """Of thousands of files that a process has imported, only the user's are looked at."""
    user_code.find(f"{package.name}.nets:make", "strategy")

    assert len(user_modules._files) == 4
    assert not any(
        file == module.__file__ for file in user_modules._files for module in (pytest, sys.modules[__name__])
    )


def test_before_the_first_job_nothing_is_a_users(package: Path) -> None:
    user_modules.take_down()

    assert user_modules._files == {}


@pytest.mark.parametrize("folder", ["lib/python3.12/site-packages", ".local/lib/python3/dist-packages"])
def test_what_is_installed_is_nobodys_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """Wherever: for one user, or for another environment that this one sees."""
    name = "job_lib_" + "".join(letter for letter in tmp_path.name if letter.isalnum())
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / folder)
    with user_modules.importing("job_package"):
        found = importlib.import_module(name)

    assert found.__file__ not in user_modules._files


def test_the_digest_is_that_of_a_packages_files(package: Path, tmp_path: Path) -> None:
    """Of the module that is named and of all beside it in its package, and of nothing else; wherever they lie."""
    module = importlib.import_module(f"{package.name}.nets")

    def fresh() -> str:
        user_modules.digest.cache_clear()
        return user_modules.digest((module.__name__,))

    first = fresh()
    edit(package / "parts.py")
    (tmp_path / "other.py").write_text("pass")
    assert fresh() == first
    (package / "parts.py").write_text("pass")
    assert fresh() != first


def test_one_file_is_a_digest_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without a package, whatever lies beside it."""
    name = "job_alone_" + "".join(letter for letter in tmp_path.name if letter.isalnum())
    (tmp_path / f"{name}.py").write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(name)
    first = user_modules.digest((name,))
    (tmp_path / "beside.py").write_text("")
    user_modules.digest.cache_clear()
    assert user_modules.digest((name,)) == first
    (tmp_path / f"{name}.py").write_text("x = 2")
    user_modules.digest.cache_clear()
    assert user_modules.digest((name,)) != first
    user_modules.digest.cache_clear()


def test_an_error_is_told_with_its_place_in_the_users_code(package: Path) -> None:
    """The innermost line that is the user's, by the way that leads to its file; through one that was raised from it."""
    (package / "parts.py").write_text(
        "def fail(value):\n    return int(value)\ndef parse(text):\n    import json\n    json.loads(text)\n"
    )
    make = user_code.find(f"{package.name}.nets:make", "model")
    assert make() == 1
    parts = sys.modules[f"{package.name}.parts"]
    with pytest.raises(ValueError, match="invalid literal") as raised:
        parts.fail("x")
    assert replies.sentence(raised.value).endswith(f"base 10: 'x' ({package.name}/parts.py:2)")
    assert len(replies.sentence(raised.value, 60)) == 60
    with pytest.raises(ValueError, match="Expecting") as deeper:
        parts.parse("x")
    assert replies.sentence(deeper.value).endswith(f" ({package.name}/parts.py:5)")
    refusal = BadInput("data: it failed")
    refusal.__cause__ = raised.value
    assert replies.sentence(refusal) == f"data: it failed ({package.name}/parts.py:2)"
    assert replies.sentence(ValueError("no code")) == "ValueError: no code"
