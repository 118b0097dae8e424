"""Places of data: only below `FEDQ_DATA_DIR`, and told apart from what lay there before."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.errors import BadInput


def inside(base: Path, path: str | Path, setting: str) -> Path:
    """`path` below the folder `base`, all links followed; `BadInput` where that leads out of it.

    `setting` is the key of the job file that gave the path. A job comes over the wire: of the files of a trainer's
    owner it may name those that `FEDQ_DATA_DIR` gives it, and no others.
    """
    try:
        root, found = base.resolve(), (base / path).resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL, a name that is too long, a circle of links
        raise BadInput(
            f"{setting}: {str(path)!r} is no path that can be followed; give one below FEDQ_DATA_DIR"
        ) from None
    if not found.is_relative_to(root):
        raise BadInput(
            f"{setting}: {path} leads out of this trainer's FEDQ_DATA_DIR; put the data below that folder, or let the "
            "setting name another"
        )
    return found


def files_in(folder: Path, base: Path) -> list[Path]:
    """All files in a folder and below, sorted, without those that are hidden or in a hidden folder.

    Links are followed. `BadInput` where one leads out of `base` or in a circle, and where a folder may not be read: its
    files would be missed in silence.
    """
    return sorted(_walk(folder, base))


def _walk(folder: Path, base: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise BadInput(f"{error.filename} cannot be read: {error.strerror}")

    followed = {folder.resolve()}
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not is_litter(name)]
        for name in folders:
            if (link := Path(place, name)).is_symlink():
                target = inside(base, link, "data")
                if target in followed:
                    raise BadInput(f"{link} is a link to a folder that is read already; remove it")
                followed.add(target)
        for name in names:
            if not is_litter(name):
                if (file := Path(place, name)).is_symlink():
                    inside(base, file, "data")
                yield file


def is_litter(name: str) -> bool:
    """True for the name of a file or folder that programs leave behind, and that is nobody's data."""
    return name.startswith(".") or name.lower() in {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}


def contents(files: Sequence[Path], folder: Path) -> str:
    """The SHA-256 digest of files and of their names below `folder`: the same on all machines that have the same."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def stamp(path: Path, base: Path) -> str:
    """Of what `path` is made: another string once a file of it is changed, added, removed or replaced."""
    files = files_in(path, base) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        try:
            found = file.stat()
        except OSError:
            digest.update(f"{file}\0absent\0".encode(errors="surrogateescape"))
        else:
            # A copy may have the time of its original, but not the time of its last change in this place.
            about = f"{file}\0{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0"
            digest.update(about.encode(errors="surrogateescape"))
    return digest.hexdigest()
