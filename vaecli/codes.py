"""Tables of codes, out to csv, jsonl, npz or safetensors.

    index,label,mean_0,...,logvar_0,...[,z_0,...]     a row an image of a split or an IDX file
    path,label,mean_0,...                             a row an image file

A label is an integer or empty. csv and jsonl are written block by block, so their memory does not
grow with the number of images; the other two hold all codes, because their formats want sizes first.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

Format = Literal["csv", "jsonl", "npz", "safetensors"]

NO_LABEL = -1  # in arrays, which cannot leave a label empty

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
    stream: BinaryIO, form: Format, blocks: Iterator[Codes], key: Literal["index", "path"], class_names: tuple[str, ...]
) -> None:
    """Write blocks of codes as one table whose first column is `key`.

    Numbers have nine significant digits in text, enough to give back the same float32. The arrays
    of npz and safetensors are `mean`, `logvar`, `z` (N, Z) float32, `label` (N,) int64 with -1 for
    none, and `index` (N,) or the paths; class names are kept beside them.
    """
    if form == "csv":
        _write_csv(stream, blocks, key)
    elif form == "jsonl":
        _write_jsonl(stream, blocks, key)
    else:
        _write_arrays(stream, form, list(blocks), key, class_names)


def _columns(block: Codes) -> list[str]:
    return [f"{name}_{i}" for name, table in block.arrays().items() for i in range(table.shape[1])]


def _numbers(block: Codes) -> list[list[float]]:
    """The rows of all tables side by side; a float32 is exact in the float64 that Python has."""
    rows: list[list[float]] = np.concatenate(list(block.arrays().values()), axis=1).tolist()
    return rows


def _write_csv(stream: BinaryIO, blocks: Iterator[Codes], key: str) -> None:
    for number, block in enumerate(blocks):
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        if not number:
            table.writerow([key, "label", *_columns(block)])
        for name, label, row in zip(block.keys, block.labels, _numbers(block), strict=True):
            table.writerow([name, label, *[f"{value:.9g}" for value in row]])
        stream.write(text.getvalue().encode(errors="surrogateescape"))


def _write_jsonl(stream: BinaryIO, blocks: Iterator[Codes], key: str) -> None:
    for block in blocks:
        columns = _columns(block)
        for name, label, row in zip(block.keys, block.labels, _numbers(block), strict=True):
            values = [float(f"{value:.9g}") for value in row]
            record = {key: name, "label": label, **dict(zip(columns, values, strict=True))}
            stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")


def _write_arrays(stream: BinaryIO, form: Format, blocks: list[Codes], key: str, class_names: tuple[str, ...]) -> None:
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
