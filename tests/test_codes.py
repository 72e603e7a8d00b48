"""Tables of codes: exact numbers out in four formats, and in again from two."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from safetensors import safe_open
from safetensors.numpy import load

from vaecli.codes import Codes, Floats, Format, read_codes, write_codes
from vaecli.errors import DataError

FINITE = nps.arrays(np.float32, (3, 2), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def table(form: Format, blocks: list[Codes], key: str = "index") -> bytes:
    stream = io.BytesIO()
    write_codes(stream, form, iter(blocks), key, ("zero", "one"))  # type: ignore[arg-type]
    return stream.getvalue()


def block(numbers: Floats, start: int = 0, **options: Any) -> Codes:
    keys = list(range(start, start + len(numbers)))
    return Codes(keys, [1, None, 0], numbers, numbers + 1, **options)


@settings(deadline=None)
@given(FINITE)
def test_text_gives_back_the_same_float32(numbers: Floats) -> None:
    codes = block(numbers, z=numbers * np.float32(0.5))
    expected = np.concatenate([codes.mean, codes.logvar, codes.z], axis=1)
    rows = list(csv.reader(io.StringIO(table("csv", [codes]).decode())))
    assert rows[0] == ["index", "label", "mean_0", "mean_1", "logvar_0", "logvar_1", "z_0", "z_1"]
    assert [row[:2] for row in rows[1:]] == [["0", "1"], ["1", ""], ["2", "0"]]
    np.testing.assert_array_equal(np.array([row[2:] for row in rows[1:]], np.float32), expected)
    objects = [json.loads(line) for line in table("jsonl", [codes]).splitlines()]
    assert [list(row) for row in objects] == [rows[0]] * 3
    assert [row["label"] for row in objects] == [1, None, 0]
    np.testing.assert_array_equal(np.array([list(row.values())[2:] for row in objects], np.float32), expected)


def test_blocks_join_under_one_header() -> None:
    numbers = np.ones((3, 2), np.float32)
    lines = table("csv", [block(numbers), block(numbers, 3)]).decode().splitlines()
    assert [line.split(",")[0] for line in lines] == ["index", "0", "1", "2", "3", "4", "5"]


def test_arrays_hold_everything_and_no_pickle() -> None:
    numbers = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    blocks = [block(numbers), block(numbers, 3)]
    with np.load(io.BytesIO(table("npz", blocks)), allow_pickle=False) as archive:
        assert archive["index"].tolist() == list(range(6))
        assert archive["label"].tolist() == [1, -1, 0] * 2
        assert archive["class_names"].tolist() == ["zero", "one"]
        np.testing.assert_array_equal(archive["mean"], np.concatenate([numbers, numbers]))
        assert archive["logvar"].dtype == np.float32
    tensors = load(table("safetensors", blocks))
    assert set(tensors) == {"index", "label", "mean", "logvar"}
    np.testing.assert_array_equal(tensors["logvar"], np.concatenate([numbers, numbers]) + 1)


@pytest.mark.parametrize("form", ["csv", "jsonl", "npz", "safetensors"])
def test_paths_of_any_name_are_keys(form: Format, tmp_path_factory: pytest.TempPathFactory) -> None:
    names = ['a "b", c.png', "line\nbreak.png", "ü.png"]
    numbers = np.zeros((3, 1), np.float32)
    content = table(form, [Codes(names, [None] * 3, numbers, numbers)], key="path")
    if form == "csv":
        assert [row[0] for row in csv.reader(io.StringIO(content.decode()))][1:] == names
    elif form == "jsonl":
        assert [json.loads(line)["path"] for line in content.splitlines()] == names
    elif form == "npz":
        assert np.load(io.BytesIO(content))["path"].tolist() == names
    else:
        path = tmp_path_factory.mktemp("codes") / "codes.safetensors"
        path.write_bytes(content)
        with safe_open(path, framework="np") as file:
            assert json.loads(file.metadata()["vae"]) == {"class_names": ["zero", "one"], "path": names}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_text_is_written_before_the_next_block_is_asked_for(form: Format) -> None:
    stream, sizes = io.BytesIO(), []

    def blocks() -> Iterator[Codes]:
        for start in range(0, 30, 3):
            sizes.append(stream.tell())
            yield block(np.zeros((3, 2), np.float32), start)

    write_codes(stream, form, blocks(), "index", ())
    assert sizes == sorted(set(sizes))


def read(content: bytes, z_dim: int = 2, rows: int = 2) -> list[Floats]:
    return list(read_codes(io.BytesIO(content), "codes", z_dim, rows))


@settings(deadline=None)
@given(FINITE, st.sampled_from(["csv", "jsonl"]), st.booleans())
def test_codes_come_back_as_they_went(numbers: Floats, form: Format, sampled: bool) -> None:
    codes = Codes(["a\rb", "line\nbreak", '"'], [1, None, 0], numbers, -numbers, -numbers if sampled else None)
    blocks = read(table(form, [codes], key="path"))
    assert [len(block) for block in blocks] == [2, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), codes.mean if codes.z is None else codes.z)


def test_columns_are_found_by_name() -> None:
    expected = [[1.0, 2.0]]
    for content in (
        b"z_1,z_0\n2,1\n",
        b"mean_0,z_1,mean_1,z_0\n8,2,9,1\n",
        b'"z_0", "z_1"\n"1", "2"\n',
        b"\xef\xbb\xbfz_0,z_1,note\r\n1,2,\xff\r\n\r\n",  # as a spreadsheet saves it
        b'\n{"z_1": 2, "path": "x", "z_0": 1.0}\n\n',
        b'{"z_0": 1, "z_1": 2, "label": null}\n',
        b'  {"z_0": 1, "z_1": 2}\n',
    ):
        np.testing.assert_array_equal(np.concatenate(read(content)), expected)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no codes"),
        (b"\n\n", "no codes"),
        (b"z_0,z_1\n", "no codes"),
        (b"1.5,2.5\n1,2\n", "no columns z_0"),
        (b"logvar_0,label\n1,2\n", "no columns z_0"),
        (b"z_0;z_1\n1;2\n", "comma-separated"),
        (b"PK\x03\x04\0\0\xff", "no text in UTF-8"),
        ("z_0,z_1\n1,2\n".encode("utf-16"), "no text in UTF-8"),
        (b"z_0\n1\n", "z_dim 1, but the model's is 2"),
        (b"mean_0,mean_1,mean_2\n1,2,3\n", "z_dim 3"),
        (b"z_0,z_2\n1,2\n", "no column z_1"),
        (b"z_0,z_0,z_1\n1,2,3\n", "z_0 twice"),
        (b"z_0,z_1\n1,2\n1\n", "line 3 has 1 values"),
        (b"z_0,z_1\n1,2,3\n", "line 2 has 3 values"),
        (b"z_0,z_1\n1,nan\n", "line 2 has a code"),
        (b"z_0,z_1\n1,-inf\n", "line 2 has a code"),
        (b"z_0,z_1\n1,1e39\n", "line 2 has a code"),
        (b"z_0,z_1\n1,\n", "line 2 has a code"),
        (b"z_0,z_1\n1,two\n", "line 2 has a code"),
        (b'z_0,z_1\n1,"' + b"2" * 200_000 + b'"\n', "field larger"),
        (b'{"z_0": 1, "z_1": NaN}\n', "NaN is no number"),
        (b'{"z_0": 1, "z_1": 1' + b"0" * 400 + b"}\n", "line 1 has a code"),
        (b'{"z_0": 1, "z_1": null}\n', "line 1 has a code"),
        (b'{"z_0": 1, "z_1": true}\n', "line 1 has a code"),
        (b'{"z_0": 1, "z_1": 2}\n{"z_0": 1}\n', "line 2 has other columns"),
        (b'{"z_0": 1, "z_1": 2}\n{"z_0": 1, "z_1": 2, "z_2": 3}\n', "line 2 has other columns"),
        (b'{"z_0": 1, "z_1": 2}\n[1, 2]\n', "line 2 is no JSON object"),
        (b'{"z_0": 1, "z_1": 2\n', "line 1 is no JSON object"),
        (
            b'{\n  "z_0": 1,\n  "z_1": 2\n}\n',
            "line 1 is no JSON object. Give one object a line, as 'vae encode' and 'jq -c'",
        ),
        (b"\n  \nz_0,z_1\n1,2\n3\n", "line 5 has 1 values"),
        (b'\n\n{"z_0": 1, "z_1": 2}\n\n[1, 2]\n', "line 5 is no JSON object"),
    ],
)
def test_what_is_no_table_of_codes_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(content)


def test_a_line_without_end_takes_no_memory() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"0" * len(buffer)
            return len(buffer)

    with pytest.raises(DataError, match="line without end"):
        list(read_codes(io.BufferedReader(Endless()), "codes", 2, 1000))


def test_the_stream_stays_open_and_blocks_come_as_they_are_read() -> None:
    stream = io.BytesIO(b"z_0\n" + b"1\n" * 100_000)
    blocks = read_codes(stream, "codes", 1, 1000)
    assert len(next(blocks)) == 1000
    assert stream.tell() < 50_000
    assert sum(map(len, blocks)) == 99_000
    assert stream.read() == b""


def test_columns_may_be_aligned_with_spaces() -> None:
    np.testing.assert_array_equal(np.concatenate(read(b"z_0 , z_1 \n1   , 2   \n")), [[1, 2]])


def test_jsonl_has_nine_digits() -> None:
    codes = Codes([0], [None], np.full((1, 1), 0.1, np.float32), np.zeros((1, 1), np.float32))
    assert table("jsonl", [codes]) == b'{"index": 0, "label": null, "mean_0": 0.100000001, "logvar_0": 0.0}\n'


def test_an_unknown_format_is_none_of_these() -> None:
    with pytest.raises(ValueError, match="parquet"):
        write_codes(io.BytesIO(), "parquet", iter(()), "index", ())  # type: ignore[arg-type]


def test_no_class_names_are_text_too() -> None:
    stream = io.BytesIO()
    write_codes(stream, "npz", iter([block(np.ones((3, 2), np.float32))]), "index", ())
    stream.seek(0)
    with np.load(stream) as archive:
        assert archive["class_names"].dtype.kind == "U"
