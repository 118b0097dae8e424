"""One file of an image as a square of bytes, read by Pillow alone."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import BadInput

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
WHITE = 65535  #: of 16 bits
DARK = 4096  #: 16-bit images without a value from here on are of 12 bits, or fewer
BITS, PHOTOMETRIC = 258, 262  #: tags of TIFF


class _Unfit(Exception):
    """An image that can be read and does not say how bright its pixels are, or which one it is."""


def read(file: Path, size: int, grey: bool) -> tuple[npt.NDArray[np.uint8], int]:
    """The bytes (channels, size, size) of an image, and the highest value of one that has 16 bits (else 0).

    It is turned as its EXIF says and laid on white where it is transparent. Of 16 bits the upper 8 are taken; other
    numbers that are no bytes have no known range, and are refused, as are several images in one file. `BadInput` says
    why a file cannot be read, in words that quote nothing of it.
    """
    if not file.is_file():
        raise BadInput(f"{file} is no file, or a link to none; remove it")
    pillow, operations = (
        importlib.import_module(f"PIL.{name}") for name in ("Image", "ImageOps")
    )  # others pay nothing
    try:
        with pillow.open(file, formats=FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's, with a preview beside it
                raise _Unfit(f"it holds {image.n_frames} images; save each of them by itself")
            is_wide = any(";16" in str(tile[3]) for tile in image.tile)  # known until it is decoded
            flat, highest = _of_bytes(operations.exif_transpose(image), image, pillow)
            if is_wide and not image.mode.startswith("I"):  # of colours Pillow gives the upper 8 bits alone
                highest = 256 * max(most for _, most in flat.convert("RGB").getextrema()) + 255
            scaled = flat.convert("L" if grey else "RGB").resize((size, size), pillow.Resampling.BILINEAR)
    except _Unfit as unfit:
        raise BadInput(f"{file}: {unfit}") from None
    except Exception as error:  # each format has its own ways to fail
        raise BadInput(f"{file} is no image that can be read: {_words(error)}") from error
    found = np.asarray(scaled, dtype=np.uint8).reshape(size, size, -1)
    return found.transpose(2, 0, 1), highest


def _of_bytes(image: Any, opened: Any, pillow: Any) -> tuple[Any, int]:
    """The image with a byte for each channel and without transparency, and the highest value of 16 bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PPM"):  # scaled to 16 bits by Pillow
        tags = getattr(opened, "tag_v2", {})
        bits = max(tags.get(BITS, (16,)))
        values = np.asarray(image).astype(np.int64)
        if tags.get(PHOTOMETRIC, 1) == 0:
            values = 2**bits - 1 - values  # 0 is white
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


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    match type(error).__name__:
        case "UnidentifiedImageError":
            return "cannot identify its format"
        case "DecompressionBombError":
            return "it has too many pixels"
    return "it is cut off" if "truncated" in str(error).lower() else f"it is damaged ({type(error).__name__})"
