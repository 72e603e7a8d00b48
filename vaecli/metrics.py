"""`metrics.jsonl`: what each epoch of a run brought, one JSON object a line; and many runs' as one csv table."""

import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vaecli.errors import VaeError
from vaecli.files import read_regular, write_whole
from vaecli.text import csv_bytes, parse_json, read_record

MAX_EPOCHS = 25_000  # their history makes up to 7 MB, and a stranger's JSON takes 25 times its size in memory
MAX_LOSS = 2.0**128  # where float32 ends
MAX_BYTES = 2**23  # of metrics.jsonl, and of what a weights or state file says of itself


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean losses in nats per image, reconstruction + KL unweighted, and the training pass's speed.

    The speed is absent in a checkpoint's history, so that equal models are equal files.
    """

    epoch: int
    train_loss: float
    train_reconstruction: float
    train_kl: float
    test_loss: float
    test_reconstruction: float
    test_kl: float
    seconds: float | None = None  # of the training pass alone
    images_per_second: float | None = None  # of the training pass alone

    def to_json(self) -> dict[str, Any]:
        """The fields that were measured."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def without_speed(self) -> "EpochRecord":
        """The record as a checkpoint's history keeps it."""
        return dataclasses.replace(self, seconds=None, images_per_second=None)


def read_history(rows: Iterable[Any], what: str, error: type[VaeError] = VaeError) -> list[EpochRecord]:
    """The records in a list of JSON objects, epochs 1, 2, 3 ... in order. Raises `error` otherwise.

    Losses are means of float32 values, so a larger number is none; no figure could show it either.
    """
    records = [read_record(EpochRecord, row, what, error) for row in rows]
    if [record.epoch for record in records] != list(range(1, len(records) + 1)):
        raise error(f"{what} is damaged: its epochs are not 1, 2, 3 and so on. Restore it or make it anew.")
    if any(abs(value or 0) >= MAX_LOSS for record in records for value in vars(record).values()):
        raise error(f"{what} is damaged: a number in it is beyond float32. Restore it or make it anew.")
    return records


def read_metrics(path: str) -> list[EpochRecord]:
    """The epochs of a run so far. Raises VaeError if the file is missing or damaged."""
    lines = enumerate(io.BytesIO(read_regular(path, MAX_BYTES)), 1)
    return read_history((parse_json(line, f"{path}, line {number}") for number, line in lines if line.strip()), path)


def write_metrics(path: str, records: Iterable[EpochRecord]) -> None:
    """Replace the file whole."""
    text = "".join(json.dumps(record.to_json(), allow_nan=False) + "\n" for record in records)
    write_whole(path, text.encode())


def with_speeds(history: Sequence[EpochRecord], measured: Iterable[EpochRecord]) -> list[EpochRecord]:
    """A checkpoint's history with the speeds that an earlier part of the run measured."""
    with_speed = {record.without_speed(): record for record in measured}
    return [with_speed.get(record, record) for record in history]


def to_csv(runs: Mapping[str, Sequence[EpochRecord]]) -> bytes:
    """The epochs of named runs as one table, a row a run and epoch; empty where no speed was measured."""
    header = ["run", *(field.name for field in dataclasses.fields(EpochRecord))]
    rows = ([name, *dataclasses.astuple(record)] for name, records in runs.items() for record in records)
    return csv_bytes([header, *rows])
