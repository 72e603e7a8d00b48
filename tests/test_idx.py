"""IDX files: read whole or in blocks, and not believed."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from vaecli import idx
from vaecli.errors import DataError
from vaecli.idx import IdxFile, is_idx

ANY_PATH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def idx_bytes(array: np.ndarray, kind: int = 0x08) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


@ANY_PATH
@given(
    array=nps.arrays(np.uint8, nps.array_shapes(min_dims=1, max_dims=4, max_side=6)),
    rows=st.integers(1, 8),
    packed=st.booleans(),
)
def test_round_trip(tmp_path: Path, array: np.ndarray, rows: int, packed: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    assert is_idx(path)
    file = IdxFile(path)
    assert file.shape == array.shape
    np.testing.assert_array_equal(file.read(), array)
    blocks = list(file.blocks(rows))
    assert all(len(block) == rows for block in blocks[:-1])
    np.testing.assert_array_equal(np.concatenate(blocks), array)


def test_integers_are_big_endian(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(idx_bytes(np.array([[1, 70000]], dtype=">i4"), 0x0C))
    values = IdxFile(tmp_path / "file").read()
    assert values.tolist() == [[1, 70000]]
    assert values.dtype == np.int32


WHOLE = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
PACKED = gzip.compress(WHOLE)


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "three bytes": WHOLE[:3],
        "no dimensions": WHOLE[:6],
        "one byte short": WHOLE[:-1],
        "one byte long": WHOLE + b"x",
        "another type": b"\0\0\x0e" + WHOLE[3:],
        "five dimensions": WHOLE[:3] + b"\x05" + WHOLE[4:],
        "claims 2^31 images": WHOLE[:4] + b"\x80\0\0\0" + WHOLE[8:],
        "claims 2^96 values": WHOLE[:4] + b"\xff" * 12,
        "no columns": WHOLE[:12] + b"\0\0\0\0",
        "no images, each of 2^64 pixels": WHOLE[:4] + bytes(4) + b"\xff" * 8,
        "gzip cut short": PACKED[:-9],
        "gzip with a wrong checksum": PACKED[:-5] + b"\0" + PACKED[-4:],
        "gzip of rubbish": PACKED[:12] + b"rubbish" + PACKED[19:],
        "gzip that claims more": gzip.compress(WHOLE[:4] + b"\0\0\x30\0" + WHOLE[8:]),
    }.items(),
    ids=lambda case: case[0],
)
def test_false_files_are_expected_errors(tmp_path: Path, content: tuple[str, bytes]) -> None:
    (tmp_path / "file").write_bytes(content[1])
    with pytest.raises(DataError, match=r"Cannot read .*file"):
        IdxFile(tmp_path / "file").read()
    with pytest.raises(DataError, match=r"Cannot read .*file"):
        list(IdxFile(tmp_path / "file").blocks(1))


def test_other_files_are_not_idx(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("text")
    (tmp_path / "zip").write_bytes(b"\x1f\x8bnot gzip")
    assert not any(is_idx(tmp_path / name) for name in ("fifo", "text", "zip", ".", "missing"))
    assert is_idx(DIGITS / "t10k-images-idx3-ubyte.gz")


def test_only_what_is_held_at_once_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(WHOLE)
    monkeypatch.setattr(idx, "MAX_BYTES", 20)
    with pytest.raises(DataError, match="too large to be held"):
        IdxFile(tmp_path / "file").read()
    assert len(list(IdxFile(tmp_path / "file").blocks(1))) == 2


def test_a_large_file_may_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_FREE_BYTES", 10)
    (tmp_path / "file").write_bytes(PACKED)
    assert IdxFile(tmp_path / "file").read().sum() == sum(range(24))
