"""The only package that writes to the terminal: answers to stdout, everything for people to stderr.

Answers and errors are plain writes, never wrapped or coloured. Here are these; `process` says how the command
begins and ends, `progress` what people see in between.
"""

import contextlib
import dataclasses
import json
import os
import sys
from typing import Any, BinaryIO

from vaecli.errors import VaeError
from vaecli.files import open_output

_MOST = 2000  # characters of a line for people, before and after what is left out


def answer(text: str) -> None:
    """One line of the command's answer; paths come out as the bytes that went in."""
    with open_output(stdout()) as stream:
        stream.write(os.fsencode(text) + b"\n")


def answer_json(result: Any) -> None:
    """A result dataclass as exactly one JSON object; measures not taken (None) are absent."""
    values = {name: value for name, value in dataclasses.asdict(result).items() if value is not None}
    answer(json.dumps(values, allow_nan=False))


def answer_lines(result: Any) -> None:
    """A result dataclass as `key<TAB>value` lines, numbers with six decimals, those of a list apart by spaces."""
    for name, value in dataclasses.asdict(result).items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            shown = " ".join(f"{each:.6f}" if isinstance(each, float) else str(each) for each in values)
            answer(f"{name}\t{shown}")


def stdout() -> BinaryIO:
    """stdout for bytes. Raises BrokenPipeError if there is none any more."""
    if sys.stdout is None:
        raise BrokenPipeError
    return sys.stdout.buffer


def stdin() -> BinaryIO:
    """stdin for bytes. Raises VaeError if the command was started without one."""
    if sys.stdin is None:
        raise VaeError("There is no standard input to read. Name a file instead of -.")
    return sys.stdin.buffer


def tell(text: str) -> None:
    """One line for people, on stderr. A stderr that is closed or full is no reason to stop."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """Names may hold anything: control characters and broken bytes are shown, not sent, and no line is endless."""
    text = text if len(text) <= 2 * _MOST else f"{text[:_MOST]} ... {text[-_MOST:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
