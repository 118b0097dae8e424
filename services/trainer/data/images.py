"""Images in a folder for each class, as torchvision's ImageFolder has them, each file read by Pillow alone."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import (
    StoredExamples,
    alike,
    existing,
    files_in,
    is_litter,
    pixels,
    refuse_undeclared,
    some,
)
from shared.errors import BadInput
from shared.job.catalog.data import Images

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
WHITE = 65535  #: value of white in 16 bits
DARK = 4096  #: 16-bit images without a value from here on are of 12 bits, or fewer
BITS, PHOTOMETRIC = 258, 262  #: tags of TIFF


class _Unfit(Exception):
    """An image that can be read and does not say how bright its pixels are, or which one it is."""


def read_image(file: Path, size: int, grey: bool) -> tuple[npt.NDArray[np.uint8], int]:
    """The bytes (channels, size, size) of an image, and the highest value of one that has 16 bits (else 0).

    It is turned as its EXIF says and laid on white where it is transparent. Of 16 bits the upper 8 are taken; other
    numbers that are no bytes have no known range, and are refused, as are several images in one file. `BadInput` says
    why a file cannot be read, in words that quote nothing of it.
    """
    if not file.is_file():
        raise BadInput(f"{file} is no file, or a link to none; remove it")
    # Imported here: other data sets do not pay for Pillow.
    pillow, operations = (importlib.import_module(f"PIL.{name}") for name in ("Image", "ImageOps"))
    try:
        with pillow.open(file, formats=FORMATS) as image:
            # MPO is a camera's photo, with a preview in the same file.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise _Unfit(f"it holds {image.n_frames} images; save each of them by itself")
            # Read now: Pillow forgets the tiles when it decodes the image.
            is_wide = any(";16" in str(tile[3]) for tile in image.tile)
            flat, highest = _of_bytes(operations.exif_transpose(image), image, pillow)
            if is_wide and not image.mode.startswith("I"):  # Pillow gives only the upper 8 bits of 16-bit colours
                highest = 256 * max(most for _, most in flat.convert("RGB").getextrema()) + 255
            scaled = flat.convert("L" if grey else "RGB").resize((size, size), pillow.Resampling.BILINEAR)
    except _Unfit as unfit:
        raise BadInput(f"{file}: {unfit}") from None
    except Exception as error:  # each format of Pillow fails with its own kinds of errors
        raise BadInput(f"{file} is no image that can be read: {_image_trouble(error)}") from error
    found = np.asarray(scaled, dtype=np.uint8).reshape(size, size, -1)
    return found.transpose(2, 0, 1), highest


def _of_bytes(image: Any, opened: Any, pillow: Any) -> tuple[Any, int]:
    """The image with a byte for each channel and without transparency, and the highest value of 16 bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PPM"):  # scaled to 16 bits by Pillow
        tags = getattr(opened, "tag_v2", {})
        bits = max(tags.get(BITS, (16,)))
        values = np.asarray(image).astype(np.int64)
        if tags.get(PHOTOMETRIC, 1) == 0:
            values = 2**bits - 1 - values  # in this photometric kind 0 is white
        return pillow.fromarray((values >> (bits - 8)).astype(np.uint8)), int(values.max()) << (16 - bits)
    if image.mode in ("I", "F"):
        raise _Unfit(
            f"its pixels are numbers of 32 bits (mode {image.mode}), whose range nobody knows; save it with 16 or 8"
        )
    if image.mode == "LAB":
        raise _Unfit("its colours are those of mode LAB, which is not read; save it in RGB")
    if not image.has_transparency_data:
        return image, 0
    white = pillow.new("RGBA", image.size, "white")
    clear = image.convert("RGBA")
    white.alpha_composite(clear)
    if white.getextrema() == ((255, 255),) * 4 and clear.getextrema()[3] != (255, 255):
        raise _Unfit("it is white, or nothing, on a transparent ground, and is laid on white; give it another ground")
    return white, 0


def _image_trouble(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    match type(error).__name__:
        case "UnidentifiedImageError":
            return "cannot identify its format"
        case "DecompressionBombError":
            return "it has too many pixels"
    return "it is cut off" if "truncated" in str(error).lower() else f"it is damaged ({type(error).__name__})"


ENDINGS = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"}
ENDINGS |= {".webp"}
#: What holds images too, but is not read: to leave it out in silence would lose examples.
UNREAD = {".apng", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dib", ".dng", ".exr", ".hdr", ".heic", ".heif"}
UNREAD |= {".ico", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".jxr", ".mha", ".nef", ".nii", ".npy", ".npz", ".nrrd"}
UNREAD |= {".orf", ".pam", ".pcx", ".pfm", ".psd", ".raf", ".rw2", ".sgi", ".svg", ".tga", ".xbm"}
SPLITS = {"test", "testing", "train", "training", "val", "valid", "validation"}


def read(folder: Path, spec: Images, base: Path) -> StoredExamples:
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
        x[place], most = read_image(file, spec.size, spec.grey)
        highest = max(highest, most)
    if 0 < highest < DARK:
        raise BadInput(
            f"{folder}: its images of 16 bits hold no value above {highest}, so that they would be nearly black; "
            f"multiply them, until white is {WHITE}"
        )
    places = {name: place for place, name in enumerate(names)}
    y = np.array([places[label] for _, label in files], dtype=np.int64)
    return StoredExamples(
        x=x, y=y, shape=x.shape[1:], names=names, prepare=pixels, files=tuple(file for file, _ in files)
    )


def _label(name: str) -> str:
    """The class for which a folder stands: names that look the same are the same, as in a table."""
    return normalize("NFC", name.strip())


def _refuse_unclear(folder: Path, names: Sequence[str]) -> None:
    """`BadInput` if a class cannot be shown, or two may be one spelled twice, unless it is one letter."""
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
    """True if a file is an example; `BadInput` if it is an image that would be lost."""
    ending = file.suffix.lower()
    if ending in UNREAD:
        raise BadInput(f"{file} is of a kind that is not read; save it as PNG, or move it elsewhere")
    if ending in ENDINGS and file.parent == folder:
        raise BadInput(f"{file} lies beside the folders of the classes; move it into one of them, or elsewhere")
    return ending in ENDINGS
