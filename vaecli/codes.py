"""Tables of codes, out to csv, jsonl, npz or safetensors, and in again from csv or jsonl.

    index,label,mean_0,...,logvar_0,...[,z_0,...]     a row an image of a split or an IDX file
    path,label,mean_0,...                             a row an image file

A label is an integer or empty. csv and jsonl are written and read block by block, so their memory
does not grow with the number of images; the other two hold all codes, because their formats want
sizes first.
"""

import csv
import io
import itertools
import json
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from vaecli.errors import DataError
from vaecli.files import reason
from vaecli.text import csv_bytes, parse_json

Format = Literal["csv", "jsonl", "npz", "safetensors"]
Key = Literal["index", "path"]  # what a table calls its images by

NO_LABEL = -1  # in arrays, which cannot leave a label empty
MAX_LINE = 2**24  # characters; the widest model's take a quarter of it
_COLUMN = re.compile(r"(z|mean)_(0|[1-9][0-9]{0,8})")
_TOO_LARGE = float.fromhex("0x1.ffffffp127")  # from here on a number rounds to float32's infinity

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Codes:
    """A block of codes: keys and labels of N images, `mean`, `logvar` and maybe `z`, each (N, Z)."""

    keys: list[int] | list[str]
    labels: list[int | None]
    mean: Floats
    logvar: Floats
    z: Floats | None = None

    def arrays(self) -> dict[str, Floats]:
        """The tables by the name that their columns begin with, in the columns' order."""
        tables = {"mean": self.mean, "logvar": self.logvar}
        return tables if self.z is None else tables | {"z": self.z}


def write_codes(
    stream: BinaryIO, form: Format, blocks: Iterator[Codes], key: Key, class_names: tuple[str, ...]
) -> None:
    """Write blocks of codes as one table whose first column is `key`.

    Numbers have nine significant digits in text, enough to give back the same float32. The arrays
    of npz and safetensors are `mean`, `logvar`, `z` (N, Z) float32, `label` (N,) int64 with -1 for
    none, and `index` (N,) or, in npz, `path` (N,). Class names are an array of npz; in safetensors they
    and the paths are JSON in the metadata `vae`.
    """
    if form == "csv":
        _write_csv(stream, blocks, key)
    elif form == "jsonl":
        _write_jsonl(stream, blocks, key)
    elif form in ("npz", "safetensors"):
        _write_arrays(stream, form, list(blocks), key, class_names)
    else:
        raise ValueError(f"no format of tables: {form}")


def _columns(block: Codes) -> list[str]:
    return [f"{name}_{i}" for name, table in block.arrays().items() for i in range(table.shape[1])]


def _numbers(block: Codes) -> list[list[float]]:
    """The rows of all tables side by side; a float32 is exact in the float64 that Python has."""
    rows: list[list[float]] = np.concatenate(list(block.arrays().values()), axis=1).tolist()
    return rows


def _write_csv(stream: BinaryIO, blocks: Iterator[Codes], key: Key) -> None:
    for number, block in enumerate(blocks):
        if not number:
            stream.write(csv_bytes([[key, "label", *_columns(block)]]))
        rows = zip(block.keys, block.labels, _numbers(block), strict=True)
        stream.write(csv_bytes([name, label, *[f"{value:.9g}" for value in row]] for name, label, row in rows))


def _write_jsonl(stream: BinaryIO, blocks: Iterator[Codes], key: Key) -> None:
    for block in blocks:
        columns = _columns(block)
        for name, label, row in zip(block.keys, block.labels, _numbers(block), strict=True):
            values = [float(f"{value:.9g}") for value in row]
            record = {key: name, "label": label, **dict(zip(columns, values, strict=True))}
            stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")


def _write_arrays(stream: BinaryIO, form: Format, blocks: list[Codes], key: Key, class_names: tuple[str, ...]) -> None:
    keys: list[Any] = [name for block in blocks for name in block.keys]
    labels = [NO_LABEL if label is None else label for block in blocks for label in block.labels]
    arrays: dict[str, Any] = {
        name: np.concatenate([block.arrays()[name] for block in blocks]) for name in blocks[0].arrays()
    }
    arrays["label"] = np.array(labels, np.int64)
    # A path is text, which npz holds as fixed-width unicode (no pickle) and safetensors as metadata.
    if form == "npz" or key == "index":
        arrays[key] = np.array(keys)
    if form == "npz":
        buffer = io.BytesIO()  # a pipe cannot seek, as a zip archive must
        np.savez(buffer, class_names=np.array(class_names, dtype=np.str_), **arrays)
        stream.write(buffer.getbuffer())
    else:
        from safetensors.numpy import save

        about = {"class_names": list(class_names)} | ({"path": keys} if key == "path" else {})
        stream.write(save(arrays, {"vae": json.dumps(about, sort_keys=True)}))


def read_codes(stream: BinaryIO, name: str, z_dim: int, rows: int) -> Generator[Floats, None, None]:
    """The codes (B, Z) in a csv or jsonl table, B = `rows` at a time: its columns `z_*`, else `mean_*`.

    That is what `write_codes` writes, or another program: the order of the columns and what else
    there is do not matter. The stream is read to its end; memory stays that of a block.

    Raises DataError, naming `name` and the line, for a table without those columns or of another
    width than `z_dim`, for ragged rows, for values that are no finite float32, and for no rows.
    """
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    try:
        lines = _lines(text, name)
        blank, first = next(((blank, line) for blank, line in enumerate(lines) if line.strip()), (0, ""))
        if "\0" in first:  # an npz of codes, say, or UTF-16
            raise DataError(f"{name} is no text in UTF-8. Give a csv or jsonl of 'vae encode'.")
        lines = itertools.chain(itertools.repeat("\n", blank), [first], lines)  # the lines' numbers stay
        found = _jsonl_rows(lines, name, z_dim) if first.lstrip().startswith("{") else _csv_rows(lines, name, z_dim)
        empty = True
        while block := list(itertools.islice(found, rows)):
            empty = False
            yield np.array(block, np.float32)
        if empty:
            raise DataError(f"There are no codes in {name}. Make some with 'vae encode'.")
    except (csv.Error, OSError) as error:
        raise DataError(
            f"Cannot read codes from {name}: {reason(error)}. Give a csv or jsonl of 'vae encode'."
        ) from error
    finally:
        text.detach()  # or it would close the stream, which is the caller's


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise DataError(f"{name} has a line without end. Give a csv or jsonl of 'vae encode'.")
        yield line


def _csv_rows(lines: Iterator[str], name: str, z_dim: int) -> Iterator[list[float]]:
    table = csv.reader(lines, skipinitialspace=True)
    header = next((row for row in table if row), [])
    places = _places(header, name, z_dim) if any(header) else []
    for row in table:
        if row:  # an empty line is none
            where = f"{name}, line {table.line_num}"
            if len(row) != len(header):
                raise DataError(f"{where} has {len(row)} values under {len(header)} columns. Make the table anew.")
            yield _code([row[place] for place in places], where)


def _jsonl_rows(lines: Iterator[str], name: str, z_dim: int) -> Iterator[list[float]]:
    keys: list[str] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        record = parse_json(line, where, DataError) if line.rstrip().endswith("}") else None
        if not isinstance(record, dict):
            raise DataError(f"{where} is no JSON object. Give one object a line, as 'vae encode' and 'jq -c' do.")
        if keys is None:
            columns = list(record)
            keys = [columns[place] for place in _places(columns, name, z_dim)]
            ours = {column for column in columns if _COLUMN.fullmatch(column)}
        if ours != {column for column in record if _COLUMN.fullmatch(column)}:
            raise DataError(f"{where} has other columns than the first line. Make the table anew.")
        values = [record[key] for key in keys]
        if not all(type(value) in (int, float) for value in values):
            raise DataError(f"{where} has a code that is no number. Make the table anew.")
        yield _code(values, where)


def _places(columns: Sequence[str], name: str, z_dim: int) -> list[int]:
    """Where the Z numbers of a code stand among the columns. Raises DataError."""
    found: dict[str, dict[int, int]] = {"z": {}, "mean": {}}
    for place, column in enumerate(columns):
        if match := _COLUMN.fullmatch(column.strip()):
            if int(match[2]) in found[match[1]]:
                raise DataError(f"{name} has the column {column.strip()} twice. Remove one.")
            found[match[1]][int(match[2])] = place
    kind = "z" if found["z"] else "mean"
    held = found[kind]
    if not held:
        raise DataError(
            f"{name} has no columns z_0 ... or mean_0 ... in its first line. Give a comma-separated csv or a jsonl."
        )
    missing = next((dim for dim in range(max(held)) if dim not in held), None)
    if missing is not None:
        raise DataError(f"{name} has no column {kind}_{missing}, but {kind}_{max(held)}. Make the table anew.")
    if len(held) != z_dim:
        raise DataError(
            f"{name} has codes of z_dim {len(held)}, but the model's is {z_dim}. Encode with this checkpoint."
        )
    return [held[dim] for dim in range(z_dim)]


def _code(values: Sequence[Any], where: str) -> list[float]:
    try:
        code = [float(value) for value in values]
    except (ValueError, OverflowError):
        code = [float("nan")]
    if not all(abs(value) < _TOO_LARGE for value in code):
        raise DataError(f"{where} has a code that is not finite, or no number. Make the table anew.")
    return code
