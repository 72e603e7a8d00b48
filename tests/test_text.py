"""JSON is believed no further than it was checked."""

from dataclasses import dataclass

import pytest

from vaecli.errors import VaeError
from vaecli.text import parse_json, read_record


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[NaN]", "[-Infinity]", "[" * 100_000, "{", "\x00", b"\xff\xfe"])
def test_json_is_strict(text: str | bytes) -> None:
    with pytest.raises(VaeError, match="it is damaged"):
        parse_json(text, "it")


@dataclass(frozen=True)
class Example:
    number: float
    count: int
    name: str | None = None


def test_records_have_exactly_their_fields() -> None:
    assert read_record(Example, {"number": 1, "count": 2}, "it") == Example(1.0, 2)
    assert read_record(Example, {"number": 1.5, "count": 2, "name": "n"}, "it") == Example(1.5, 2, "n")


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"number": 1.0},
        {"number": "1", "count": 2},
        {"number": True, "count": 2},
        {"number": 1.0, "count": 2.0},
        {"number": 1e999, "count": 2},
        {"number": 10**400, "count": 2},
        {"number": 1.0, "count": 2, "name": 3},
    ],
)
def test_records_of_other_fields_or_types_are_refused(value: object) -> None:
    with pytest.raises(VaeError, match="it is damaged"):
        read_record(Example, value, "it")


def test_a_newer_records_field_is_no_damage() -> None:
    with pytest.raises(VaeError, match=r"it has an unknown field 'more', .* Upgrade vaecli"):
        read_record(Example, {"number": 1.0, "count": 2, "more": 3}, "it")
