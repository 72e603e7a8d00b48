"""Image files in: any picture to 28x28 grey."""

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vaecli.errors import DataError
from vaecli.files import open_regular, reason

Pixels = npt.NDArray[np.uint8]

SIDE = 28
MIN_SIDE = 4
# The decoders that a stranger's file may reach, whatever its suffix says: Pillow knows 40 more, one
# of which (EPS) hands the file to Ghostscript, a whole programming language.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_BYTES = 256 * 2**20  # of an image file
MAX_PIXELS = 35_000_000  # A4 at 600 dpi; a picture takes 4 bytes a pixel while it is read
# Formats and decoders for which a pixel costs more or less: WebP's takes twice the memory, two are in
# Python, and a JPEG, maybe from a telephone with 50 million, is decoded at a part of its size.
_COSTS = {"WEBP": 2, "bmp_rle": 20, "ppm_plain": 20, "JPEG": 0.5, "MPO": 0.5, "jpeg": 0.5}
MAX_SIDE = 2**16
MAX_SCANS = 40  # of a progressive JPEG, which has ten or so; one of 60 bytes can pass over all pixels
# Of a JPEG: those that begin a segment, whose length follows, and the end.
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_END, _SCAN = b"\xd9", b"\xda"
_LARGE = 1024  # pixels; a picture of twice that is first averaged down
_READING = threading.Lock()  # what is silenced meanwhile is the process's
_PHOTOMETRIC = 262  # TIFF's tag: whether 0 is white or black
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str) -> tuple[Pixels, bool]:
    """The picture as uint8 (28, 28), and whether it had to be converted to that.

    Raises DataError if it is missing, no image, damaged, or too large to be decoded safely.
    """
    with _READING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of oddities; a bomb is found below
        with open_regular(path, DataError) as (stream, size):
            if size > MAX_BYTES:
                raise DataError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}. Scale the picture down first.")
            return _decode(stream, path)


def _decode(stream: BinaryIO, path: str) -> tuple[Pixels, bool]:
    try:
        with Image.open(stream, formats=_FORMATS) as image:
            kinds = (image.format or "", *(tile[0] for tile in getattr(image, "tile", ())))
            _check_size(image.size, MAX_PIXELS / max(_COSTS.get(kind, 1) for kind in kinds))
            if image.format in ("JPEG", "MPO") and _scans(stream) > MAX_SCANS:
                raise DataError("A JPEG of so many scans is a trap. Save it anew.")
            image.draft(None, (_LARGE, _LARGE))  # a large JPEG can be decoded at a half to an eighth of its size
            with _libtiff_silenced() if image.format == "TIFF" else contextlib.nullcontext():
                image.load()
            if image.format == "PPM" and image.mode == "I":  # 16 bits, which Pillow has scaled to 0 to 65535
                return fit(image.convert("I;16")), True
            turn = _turn(image)
            if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
                return fit(Image.fromarray(~np.asarray(image)), turn), True  # Pillow heeds it in 8 bits alone
            if turn is None and image.mode == "L" and image.size == (SIDE, SIDE) and not image.has_transparency_data:
                return np.asarray(image), False
            return fit(image, turn), True
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} has too many pixels. Scale it down first.") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    # Pillow's decoders raise many types on damaged files; all of them mean the same here.
    except Exception as error:
        words = "unknown format" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise DataError(f"{path} is no image that can be read ({words}). Leave it out.") from error


def _scans(jpeg: BinaryIO) -> int:
    """The scans of a JPEG up to its end, behind which telephones keep a film or further pictures."""
    place = jpeg.tell()
    jpeg.seek(0)
    content = jpeg.read()
    jpeg.seek(place)
    count, at = 0, 0
    while (marker := _MARKER.search(content, at)) and marker[1] != _END:
        count += marker[1] == _SCAN
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    return count


@contextlib.contextmanager
def _libtiff_silenced() -> Iterator[None]:
    """libtiff writes what it finds wrong to the process's stderr, past Python and past Pillow."""
    try:
        before = os.dup(2)
    except OSError:  # closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _check_size(size: tuple[int, int], most: float = MAX_PIXELS) -> None:
    width, height = size
    if width * height > most or max(size) > MAX_SIDE:
        raise DataError(f"A picture of {width}x{height} has too many pixels. Scale it down first.")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the picture upright, as its EXIF says; None if it is."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block, of whatever kind, is no reason to refuse the pixels
        return None


def fit(image: Image.Image, turn: Image.Transpose | None = None) -> Pixels:
    """Any picture as uint8 (28, 28).

    Alpha is laid on black; then it is turned, padded to a square with the border's median colour,
    made grey, and scaled with an antialiasing filter. Raises DataError for what has no known range
    or too many pixels.
    """
    _check_size(image.size)
    image = _shrunk(image)
    image = _to_square(image if turn is None else image.transpose(turn))
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _shrunk(image: Image.Image) -> Image.Image:
    """The picture without alpha, in 8 bits; a large one averaged down, band by band to save memory."""
    factor = max(image.size) // _LARGE
    if factor < 2:
        return _flat(image)
    width, height = image.size
    bands = []
    for top in range(0, height, factor):
        bands.append(_flat(image.crop((0, top, width, min(top + factor, height)))).reduce(factor))
    small = Image.new(bands[0].mode, (bands[0].width, len(bands)))
    for row, band in enumerate(bands):
        small.paste(band, (0, row))
    return small


def _flat(image: Image.Image) -> Image.Image:
    """The picture as grey or RGB of 8 bits, alpha laid on black."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        wide = np.where(wide == image.info.get("transparency", -1), 0, wide)  # a PNG's transparent grey
        image = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError("An image of 32 bits a channel has no known range. Save it with 8 or 16 bits.")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "black"), colour)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_square(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    pixels = np.asarray(image).reshape(height, width, -1)  # (H, W, C)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    median = tuple(int(level) for level in np.rint(np.median(border, axis=0)))
    side = max(width, height)
    square = Image.new(image.mode, (side, side), median if len(median) > 1 else median[0])
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def read_images(paths: Sequence[str]) -> tuple[Pixels, int]:
    """The pictures as uint8 (N, 28, 28), and how many of them had to be converted. Raises DataError."""
    images = np.empty((len(paths), SIDE, SIDE), np.uint8)
    converted = 0
    for row, path in enumerate(paths):
        images[row], changed = read_image(path)
        converted += changed
    return images, converted


def fit_all(images: Pixels) -> Pixels:
    """Grey images of any one size as uint8 (N, 28, 28); those of 28x28 are returned as they are."""
    if images.shape[1:] == (SIDE, SIDE):
        return images
    if min(images.shape[1:]) < MIN_SIDE:  # a thousand of them in a kilobyte, and a picture of nothing
        raise DataError(f"Images of {images.shape[2]}x{images.shape[1]} are too small. Use larger ones.")
    return np.stack([fit(Image.fromarray(image)) for image in images])


def conversion_note(converted: int, count: int, what: str) -> str:
    """What people should know of images that are not as they were."""
    return (
        f"Converted {converted:,} of {count:,} {what} to 28x28 grey: turned as EXIF says, alpha on black, "
        "padded to a square with the border's median, antialiased."
    )
