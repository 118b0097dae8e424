"""Images in a folder for each class, as torchvision's ImageFolder has them."""

from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np

from services.trainer.data import picture
from services.trainer.data.place import files_in, is_litter
from services.trainer.data.source import Source, alike, existing, pixels, refuse_undeclared, some
from shared.errors import BadInput
from shared.job.catalog.data import Images

ENDINGS = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"}
ENDINGS |= {".webp"}
#: What holds images too, but is not read: to leave it out in silence would lose examples.
UNREAD = {".apng", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dib", ".dng", ".exr", ".hdr", ".heic", ".heif"}
UNREAD |= {".ico", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".jxr", ".mha", ".nef", ".nii", ".npy", ".npz", ".nrrd"}
UNREAD |= {".orf", ".pam", ".pcx", ".pfm", ".psd", ".raf", ".rw2", ".sgi", ".svg", ".tga", ".xbm"}
SPLITS = {"test", "testing", "train", "training", "val", "valid", "validation"}


def read(folder: Path, spec: Images, base: Path) -> Source:
    """Images (channels, size, size) with values in [0, 1]; classes are `spec.classes`, else the folders by name.

    Each image, in its own folder or further below, is scaled to a square of `spec.size` pixels and kept as bytes.
    Hidden files are left out, and files that are no images by their name.
    """
    existing(folder, "images", "a folder for each class")
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder; it has a folder for each class")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name))
    if folders and {path.name.lower() for path in folders} <= SPLITS:
        raise BadInput(
            f"{folder} holds {some([path.name for path in folders])}, and each folder would be a class; let data.path "
            "name one of them"
        )
    files = [
        (file, _label(file.relative_to(folder).parts[0])) for file in files_in(folder, base) if _is_image(file, folder)
    ]
    found = {label for _, label in files}
    names = spec.classes or tuple(sorted({_label(path.name) for path in folders}))
    if spec.classes is None:
        _refuse_unclear(folder, names)
    if spec.classes is not None:
        refuse_undeclared(folder, found, spec.classes)
    elif empty := [name for name in names if name not in found]:
        raise BadInput(f"{folder}: there are no images in {some(empty)}, and each folder is a class")
    if not files:
        raise BadInput(f"{folder} has no folders; each class has one of its name with its images in it")
    x = np.empty((len(files), 1 if spec.grey else 3, spec.size, spec.size), dtype=np.uint8)
    highest = 0
    for place, (file, _) in enumerate(files):
        x[place], most = picture.read(file, spec.size, spec.grey)
        highest = max(highest, most)
    if 0 < highest < picture.DARK:
        raise BadInput(
            f"{folder}: its images of 16 bits hold no value above {highest}, so that they would be nearly black; "
            f"multiply them, until white is {picture.WHITE}"
        )
    places = {name: place for place, name in enumerate(names)}
    y = np.array([places[label] for _, label in files], dtype=np.int64)
    return Source(x=x, y=y, shape=x.shape[1:], names=names, prepare=pixels, files=tuple(file for file, _ in files))


def _label(name: str) -> str:
    """The class for which a folder stands: names that look the same are the same, as in a table."""
    return normalize("NFC", name.strip())


def _refuse_unclear(folder: Path, names: Sequence[str]) -> None:
    """`BadInput` where a class cannot be shown, or two may be one spelled twice, unless it is one letter."""
    seen: dict[str, str] = {}
    for name in names:
        if not name.isprintable():
            raise BadInput(f"{folder}: the folder {name!a} has characters that cannot be shown; rename it")
        if len(name) > 1 and seen.setdefault(alike(name), name) != name:
            raise BadInput(
                f"{folder}: the folders {seen[alike(name)]} and {name} differ in capitals or blanks alone; join "
                "them, or declare both in data.classes"
            )


def _is_image(file: Path, folder: Path) -> bool:
    """True where a file is an example; `BadInput` where it is an image that would be lost."""
    ending = file.suffix.lower()
    if ending in UNREAD:
        raise BadInput(f"{file} is of a kind that is not read; save it as PNG, or move it elsewhere")
    if ending in ENDINGS and file.parent == folder:
        raise BadInput(f"{file} lies beside the folders of the classes; move it into one of them, or elsewhere")
    return ending in ENDINGS
