"""The user's modules that this process has imported, and whether their files are still those that it imported.

Python imports a module once: what is edited later is run by the processes that start later, and by no other.
"""

import functools
import hashlib
import os
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

MANY = 500  #: source files in a package that are still read for its digest

#: Where Python is: a module from there is nobody's own, unless a job names its package.
_PYTHON = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
#: Nor is what is installed, for all, for one user, or for another environment that this one sees.
_INSTALLED = tuple(f"{os.sep}{folder}{os.sep}" for folder in ("site-packages", "dist-packages"))

Stamp = tuple[int, int] | None  # another one when a file is written; None when it is gone

_before: frozenset[str] = frozenset()  # the modules that were there before any of the user's
_named: set[str] = set()  # the packages that jobs named
_files: dict[str, Stamp] = {}  # of the user's modules, as they were when they were imported
_seen: set[str] = set()  # the modules that were looked at: torch alone has thousands, and a task looks each time


@contextmanager
def importing(package: str) -> Iterator[None]:
    """Takes down which files the block imports, by itself or by what it imports, from a job's package."""
    global _before  # noqa: PLW0603 - what a process has imported is the process's
    _before = _before if _named else frozenset(sys.modules)
    if package not in _named:
        _named.add(package)
        _seen.clear()  # what was nobody's may be this package's
    try:
        yield
    finally:
        take_down()


def changed() -> list[str]:
    """The files of the user's modules that are not as they were when they were taken down."""
    # A list, since another thread of an aggregator may be importing meanwhile.
    return sorted(file for file, stamp in list(_files.items()) if _stamp(file) != stamp)


@functools.cache
def digest(modules: tuple[str, ...]) -> str:
    """SHA-256 of the source files of these imported modules, and of the packages that they are in, read once.

    It is the same wherever the same files are, whatever else was imported. A package of more than `MANY` files is
    taken for a library, of which the module's own file counts.
    """
    found = hashlib.sha256()
    for name in sorted(set(modules)):
        file = _file(sys.modules.get(name))
        if file is None:
            continue
        top = Path(file).parents[name.count(".") + (Path(file).name == "__init__.py")] / name.partition(".")[0]
        files = sorted(islice(top.rglob("*.py"), MANY + 1)) if top.is_dir() else []
        for source in files if 0 < len(files) <= MANY else [Path(file)]:
            with suppress(OSError):
                text = source.read_bytes()
                found.update(f"{name} {source.relative_to(top.parent)} {len(text)}\n".encode() + text)
    return found.hexdigest()


def place(error: BaseException) -> str:
    """` (<file>:<line>)` of the user's code that an error came out of, or nothing where it came out of none."""
    raised = error.__cause__ or error  # an error that became a sentence has the first one as its cause
    own = [(frame, line) for frame, line in traceback.walk_tb(raised.__traceback__) if _is_own(frame)]
    if not own:
        return ""
    frame, line = own[-1]
    file, depth = Path(frame.f_code.co_filename), str(frame.f_globals.get("__name__", "")).count(".")
    return f" ({'/'.join(file.parts[-1 - depth - (file.name == '__init__.py') :])}:{line})"


def _is_own(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename in _files


def take_down() -> None:
    """Takes down what was imported since the last time, by a function that was called too; 0.2 ms beside torch."""
    global _seen
    if not _named:
        return  # nothing of a user's was imported, and what was there before is not known yet
    known, _seen = _seen, set(sys.modules)
    for name in _seen - known:
        file = _file(sys.modules.get(name))
        if file is None or file in _files:
            continue
        if name.partition(".")[0] in _named or not (name in _before or _is_installed(file)):
            _files[file] = _stamp(file)


def _is_installed(file: str) -> bool:
    return file.startswith(_PYTHON) or any(folder in file for folder in _INSTALLED)


def _file(module: object) -> str | None:
    """Where a module is from, without asking it: a lazy one would be imported, or say what it lacks."""
    with suppress(AttributeError):
        file = object.__getattribute__(module, "__dict__").get("__file__")
        return file if isinstance(file, str) else None
    return None


def _stamp(file: str) -> Stamp:
    with suppress(OSError):
        found = os.stat(file)
        return found.st_mtime_ns, found.st_size
    return None
