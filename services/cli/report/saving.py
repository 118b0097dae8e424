"""Files that a command saves: written atomically, and existing files are kept unless `--force` is given."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import BadInput


def check_target(path: Path, force: bool) -> None:
    """Raises `BadInput` if `path` cannot be written; called before the work for the file begins."""
    if not path.parent.is_dir():
        raise BadInput(f"{path}: there is no directory {path.parent}")
    if path.is_dir():
        raise BadInput(f"{path}: is a directory; name a file")
    if path.exists() and not force:
        raise BadInput(f"{path}: exists already; --force overwrites it")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which replaces `path` once it is complete."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield fresh
        os.replace(fresh, path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
