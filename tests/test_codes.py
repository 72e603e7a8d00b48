"""Tables of codes: exact numbers in four formats."""

import csv
import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from safetensors import safe_open
from safetensors.numpy import load

from vaecli.codes import Codes, Floats, Format, write_codes

FINITE = nps.arrays(np.float32, (3, 2), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def table(form: Format, blocks: list[Codes], key: str = "index") -> bytes:
    stream = io.BytesIO()
    write_codes(stream, form, iter(blocks), key, ("zero", "one"))  # type: ignore[arg-type]
    return stream.getvalue()


def block(numbers: Floats, start: int = 0, **options: object) -> Codes:
    keys = list(range(start, start + len(numbers)))
    return Codes(keys, [1, None, 0], numbers, numbers + 1, **options)  # type: ignore[arg-type]


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
