"""Folders of images as cameras, scanners, notebooks and systems leave them."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from services.trainer.data import images
from services.trainer.data.source import StoredExamples
from shared.errors import BadInput
from shared.job.catalog.data import Images

LEVELS = np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(np.uint16)  # of 16 bits
BYTES = (LEVELS >> 8).astype(np.uint8)


def read(folder: Path, **spec: Any) -> StoredExamples:
    return images.read(folder / "pets", Images(path="pets", **{"size": 16, **spec}), folder)


def save(folder: Path, name: str, image: Image.Image | np.ndarray, **how: Any) -> Path:
    file = folder / "pets" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, **how)
    return file


def pixels(file: Path, grey: bool = True) -> np.ndarray:
    return images.read_image(file, 16, grey)[0]


# --- what is in a file --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_of_16_bits_the_upper_8_are_taken(tmp_path: Path, name: str) -> None:
    """As X-rays have them: they are no blank, and the same as the image of 8 bits."""
    assert np.array_equal(pixels(save(tmp_path, name, LEVELS))[0], BYTES)
    assert np.array_equal(pixels(save(tmp_path, name, LEVELS), grey=False), np.stack([BYTES] * 3))


def test_a_tiff_says_itself_how_many_bits_it_has_and_what_is_white(tmp_path: Path) -> None:
    """0 may be white, and 4095 too."""
    file = save(tmp_path, "a.tif", LEVELS, tiffinfo={images.PHOTOMETRIC: 0})
    assert np.array_equal(pixels(file)[0], 255 - BYTES)

    twelve = (LEVELS >> 4).astype(np.uint16)
    pairs = twelve.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    assert np.array_equal(pixels(_tiff(tmp_path, packed.astype(np.uint8).tobytes(), bits=12))[0], BYTES)


def _tiff(folder: Path, strip: bytes, bits: int) -> Path:
    """A grey TIFF of 16×16 pixels by hand: Pillow reads more kinds than it writes."""
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, len(strip))]
    entries = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in tags
    )
    start = (8 + len(strip)).to_bytes(4, "little")
    body = b"II*\0" + start + strip + len(tags).to_bytes(2, "little") + entries + b"\0\0\0\0"
    file = folder / "pets/twelve.tif"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(body)
    return file


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_of_an_unknown_range_are_refused(tmp_path: Path, dtype: type) -> None:
    """White may be 1, or 4,000, or anything."""
    with pytest.raises(BadInput, match=r"a.tif: its pixels are numbers of 32 bits \(mode [FI]\), whose range nobody"):
        pixels(save(tmp_path, "a.tif", BYTES.astype(dtype)))


def test_colours_that_are_not_read_are_named(tmp_path: Path) -> None:
    """Pillow has no way from LAB to RGB."""
    with pytest.raises(BadInput, match=r"its colours are those of mode LAB, which is not read; save it in RGB"):
        pixels(save(tmp_path, "a.tif", colours("LAB")))


def colours(mode: str) -> Image.Image:
    return Image.fromarray(np.stack([BYTES, BYTES.T, 255 - BYTES], axis=2)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.png"),
        ("RGBA", "a.png"),
        ("P", "a.png"),
        ("L", "a.png"),
        ("1", "a.png"),
        ("LA", "a.png"),
        ("P", "a.gif"),
        ("RGB", "a.bmp"),
        ("CMYK", "a.tif"),
        ("YCbCr", "a.tif"),
        ("RGB", "a.webp"),
        ("RGB", "a.ppm"),
        ("1", "a.pbm"),
    ],
)
def test_any_kind_of_colours_is_what_a_viewer_shows(tmp_path: Path, mode: str, name: str) -> None:
    """Palettes, print's four colours, black and white: all become red, green and blue, or grey."""
    wanted = colours(mode)
    how = {"lossless": True} if name.endswith("webp") else {}
    file = save(tmp_path, name, wanted, **how)

    for grey in (True, False):
        shown = np.asarray(wanted.convert("RGB").convert("L" if grey else "RGB")).reshape(16, 16, -1)
        assert np.abs(pixels(file, grey).transpose(1, 2, 0).astype(int) - shown).max() <= 3


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    """A drawing in black alone would be all black without its transparency."""
    drawing = np.zeros((16, 16, 4), np.uint8)
    drawing[4:8, :, 3] = 255
    wanted = np.where(drawing[..., 3] == 255, 0, 255)
    palette = Image.fromarray(np.where(wanted, 1, 0).astype(np.uint8), mode=None).convert("P")
    palette.putpalette([0, 0, 0, 9, 9, 9])

    assert np.array_equal(pixels(save(tmp_path, "a.png", drawing))[0], wanted)
    assert np.array_equal(pixels(save(tmp_path, "b.png", palette, transparency=1))[0], wanted)
    assert np.array_equal(pixels(save(tmp_path, "c.png", Image.fromarray(drawing).convert("LA")))[0], wanted)


@pytest.mark.parametrize(
    ("orientation", "turned"), [(1, np.array), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, 3))]
)
def test_a_photograph_is_turned_as_its_camera_says(
    tmp_path: Path, orientation: int, turned: Callable[[np.ndarray], np.ndarray]
) -> None:
    """A camera held upright writes rows as if it was not."""
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert np.array_equal(pixels(save(tmp_path, "a.png", BYTES, exif=exif))[0], turned(BYTES))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_several_images_in_one_file_are_refused(tmp_path: Path, name: str) -> None:
    """A stack of slices would lose all but one in silence."""
    others = [Image.fromarray(np.roll(BYTES, place, 0)).convert("RGB") for place in (1, 2)]
    file = save(tmp_path, name, Image.fromarray(BYTES).convert("RGB"), save_all=True, append_images=others)

    with pytest.raises(BadInput, match=rf"{name}: it holds 3 images; save each of them by itself"):
        pixels(file)


def test_a_cameras_photograph_with_a_preview_is_one_image(tmp_path: Path) -> None:
    """Phones write such files, and call them .jpg."""
    file = save(tmp_path, "a.jpg", colours("RGB"), format="MPO", save_all=True, append_images=[colours("RGB")])

    with Image.open(file) as image:
        assert image.format == "MPO"
    assert pixels(file, grey=False).shape == (3, 16, 16)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.gif", "a.webp", "a.bmp", "a.ppm"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    """Half a picture is grey below, which Pillow would not mind if it was asked not to."""
    file = save(tmp_path, name, colours("RGB").resize((64, 64)))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])

    with pytest.raises(BadInput, match=rf"{name} is no image that can be read: it is"):
        pixels(file)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM"]), st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, form: str, data: st.DataObject) -> None:
    """Whatever bytes are wrong in it, by a sentence that quotes none of them."""
    buffer = io.BytesIO()
    colours("RGB").save(buffer, form)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "a.png"
    file.write_bytes(content)
    found, sentence = None, ""
    try:
        found = pixels(file)
    except BadInput as refused:
        sentence = str(refused)

    assert (found is None) == sentence.startswith(str(file))
    assert found is None or found.shape == (1, 16, 16)


# --- what is in a folder ------------------------------------------------------------------------


def classes(folder: Path, each: int = 3) -> None:
    for place in range(each):
        save(folder, f"cat/{place}.png", BYTES)
        save(folder, f"dog/{place}.png", BYTES.T.copy())


def test_hidden_files_are_no_examples(tmp_path: Path) -> None:
    """Copies that a notebook keeps would be in the test set too; macOS leaves a file beside each in an archive."""
    classes(tmp_path)
    for name in ("cat/.ipynb_checkpoints/0-checkpoint.png", "cat/a/.b/c/d.png", "__MACOSX/cat/0.png", ".cache/x.png"):
        save(tmp_path, name, BYTES)
    for name in ("cat/._0.png", "dog/Thumbs.db", "dog/.DS_Store", "desktop.ini"):
        (tmp_path / "pets" / name).write_bytes(b"?")
    found = read(tmp_path)

    assert (found.names, found.y.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])


def test_files_further_below_and_links_are_examples_of_their_class(tmp_path: Path) -> None:
    """A folder of links to folders is a data set too, as long as none leads out."""
    classes(tmp_path)
    save(tmp_path, "../store/bird/deep/er/0.png", BYTES)
    (tmp_path / "pets/bird").symlink_to(tmp_path / "store/bird")
    (tmp_path / "pets/cat/9.png").symlink_to(tmp_path / "store/bird/deep/er/0.png")
    found = read(tmp_path)

    assert (found.names, found.y.tolist()) == (("bird", "cat", "dog"), [0, 1, 1, 1, 1, 2, 2, 2])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda pets: (pets / "cat/scan.dcm").touch(), r"cat/scan.dcm is of a kind that is not read; save it as PNG"),
        (lambda pets: (pets / "cat/photo.HEIC").touch(), r"cat/photo.HEIC is of a kind that is not read"),
        (lambda pets: (pets / "0.png").touch(), r"pets/0.png lies beside the folders of the classes; move it"),
        (lambda pets: (pets / "cat/out.png").symlink_to("/etc/passwd"), r"cat/out.png leads out of this trainer's"),
        (lambda pets: (pets / "etc").symlink_to("/etc"), r"pets/etc leads out of this trainer's FEDQ_DATA_DIR"),
        (lambda pets: (pets / "cat/round").symlink_to(pets), r"cat/round is a link to a folder that is read already"),
        (lambda pets: (pets / "eel").mkdir(), r"there are no images in eel, and each folder is a class"),
        (lambda pets: (pets / "cat/0.png").write_bytes(b"\x89PNG\r\n\x1a\n"), r"cat/0.png is no image that can be"),
        (
            lambda pets: (pets / "cat/pipe.png").unlink(missing_ok=True) or os.mkfifo(pets / "cat/pipe.png"),
            "is no file",
        ),
    ],
)
def test_what_would_be_lost_or_lead_elsewhere_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], Any], sentence: str
) -> None:
    """In silence it would be a smaller data set, or another."""
    classes(tmp_path)
    make(tmp_path / "pets")

    with pytest.raises(BadInput, match=sentence):
        read(tmp_path)


def test_the_folder_above_training_and_test_set_is_refused(tmp_path: Path) -> None:
    """A model would learn to tell the training set from the test set."""
    save(tmp_path, "train/cat/0.png", BYTES)
    save(tmp_path, "val/cat/0.png", BYTES)

    with pytest.raises(
        BadInput, match=r"pets holds train, val, and each folder would be a class; let data.path name one"
    ):
        read(tmp_path)


def test_images_of_16_bits_that_use_12_of_them_are_refused(tmp_path: Path) -> None:
    """They would have 16 shades, all of them nearly black; one that is dark is nothing unusual."""
    classes(tmp_path)
    for place in range(2):
        save(tmp_path, f"cat/{place}.png", (LEVELS >> 4).astype(np.uint16))
    with pytest.raises(
        BadInput, match=r"its images of 16 bits hold no value above 40\d\d, so that they would be nearly"
    ):
        read(tmp_path)
    save(tmp_path, "dog/9.png", LEVELS)

    assert len(read(tmp_path).y) == 7


def test_colours_of_16_bits_that_use_12_of_them_are_refused(tmp_path: Path) -> None:
    """Of these Pillow drops the lower bits by itself."""
    for place in range(2):
        _colours(tmp_path / f"pets/cat/{place}.png", LEVELS >> 4)
        _colours(tmp_path / f"pets/dog/{place}.png", LEVELS >> 4)
    with pytest.raises(BadInput, match="its images of 16 bits hold no value above 4095, so that they would be nearly"):
        read(tmp_path)
    _colours(tmp_path / "pets/dog/9.png", LEVELS)

    assert np.array_equal(pixels(tmp_path / "pets/dog/9.png", grey=False), np.stack([BYTES] * 3))
    assert len(read(tmp_path).y) == 5


def _colours(file: Path, levels: np.ndarray) -> None:
    """A PNG of three equal channels of 16 bits, by hand: Pillow writes none."""
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in levels)
    about = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, 2, 0, 0, 0)
    parts = [(b"IHDR", about), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in parts
        )
    )


def test_folders_whose_names_look_the_same_are_one_class(tmp_path: Path) -> None:
    """One system writes é as one character, another as two; blanks around a label do not count in a table either."""
    for folder in ("caf\u00e9", "cafe\u0301", "tea", " tea "):
        save(tmp_path, f"{folder}/a.png", BYTES)
    found = read(tmp_path)

    assert (found.names, sorted(found.y.tolist())) == (("café", "tea"), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        (("cat", "Cat"), "the folders (cat and Cat|Cat and cat) differ in capitals or blanks alone; join them, or"),
        (("a cat", "a  cat"), "differ in capitals or blanks alone; join them, or declare both"),
        (("cat", "dog\n"), None),
        (("cat", "d\to"), r"the folder 'd\\to' has characters that cannot be shown; rename it"),
        (("cat", "\udcff"), r"the folder '\\udcff' has characters that cannot be shown; rename it"),
    ],
)
def test_a_folder_that_is_no_clear_class_is_refused(
    tmp_path: Path, folders: tuple[str, str], sentence: str | None
) -> None:
    """A class is a word in records and tables, and what is spelled twice is two classes."""
    for folder in folders:
        save(tmp_path, f"{folder}/a.png", BYTES)
    if sentence is None:
        assert read(tmp_path).names == ("cat", "dog")
        return
    with pytest.raises(BadInput, match=sentence):
        read(tmp_path)


def test_both_spellings_of_a_class_may_be_declared_and_letters_differ_in_size(tmp_path: Path) -> None:
    """As FEMNIST's classes do."""
    for folder in ("a", "A", "cat", "Cat"):
        save(tmp_path, f"{folder}/a.png", BYTES)

    assert read(tmp_path, classes=("a", "A", "cat", "Cat")).names == ("a", "A", "cat", "Cat")


def test_an_image_of_which_white_would_leave_nothing_is_refused(tmp_path: Path) -> None:
    """White signs would all be the same blank square; a white page that is not transparent is what it is."""
    sign = Image.merge("LA", (Image.new("L", (16, 16), 255), Image.fromarray(BYTES)))
    for image in (sign, Image.new("RGBA", (16, 16), (9, 9, 9, 0))):
        with pytest.raises(BadInput, match=r"a\.png: it is white, or nothing, on a transparent ground"):
            pixels(save(tmp_path, "a.png", image))

    assert pixels(save(tmp_path, "a.png", Image.new("RGBA", (16, 16), "white"))).min() == 255


@pytest.mark.parametrize("ending", ["apng", "dib", "ico", "jpx", "NII", "arw"])
def test_an_image_of_another_kind_is_not_left_out_in_silence(tmp_path: Path, ending: str) -> None:
    """Its class would lack it."""
    save(tmp_path, "a/a.png", BYTES)
    (tmp_path / "pets" / "a" / f"b.{ending}").write_bytes(b"")
    with pytest.raises(BadInput, match=f"b.{ending} is of a kind that is not read"):
        read(tmp_path)
