"""Images out: many as a grid, walks as an animation, and one as a PNG."""

import io
import math

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vaecli.errors import DataError
from vaecli.files import open_regular
from vaecli.images import Pixels

_FRAME_MS = 60  # milliseconds a frame of a GIF, which counts in hundredths of a second
_SEPARATOR = 64  # grey between the images of a grid: seen on black and on white


def grid(tiles: Pixels, columns: int | None = None) -> Image.Image:
    """Images (N, H, W) as one picture, row by row with thin separators; nearly square unless told otherwise.

    It is enlarged by a whole number, up to about 1,200 pixels, so that every pixel stays a square.
    """
    count, height, width = tiles.shape
    if columns is None:
        columns = math.ceil(math.sqrt(count * height / width))
    rows = -(-count // columns)
    scale = max(1, min(8, 1200 // (max(columns * width, rows * height))))
    step_y, step_x, line = height * scale + scale, width * scale + scale, scale
    canvas = np.full((rows * step_y + line, columns * step_x + line), _SEPARATOR, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = line + index // columns * step_y, line + index % columns * step_x
        enlarged = tile.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height * scale, left : left + width * scale] = enlarged
    return Image.fromarray(canvas)


def animation(tiles: Pixels, steps: int, there_and_back: bool) -> bytes:
    """A GIF without end of images (N, H, W): frame i shows image i of every `steps` of them, side by side."""
    frames = [grid(frame) for frame in tiles.reshape(-1, steps, *tiles.shape[1:]).swapaxes(0, 1)]
    if there_and_back:
        frames += frames[-2:0:-1]
    buffer = io.BytesIO()
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0)
    return buffer.getvalue()


def png(image: Pixels, software: str) -> bytes:
    """One image (H, W) as a PNG that says which software made it."""
    text = PngInfo()
    text.add_text("Software", software)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", pnginfo=text)
    return buffer.getvalue()


def made_by(path: str, software: str) -> bool:
    """Whether a file begins as those of `png` do, with this software's name before the pixels."""
    text = b"Software\0" + software.encode()
    chunk = len(text).to_bytes(4) + b"tEXt" + text
    try:
        with open_regular(path, DataError) as (stream, _):
            return chunk in stream.read(100)
    except DataError:
        return False
