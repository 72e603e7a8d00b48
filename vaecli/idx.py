"""IDX, the format of MNIST's files: a big-endian type, the dimensions, the values; gzipped or not."""

import contextlib
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from vaecli.errors import DataError
from vaecli.files import open_regular, reason

MAX_BYTES = 2**32  # of values held in memory at once
# What may be packed at any rate, and at which rate more may be. MNIST's images are packed 5 to 1;
# deflate reaches 1,032 to 1, with which a file of 4 MB would fill 4 GB of memory.
_FREE_BYTES, _MAX_RATIO = 2**27, 50
_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(">u1"), 0x0C: np.dtype(">i4")}
_GZIP = b"\x1f\x8b"
_PIECE = 2**22  # bytes read at once


def is_idx(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a regular file that begins as IDX does."""
    try:
        with open_unpacked(path) as (stream, _):
            return _kind_and_dimensions(stream.read(4)) is not None
    except DataError:
        return False


def most_unpacked(size: int) -> int:
    """How many bytes a packed file of `size` bytes may unpack to, before it is taken for a bomb."""
    return max(_FREE_BYTES, _MAX_RATIO * size)


def read_values(stream: BinaryIO, kind: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """So many values from a stream, writable. Raises EOFError if there are fewer."""
    values = np.empty(math.prod(shape), kind)
    room = values.view(np.uint8)  # filled piece by piece: no second copy, and no memory for a false claim
    for start in range(0, len(room), _PIECE):
        piece = room[start : start + _PIECE]
        data = stream.read(len(piece))
        if len(data) < len(piece):
            raise EOFError("it is cut short")
        piece[:] = np.frombuffer(data, np.uint8)
    return values.reshape(shape)


class IdxFile:
    """An IDX file of bytes or 32-bit integers; its values are read on demand.

    `shape` is that of all values. Every method raises DataError if the file cannot be read or is
    not what its header claims; a false claim takes no memory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with open_unpacked(self.path) as (stream, most):
            known = _kind_and_dimensions(stream.read(4))
            if known is None:
                raise EOFError("it is no IDX file of bytes or integers")
            self._type, dimensions = known
            sizes = stream.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise EOFError("it is cut short")
            self.shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", sizes)
            self._offset = 4 + 4 * dimensions
            self._row_bytes = self._type.itemsize * math.prod(self.shape[1:])
            if 0 in self.shape[1:] or self._row_bytes > MAX_BYTES:
                raise EOFError(f"its shape {self.shape} makes no sense")
            if self._offset + self.shape[0] * self._row_bytes > most:
                raise EOFError("it is cut short, or packed so tightly that it should be unpacked first")

    def read(self) -> npt.NDArray[Any]:
        """All values, in the machine's byte order; at most 4 GiB."""
        if self.shape[0] * self._row_bytes > MAX_BYTES:
            raise DataError(f"{self.path} is too large to be held in memory. Use a part of it.")
        with self._values() as stream:
            values = read_values(stream, self._type, self.shape)
            _expect_end(stream)
            return values.astype(self._type.newbyteorder("="), copy=False)

    def blocks(self, rows: int) -> Iterator[npt.NDArray[Any]]:
        """The values, `rows` of the first dimension at a time; memory stays that of one block."""
        with self._values() as stream:
            for start in range(0, self.shape[0], rows):
                shape = (min(rows, self.shape[0] - start), *self.shape[1:])
                yield read_values(stream, self._type, shape).astype(self._type.newbyteorder("="), copy=False)
            _expect_end(stream)

    @contextlib.contextmanager
    def _values(self) -> Iterator[BinaryIO]:
        with open_unpacked(self.path) as (stream, _):
            stream.read(self._offset)
            yield stream


@contextlib.contextmanager
def open_unpacked(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """A file's bytes, unpacked if it is gzipped, and how many there may be. What fails in the block is a DataError."""
    with open_regular(path, DataError) as (stream, size):
        try:
            gzipped = stream.read(2) == _GZIP
            stream.seek(0)
            yield (cast(BinaryIO, gzip.GzipFile(fileobj=stream)), most_unpacked(size)) if gzipped else (stream, size)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"Cannot read {os.fspath(path)}: {reason(error)}. Get the file anew.") from error


def _expect_end(stream: BinaryIO) -> None:
    if stream.read(1):  # at the end gzip compares its checksum, too
        raise EOFError("it holds more than its header claims")


def _kind_and_dimensions(magic: bytes) -> tuple[np.dtype[Any], int] | None:
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 4:
        return None
    return _TYPES[magic[2]], magic[3]
