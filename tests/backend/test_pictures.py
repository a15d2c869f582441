"""Whatever is a picture is read as the eye sees it; whatever is not is refused with one sentence."""

import contextlib
import io
import random
import struct
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from mega_backend import pictures
from mega_backend.pictures import PictureError, focal_length, read

# Pytest sets aside what filters a module sets when it is imported.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def striped(width: int = 40, height: int = 24) -> np.ndarray:
    """Red left half, blue right half."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2, 0] = 255
    picture[:, width // 2 :, 2] = 255
    return picture


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_usual_formats(kind):
    picture = read(encoded(Image.fromarray(striped()), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert picture.shape == (24, 40, 3) and picture.dtype == np.uint8
    assert np.abs(picture[5, 5].astype(int) - [255, 0, 0]).max() < 6
    assert np.abs(picture[5, 35].astype(int) - [0, 0, 255]).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    upright = Image.fromarray(striped())
    turn_back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(turn_back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read(encoded(stored, "PNG", exif=exif)), striped())


def test_transparency_lies_over_white():
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[:, 2:] = [10, 20, 30, 255]
    for source in (picture, encoded(Image.fromarray(picture))):
        assert np.array_equal(read(source)[0, 0], [255, 255, 255])
        assert np.array_equal(read(source)[0, 3], [10, 20, 30])


def test_sixteen_bit_grey():
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert read(encoded(Image.fromarray(values)))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "CMYK", "YCbCr", "I", "F", "RGBA", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(striped())
    image = image.convert("L").convert("P").convert(mode) if mode == "PA" else image
    if mode == "LAB":
        image = Image.new("LAB", (40, 24))
    picture = read(encoded(image.convert(mode), "TIFF")) if mode not in ("PA", "HSV") else read(striped())
    assert picture.shape == (24, 40, 3) and picture.dtype == np.uint8


def test_palette_with_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert read(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]


def test_one_pixel():
    assert read(encoded(Image.new("RGB", (1, 1), "red"))).shape == (1, 1, 3)


def test_grey_array():
    assert read(np.full((3, 5), 7, np.uint8)).tolist() == np.full((3, 5, 3), 7).tolist()


@pytest.mark.parametrize("array", [np.zeros((3, 5)), np.zeros((3, 5, 2), np.uint8), np.zeros((0, 5, 3), np.uint8)])
def test_arrays_that_are_no_picture(array):
    with pytest.raises(PictureError, match="uint8"):
        read(array)


def test_too_large_is_refused_before_decoding():
    with pytest.raises(PictureError, match=r"too large .*make it smaller"):
        read(encoded(Image.new("1", (2000, 1000))), max_pixels=1_000_000)
    with pytest.raises(PictureError, match="make it smaller"):
        read(np.zeros((10, 10), np.uint8), max_pixels=99)


def test_files_that_are_no_picture(tmp_path: Path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(encoded(Image.effect_noise((200, 200), 90))[:3000])
    (tmp_path / "cut.jpg").write_bytes(encoded(Image.effect_noise((200, 200), 90), "JPEG")[:3000])
    cases = {
        "text.jpg": "is not a picture",
        "empty.png": "is empty",
        "cut.png": "cut short",
        "cut.jpg": "cut short",
        "missing.png": "there is no file",
        ".": "is a folder",
    }
    for name, sentence in cases.items():
        with pytest.raises(PictureError, match=sentence) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damage_is_a_picture_or_a_sentence(kind):
    """Flipped bytes never escape as anything but a PictureError."""
    whole = encoded(Image.fromarray(striped()), kind)
    chance = random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(PictureError):
            assert read(bytes(data), max_pixels=1_000_000).dtype == np.uint8


def test_huge_pictures_are_read_without_pillow_s_warning():
    program = "import sys; from mega_backend import pictures; print(pictures.announced_size(sys.stdin.buffer.read()))"
    arguments = [sys.executable, "-W", "error", "-c", program]
    huge = encoded(Image.new("1", (10_000, 9_500)))
    done = subprocess.run(arguments, input=huge, capture_output=True, check=True, timeout=60)
    assert done.stdout.split() == [b"(10000,", b"9500)"] and done.stderr == b""


def test_reading_on_threads_leaves_the_process_s_warnings_as_they_are():
    before, data = list(warnings.filters), encoded(Image.fromarray(striped()))
    with ThreadPoolExecutor(4) as threads:
        assert all(picture.shape == (24, 40, 3) for picture in threads.map(read, [data] * 200))
    assert warnings.filters == before


def photographed(size: tuple[int, int] = (400, 300), kind: str = "JPEG", **tags: float) -> bytes:
    """A picture file with these EXIF tags of its lens."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base[name]: value for name, value in tags.items()})
    return encoded(Image.new("RGB", size), kind, exif=exif)


@pytest.mark.parametrize("size", [(3600, 2400), (600, 400), (400, 600)])
def test_focal_length_of_a_35_mm_lens_is_that_share_of_the_frame(size):
    assert focal_length(photographed(size, FocalLengthIn35mmFilm=50)) == pytest.approx(max(size) * 50 / 36, rel=1e-3)


def test_focal_length_out_of_the_sensor():
    # 100 pixels a millimetre, taken at twice the size.
    data = photographed((400, 300), FocalLength=8.0, FocalPlaneXResolution=1000.0, FocalPlaneResolutionUnit=3,
                        ExifImageWidth=800, ExifImageHeight=600)  # fmt: skip
    assert focal_length(data) == pytest.approx(400)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"FocalLengthIn35mmFilm": 0},
        {"FocalLengthIn35mmFilm": 60000},
        {"FocalLength": 8.0},
        {"FocalLengthIn35mmFilm": 50, "ExifImageWidth": 400, "ExifImageHeight": 400},
    ],
    ids=["none", "unknown", "absurd", "no sensor", "cropped"],
)
def test_no_focal_length_where_none_can_be_told(tags):
    assert focal_length(photographed(**tags)) is None


def test_focal_length_of_other_things(tmp_path):
    assert focal_length(striped()) is None
    assert focal_length(encoded(Image.fromarray(striped()))) is None
    with pytest.raises(PictureError):
        focal_length(b"no picture")
    with pytest.raises(PictureError, match="no file"):
        focal_length(tmp_path / "none.jpg")
    path = tmp_path / "turned.jpg"
    path.write_bytes(photographed((300, 400), FocalLengthIn35mmFilm=36))
    assert focal_length(path) == pytest.approx(500 * 36 / 43.267, rel=1e-3)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_in_millions_of_pieces_is_refused_before_they_are_looked_at(order, big):
    count = 3_000_000
    tags = [(256, 3, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, count, 8),
            (278, 3, 1, 1), (279, 4, count, 8)]  # fmt: skip
    mark = b"II" if order == "<" else b"MM"
    if big:
        data = mark + struct.pack(order + "HHHQQ", 43, 8, 0, 16, len(tags))
        data += b"".join(struct.pack(order + "HHQQ", *tag) for tag in tags)
    else:
        data = mark + struct.pack(order + "HIH", 42, 8, len(tags))
        data += b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    data += bytes(4 * count)
    with pytest.raises(PictureError, match="this file is a TIFF in far too many pieces"):
        pictures.read(data)
    assert pictures.announced_size(data) is None
    assert pictures.announced_size(data[:100]) is None


def test_the_size_that_a_head_tells():
    assert pictures.announced_size(encoded(Image.new("L", (30, 20)), "TIFF")) == (30, 20)
    assert pictures.announced_size(b"no picture") is None
