"""Reading pictures: whatever an artist drags in becomes RGB uint8, or one clear sentence says why not."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Source = str | os.PathLike | bytes | np.ndarray
"""A path, the bytes of a picture file, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8."""
MAX_PIXELS = 120_000_000
"""Larger pictures are refused before they are decoded: they would need gigabytes of memory."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow reads more; some of that starts other programs or has seen little testing against hostile files."""

MAX_SCANS = 200
"""Scans of a JPEG; usual ones have ten at most, and a small file of thousands keeps a decoder busy for minutes."""
MAX_SCANNED = 1_500_000_000
"""Pixels times scans of a JPEG: some ten seconds of decoding."""
MAX_STRIPS = 500_000
"""Pieces of a TIFF; a file of millions of single pixels would keep a decoder busy for minutes, and fill the memory."""

FRAME_DIAGONAL = 43.267
"""Millimetres: of the 36 × 24 mm frame that lenses are compared on."""
CROPPED = 1.03
"""A picture whose sides' ratio differs more than so from what EXIF says was cropped."""
BELIEVABLE = (0.25, 40.0)
"""Focal lengths over the picture's longer side: from a fisheye's to the longest telephoto's."""
_PIECES = (273, 324)
"""TIFF's StripOffsets and TileOffsets."""
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, KeyError, IndexError)
"""What Pillow's readers raise on damaged data."""


# Pillow warns about huge pictures and odd metadata; the size is checked here. Once and for all, because filters belong
# to the process: pictures are read on several threads, and `catch_warnings` on one would undo that of another.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PictureError(ValueError):
    """A picture that cannot be used. The message is one sentence for the user."""


def read(source: Source, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a picture as the eye sees it: upright, opaque, in colour.

    Args:
        source: see `Source`.
        max_pixels: refuse pictures with more pixels than this.

    Returns:
        (H, W, 3) uint8 RGB. EXIF rotation is applied, transparency composited over white, 16-bit samples reduced to 8,
        and of an animation the first frame taken.

    Raises:
        PictureError: missing, folder, empty, no picture, damaged, or too large.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = "this file", bytes(source)
    else:
        path = Path(source)
        name, data = f"'{path}'", _read_file(path)
    if not data:
        raise PictureError(f"{name} is empty: choose a picture file")
    return _decode(data, name, max_pixels)


def announced_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the head of a picture file tells, nothing decoded; None where it is no picture."""
    try:
        with _opened(data) as image:
            return image.size
    except (UnidentifiedImageError, Image.DecompressionBombError, *_BROKEN):  # a PictureError is a ValueError
        return None


def focal_length(source: Source) -> float | None:
    """The focal length in pixels that a picture file's EXIF data tell, or None where they do not.

    Out of the 35 mm equivalent, which compares diagonals (that of a 36 × 24 mm frame: 43.27 mm), or the lens's own and
    the sensor's pixels per length. A picture whose EXIF size has another shape was cropped: its angle is unknown.

    Raises:
        PictureError: missing, folder, empty or no picture, as for `read`.
    """
    if isinstance(source, np.ndarray):
        return None
    data = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else _read_file(Path(source))
    try:
        with _opened(data) as image:
            size, exif = image.size, image.getexif().get_ifd(ExifTags.IFD.Exif)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise PictureError("this is not a picture: JPEG, PNG, WebP, TIFF, BMP and GIF can be read") from None
    except _BROKEN:
        return None  # What `read` makes of the file is its matter; damaged EXIF data tell nothing.

    def number(tag: ExifTags.Base) -> float:
        try:
            value = float(exif.get(tag, 0))
        except (TypeError, ValueError, ZeroDivisionError):
            return 0.0
        return value if np.isfinite(value) and value > 0 else 0.0

    taken = (number(ExifTags.Base.ExifImageWidth), number(ExifTags.Base.ExifImageHeight))
    if all(taken):
        shapes = sorted((max(taken) / min(taken), max(size) / min(size)))
        if shapes[1] > CROPPED * shapes[0]:
            return None
    equivalent = number(ExifTags.Base.FocalLengthIn35mmFilm)
    pixels = equivalent / FRAME_DIAGONAL * float(np.hypot(*size))
    if not pixels:
        unit = {2: 25.4, 3: 10.0, 4: 1.0}.get(int(number(ExifTags.Base.FocalPlaneResolutionUnit)) or 2, 0.0)
        density = number(ExifTags.Base.FocalPlaneXResolution)
        scale = max(size) / max(taken) if all(taken) else 1.0
        pixels = number(ExifTags.Base.FocalLength) * density / unit * scale if unit else 0.0
    low, high = (bound * max(size) for bound in BELIEVABLE)
    return pixels if low <= pixels <= high else None


def _read_file(path: Path) -> bytes:
    if path.is_dir():
        raise PictureError(f"'{path}' is a folder: choose a picture file in it")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PictureError(f"there is no file '{path}': check its name") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PictureError(f"'{path}' cannot be opened: {reason}") from error


def _opened(data: bytes) -> Image.Image:
    """The picture of a file's bytes, not decoded yet. Raises what Pillow does, or PictureError (without a name)."""
    if _strips(data) > MAX_STRIPS:
        raise PictureError("is a TIFF in far too many pieces: save it again as an ordinary one")
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _strips(data: bytes) -> int:
    """In how many strips or tiles a TIFF says that its first picture lies; 0 for other files."""
    if data[:2] not in (b"II", b"MM") or not {42, 43} & set(data[2:4]):
        return 0
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    entry = struct.Struct(order + ("HHQQ" if big else "HHII"))
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    except (struct.error, OverflowError):
        return 0
    start = at + (8 if big else 2)
    count = min(count, (len(data) - start) // entry.size)
    entries = entry.iter_unpack(data[start : start + count * entry.size])
    return max((length for tag, _, length, _ in entries if tag in _PIECES), default=0)


def _decode(data: bytes, name: str, max_pixels: int) -> np.ndarray:
    try:
        image = _opened(data)
    except PictureError as error:
        raise PictureError(f"{name} {error}") from None
    except UnidentifiedImageError:
        raise PictureError(f"{name} is not a picture: JPEG, PNG, WebP, TIFF, BMP and GIF can be read") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{name} has far more than {max_pixels / 1e6:.0f} megapixels: make it smaller") from None
    except _BROKEN as error:
        raise PictureError(f"{name} is damaged and cannot be read ({error}): save it again") from error
    width, height = image.size
    if width * height > max_pixels:
        megapixels = f"{width * height / 1e6:.0f} megapixels, more than {max_pixels / 1e6:.0f}"
        raise PictureError(f"{name} is too large ({width} × {height}, {megapixels}): make it smaller")
    scans = data.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 1
    if scans > MAX_SCANS or scans * width * height > MAX_SCANNED:
        raise PictureError(f"{name} is a JPEG of far too many scans: save it again as an ordinary one")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except _BROKEN as error:
        raise PictureError(f"{name} is damaged or cut short ({error}): save or download it again") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow image as (H, W, 3) uint8, transparency over white."""
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow hands it out as "I;16*", or as 32-bit "I".
        grey = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        grey = np.nan_to_num(np.asarray(image))
        with np.errstate(over="ignore"):  # far below black is black
            grey = grey * 255 if grey.max(initial=0) <= 1 else grey
        image = Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _from_array(array: np.ndarray, max_pixels: int) -> np.ndarray:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or array.size == 0:
        raise PictureError(
            f"an array given as a picture must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), "
            f"not {array.dtype} of shape {array.shape}"
        )
    if array.shape[0] * array.shape[1] > max_pixels:
        raise PictureError(f"the picture has more than {max_pixels / 1e6:.0f} megapixels: make it smaller")
    return _to_rgb(Image.fromarray(array))
