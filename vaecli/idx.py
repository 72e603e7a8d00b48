"""IDX, the format of MNIST's files: a big-endian type, the dimensions, the values; gzipped or not."""

import contextlib
import gzip
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from vaecli.errors import DataError
from vaecli.files import reason

MAX_BYTES = 2**32  # of values held in memory at once
_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(">u1"), 0x0C: np.dtype(">i4")}
_GZIP = b"\x1f\x8b"


def is_idx(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a regular file that begins as IDX does."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with _open(path) as stream:
            return _kind_and_dimensions(stream.read(4)) is not None
    except (OSError, EOFError, ValueError, zlib.error):
        return False


class IdxFile:
    """An IDX file of bytes or 32-bit integers; its values are read on demand.

    `shape` is that of all values. Every method raises DataError if the file cannot be read or is
    not what its header claims; a false claim takes no memory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with self._reading() as stream:
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
            # Deflate shrinks by 1,032 to 1 at best, so a larger claim is false without unpacking.
            if self._offset + self.shape[0] * self._row_bytes > 1032 * os.stat(path).st_size:
                raise EOFError("it is cut short")

    def read(self) -> npt.NDArray[Any]:
        """All values, in the machine's byte order; at most 4 GiB."""
        if self.shape[0] * self._row_bytes > MAX_BYTES:
            raise DataError(f"{self.path} is too large to be held in memory. Use a part of it.")
        whole = list(self.blocks(max(1, self.shape[0])))
        return whole[0] if whole else np.empty(self.shape, self._type.newbyteorder("="))

    def blocks(self, rows: int) -> Iterator[npt.NDArray[Any]]:
        """The values, `rows` of the first dimension at a time; memory stays that of one block."""
        with self._reading() as stream:
            stream.read(self._offset)
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                data = stream.read(count * self._row_bytes)
                if len(data) < count * self._row_bytes:
                    raise EOFError("it is cut short")
                block = np.frombuffer(data, self._type).reshape(count, *self.shape[1:])
                yield block.astype(self._type.newbyteorder("="))
            if stream.read(1):  # at the end gzip compares its checksum, too
                raise EOFError("it holds more than its header claims")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        try:
            with _open(self.path) as stream:
                yield stream
        except (OSError, EOFError, zlib.error) as error:
            words = reason(error) if isinstance(error, OSError) else str(error)
            raise DataError(f"Cannot read {self.path}: {words}. Get the file anew.") from error


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    with open(path, "rb") as stream:
        gzipped = stream.read(2) == _GZIP
    return cast(BinaryIO, gzip.open(path)) if gzipped else open(path, "rb")


def _kind_and_dimensions(magic: bytes) -> tuple[np.dtype[Any], int] | None:
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 4:
        return None
    return _TYPES[magic[2]], magic[3]
