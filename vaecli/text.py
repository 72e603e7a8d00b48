"""Text in and out: tables as CSV, names as UTF-8, and JSON that is believed no further than it was checked."""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from vaecli.errors import VaeError

Record = TypeVar("Record")


def csv_bytes(rows: Iterable[Iterable[Any]]) -> bytes:
    """Rows as CSV in UTF-8, or the bytes that names came in, a newline behind each."""
    text = io.StringIO()
    # Python 3.11 quotes a carriage return in a name only where rows end with one.
    ends = types.SimpleNamespace(write=lambda row: text.write(row.removesuffix("\r\n") + "\n"))
    csv.writer(ends, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def utf8_name(path: str) -> str:
    """A path or a part of it as the same text in every locale: its bytes as UTF-8, which some would escape."""
    return os.fsencode(path).decode(errors="surrogateescape")


def parse_json(text: bytes | str, what: str, error: type[VaeError] = VaeError) -> Any:
    """The value of strict JSON in UTF-8, maybe marked as such: no duplicate keys, no NaN or Infinity, bounded nesting.

    Raises `error` naming `what` otherwise.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")  # json itself would guess at UTF-16, too
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as failure:
        words = "nested too deeply" if isinstance(failure, RecursionError) else str(failure)
        raise error(f"{what} is damaged: not valid JSON ({words}). Restore it or make it anew.") from failure


def read_record(cls: Callable[..., Record], value: Any, what: str, error: type[VaeError] = VaeError) -> Record:
    """A dataclass made from a JSON object with exactly its fields and their plain types.

    Fields with a default may be absent. Numbers must be finite; an integer may stand for a float.
    Raises `error` naming `what` and the field otherwise.
    """

    def damaged(words: str) -> VaeError:
        return error(f"{what} is damaged: {words}. Restore it or make it anew.")

    if not isinstance(value, dict):
        raise damaged("not a JSON object")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in sorted(value.keys() - fields.keys()):
        raise error(f"{what} has an unknown field '{name}', maybe a newer vae's. Upgrade vaecli, or restore it.")
    types_of = _types_of(cls)
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in value:
            if field.default is not dataclasses.MISSING:
                continue
            raise damaged(f"no field '{name}'")
        item, wanted = value[name], types_of[name]
        allowed = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
        if float in allowed and type(item) is int:
            with contextlib.suppress(OverflowError):
                item = float(item)
        if type(item) not in allowed or (isinstance(item, float) and not math.isfinite(item)):
            raise damaged(f"field '{name}' is {str(value[name])[:40]!r}")
        arguments[name] = item
    return cls(**arguments)


@functools.cache
def _types_of(cls: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)
