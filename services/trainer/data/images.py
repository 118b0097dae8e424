"""Images in a folder for each class, as torchvision's ImageFolder has them; read by Pillow alone."""

import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import Source, existing, pixels, refuse_undeclared
from shared.catalog.data import Images
from shared.errors import BadInput

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read(folder: Path, spec: Images) -> Source:
    """Images (channels, size, size) with values in [0, 1]; classes are `spec.classes`, else the folders by name.

    Each image, in its own folder or further below, is scaled to a square of `spec.size` pixels and kept as bytes.
    """
    existing(folder, "images", "a folder for each class")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [
        (file, place.name)
        for place in folders
        for file in sorted(place.rglob("*"))
        if file.suffix.lower() in ENDINGS and file.is_file()
    ]
    found = Counter(label for _, label in files)
    if spec.classes is not None:
        refuse_undeclared(folder, found, spec.classes)
    elif empty := [place.name for place in folders if place.name not in found]:
        raise BadInput(f"{folder.absolute()}: there are no images in {', '.join(empty)}, and each folder is a class")
    if not files:
        raise BadInput(f"{folder.absolute()} has no folders; each class has one of its name with its images in it")
    x = np.empty((len(files), 1 if spec.grey else 3, spec.size, spec.size), dtype=np.uint8)
    for place, (file, _) in enumerate(files):
        x[place] = _image(file, spec.size, spec.grey)
    names = spec.classes or tuple(place.name for place in folders)
    places = {name: place for place, name in enumerate(names)}
    y = np.array([places[label] for _, label in files], dtype=np.int64)
    return Source(x=x, y=y, shape=x.shape[1:], names=names, prepare=pixels)


def _image(file: Path, size: int, grey: bool) -> npt.NDArray[np.uint8]:
    """The bytes (channels, size, size) of one image."""
    pillow = importlib.import_module("PIL.Image")  # only a job with images pays for it
    try:
        with pillow.open(file) as image:
            scaled = image.convert("L" if grey else "RGB").resize((size, size), pillow.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise BadInput(f"{file.absolute()} is no image that can be read: {error}") from error
    found = np.asarray(scaled, dtype=np.uint8).reshape(size, size, -1)
    return found.transpose(2, 0, 1)
