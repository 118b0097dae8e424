"""Files that a command saves: whole or not at all, and what is there stays unless it is to be overwritten."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import BadInput


def check_target(path: Path, force: bool) -> None:
    """`BadInput` where `path` cannot be a new file; asked before any work is done for it."""
    if not path.parent.is_dir():
        raise BadInput(f"{path}: there is no directory {path.parent}")
    if path.is_dir():
        raise BadInput(f"{path}: is a directory; name a file")
    if path.exists() and not force:
        raise BadInput(f"{path}: exists already; --force overwrites it")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when it is whole."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield fresh
        os.replace(fresh, path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
