"""The user's modules that this process has imported, and the check that their files are unchanged since.

Python imports a module once: only processes that start after an edit run the edited code.
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

MANY = 500  #: source files of a package, at most, that are read for its digest

#: Folders of Python itself: a module from there is not the user's, unless a job names its package.
_PYTHON = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
#: Folders of installed packages, for all users, for one, or for another environment that this one sees: their modules
#: are not the user's either.
_INSTALLED = tuple(f"{os.sep}{folder}{os.sep}" for folder in ("site-packages", "dist-packages"))

Stamp = tuple[int, int] | None  # modification time and size, which change when a file is written; None if it is gone

_before: frozenset[str] = frozenset()  # the modules that were imported before any of the user's
_named: set[str] = set()  # the packages that jobs named
_files: dict[str, Stamp] = {}  # the files of the user's modules, with their stamps at import
_seen: set[str] = set()  # modules already examined: torch alone has thousands, and every task examines the new ones


@contextmanager
def importing(package: str) -> Iterator[None]:
    """Records the files that the block imports from a job's package, directly or through other modules."""
    global _before  # noqa: PLW0603 - imports belong to the whole process
    _before = _before if _named else frozenset(sys.modules)
    if package not in _named:
        _named.add(package)
        _seen.clear()  # a module that belonged to no job's package may belong to this one
    try:
        yield
    finally:
        take_down()


def changed() -> list[str]:
    """The files of the user's modules that have changed since they were recorded."""
    # The files are copied to a list, because another thread of an aggregator may be importing meanwhile.
    return sorted(file for file, stamp in list(_files.items()) if _stamp(file) != stamp)


@functools.cache
def digest(modules: tuple[str, ...]) -> str:
    """SHA-256 of the source files of these imported modules and of their packages, which are read once.

    The same files give the same digest anywhere, whatever else was imported. A package of more than `MANY` files is
    treated as a library: only the module's own file counts.
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
    """The place in the user's code that raised an error, as ` (<file>:<line>)`; empty if other code raised it."""
    raised = error.__cause__ or error  # an error that was turned into a sentence has the original as its cause
    own = [(frame, line) for frame, line in traceback.walk_tb(raised.__traceback__) if _is_own(frame)]
    if not own:
        return ""
    frame, line = own[-1]
    file, depth = Path(frame.f_code.co_filename), str(frame.f_globals.get("__name__", "")).count(".")
    return f" ({'/'.join(file.parts[-1 - depth - (file.name == '__init__.py') :])}:{line})"


def _is_own(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename in _files


def take_down() -> None:
    """Records modules imported since the last call, also those imported inside functions; 0.2 ms with torch loaded."""
    global _seen
    if not _named:
        return  # no user's module was imported yet, so `_before` is not known
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
    """The file of a module, read without `getattr`: a lazy module would be imported by it, or raise an error."""
    with suppress(AttributeError):
        file = object.__getattribute__(module, "__dict__").get("__file__")
        return file if isinstance(file, str) else None
    return None


def _stamp(file: str) -> Stamp:
    with suppress(OSError):
        found = os.stat(file)
        return found.st_mtime_ns, found.st_size
    return None
