"""Image files in and out: any picture to 28x28 grey, and digits to a grid."""

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from vaecli.errors import DataError
from vaecli.files import read_regular

Pixels = npt.NDArray[np.uint8]

SIDE = 28
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
MAX_BYTES = 256 * 2**20  # of an image file
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # where Pillow begins to warn of bombs: 89 million
_ORIENTATION = 0x0112  # EXIF's tag
_SEPARATOR = 64  # grey between the images of a grid: seen on black and on white


def list_images(folder: str) -> list[tuple[str, str | None]]:
    """The image files below `folder` in sorted order, each with its class.

    As in torchvision's ImageFolder, the class is the first subfolder's name; a file that lies in
    `folder` itself has none. Links are followed, circles of links only once. Hidden files and other
    suffixes are passed over. Raises DataError if a folder cannot be read.
    """
    found: list[tuple[tuple[str, ...], str]] = []
    visited: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check its permissions.") from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        try:
            status = os.stat(parent)
        except OSError as error:
            refuse(error)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = os.path.join(parent, name)
                found.append((Path(path).relative_to(folder).parts, path))
    return [(path, parts[0] if len(parts) > 1 else None) for parts, path in sorted(found)]


def read_image(path: str) -> tuple[Pixels, bool]:
    """The picture as uint8 (28, 28), and whether it had to be converted to that.

    Raises DataError if it is missing, no image, damaged, or too large to be decoded safely.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        return _decode(read_regular(path, MAX_BYTES, DataError), path)


def _decode(data: bytes, path: str) -> tuple[Pixels, bool]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = _upright(image)
            if (
                upright is image
                and image.mode == "L"
                and image.size == (SIDE, SIDE)
                and not image.has_transparency_data
            ):
                return np.asarray(image), False
            return fit(upright), True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} has too many pixels. Scale it down first.") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    # Pillow's decoders raise many types on damaged files; all of them mean the same here.
    except Exception as error:
        words = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise DataError(f"{path} is no image that can be read ({words}). Remove it.") from error


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says; itself if there is nothing to turn."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turn else image
    except Exception:  # a damaged EXIF block, of whatever kind, is no reason to refuse the pixels
        return image


def fit(image: Image.Image) -> Pixels:
    """Any picture as uint8 (28, 28).

    Alpha is laid on black; then it is padded to a square with the border's median colour, made
    grey, and scaled with an antialiasing filter. Raises DataError for what has no known range or
    would make too large a square.
    """
    if max(image.size) ** 2 > MAX_PIXELS:
        raise DataError(f"A picture of {image.width}x{image.height} is too long. Cut it first.")
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError("An image of 32 bits a channel has no known range. Save it with 8 or 16 bits.")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "black"), colour)
    image = _to_square(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


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
    return np.stack([fit(Image.fromarray(image)) for image in images])


def conversion_note(converted: int, count: int, what: str) -> str:
    """What people should know of images that are not as they were."""
    return (
        f"Converted {converted:,} of {count:,} {what} to 28x28 grey: turned as EXIF says, alpha on black, "
        "padded to a square with the border's median, antialiased."
    )


def grid(tiles: Pixels) -> Image.Image:
    """Images (N, H, W) as one picture, row by row in a nearly square grid with thin separators.

    It is enlarged by a whole number, up to about 1,200 pixels, so that every pixel stays a square.
    """
    count, height, width = tiles.shape
    columns = max(1, round((count * height / width) ** 0.5))
    columns = columns if columns * columns * width >= count * height else columns + 1
    rows = -(-count // columns)
    scale = max(1, min(8, 1200 // (max(columns * width, rows * height))))
    step_y, step_x, line = height * scale + scale, width * scale + scale, scale
    canvas = np.full((rows * step_y + line, columns * step_x + line), _SEPARATOR, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = line + index // columns * step_y, line + index % columns * step_x
        enlarged = tile.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height * scale, left : left + width * scale] = enlarged
    return Image.fromarray(canvas)
