"""What `vae sample` writes: a grid, an animation, an array, or one picture each into a folder."""

import contextlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from io import FileIO
from typing import BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy

from vaecli.errors import VaeError
from vaecli.files import open_folder, open_output, reason
from vaecli.grids import animation, grid, made_by, png
from vaecli.idx import MAX_BYTES
from vaecli.images import SIDE, Pixels

Format = Literal["png", "gif", "npz", "folder"]

# Images in one output: of an array, what --dataset can read back.
MOST = {"png": 10_000, "gif": 1_000, "npz": MAX_BYTES // SIDE**2, "folder": 100_000}
_OURS = re.compile(r"[0-9]{5}\.png")
_SOFTWARE = "vae sample"


def write_pictures(
    output: str | BinaryIO,
    form: Format,
    blocks: Iterator[Pixels],
    *,
    count: int | None,
    columns: int | None = None,
    there_and_back: bool = False,
    originals: Pixels | None = None,
) -> None:
    """Write images, which come in blocks (B, 28, 28), each beside its original if there are any.

    A png has `columns` images a row, by default nearly a square of them; a gif shows its rows side
    by side, a column a frame. A npz has the array `images` uint8 (N, 28, 28), and `originals`. Of a
    `count` that is not known before the blocks end, arrays and folders keep nothing in memory.

    Raises VaeError if the output cannot be written.
    """
    if form == "folder":
        assert isinstance(output, str)
        with open_folder(output, _is_ours) as put:
            for index, tile in enumerate(tile for tiles in _beside(blocks, originals) for tile in tiles):
                put(f"{index:05}.png", png(tile, _SOFTWARE))
        return
    with open_output(output) as stream:
        if form == "npz":
            _write_npz(stream, blocks, count, originals)
            return
        tiles = np.concatenate(list(_beside(blocks, originals)))
        if form == "png":
            grid(tiles, columns).save(stream, "png")
        else:
            stream.write(animation(tiles, columns or len(tiles), there_and_back))


def _is_ours(path: str) -> bool:
    return _OURS.fullmatch(os.path.basename(path)) is not None and made_by(path, _SOFTWARE)


def _beside(blocks: Iterator[Pixels], originals: Pixels | None) -> Iterator[Pixels]:
    start = 0
    for block in blocks:
        end = start + len(block)
        yield block if originals is None else np.concatenate([originals[start:end], block], axis=2)
        start = end


def _write_npz(stream: BinaryIO, blocks: Iterator[Pixels], count: int | None, originals: Pixels | None) -> None:
    """As `numpy.savez` writes it, but block by block, so that memory does not grow with the number."""
    with zipfile.ZipFile(stream, "w") as archive, contextlib.ExitStack() as files:
        pieces: Iterator[bytes] = (block.tobytes() for block in blocks)
        if count is None:  # the array begins with its length
            waiting = files.enter_context(_kept_for_now(pieces))
            count = waiting.tell() // SIDE**2
            waiting.seek(0)
            pieces = iter(lambda: waiting.read(2**20), b"")
        with archive.open("images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE)}
            npy.write_array_header_1_0(member, header)
            for piece in pieces:
                member.write(piece)
        if originals is not None:
            with archive.open("originals.npy", "w", force_zip64=True) as member:
                npy.write_array(member, originals, allow_pickle=False)


@contextlib.contextmanager
def _kept_for_now(pieces: Iterator[bytes]) -> Iterator[FileIO]:
    """A temporary file of the pieces. Raises VaeError if the system's folder for such files has no room."""
    with contextlib.ExitStack() as closing:
        try:  # unbuffered: what did not fit is not written once more on closing
            file = closing.enter_context(tempfile.TemporaryFile(buffering=0))
            for piece in pieces:
                while piece:
                    piece = piece[file.write(piece) :]
        except OSError as error:
            folder = tempfile.tempdir or "a temporary folder"  # none of those that it looked at can be written
            raise VaeError(
                f"Cannot keep the images in {folder}: {reason(error)}. "
                "Set TMPDIR to a folder with more room, or say with -n how many there are."
            ) from error
        yield file
