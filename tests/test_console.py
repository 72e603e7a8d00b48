"""What people see while a command works."""

import contextlib
import io
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from vaecli import console
from vaecli.console import progress
from vaecli.metrics import EpochRecord
from vaecli.services import Observer

RECORD = EpochRecord(3, 150.126, 145.0, 5.1, 151.0, 146.0, 5.0, 1.5, 40_000.4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell_all(observer: Observer) -> None:
    observer.note("a [note] :dog:\twith \x1b[31mcolour")
    observer.begin("epoch 3/50", 100)
    observer.advance(50, 160.123)
    observer.advance(50)
    observer.finish_epoch(RECORD, 50, 3725.0)


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress.observer(quiet=False) as observer:
        tell_all(observer)
    assert stderr.getvalue().splitlines() == [
        r"a [note] :dog:\twith \x1b[31mcolour",
        "epoch 3/50   50%  loss 160.12",
        "epoch 3/50  train loss 150.13  test loss 151.00  40,000 images/s  1:02:05 left",
    ]


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress.observer(quiet=True) as observer:
        tell_all(observer)
    assert stderr.getvalue() == ""


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress.observer(quiet=False) as observer:
        tell_all(observer)
    text = stderr.getvalue()
    assert "epoch 3/50 " in text
    assert "100%" in text
    assert "loss 160.12" in text
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").splitlines()
    assert r"a [note] :dog:\twith \x1b[31mcolour" in lines
    assert any(line.startswith("epoch 3/50  train loss 150.13") for line in lines)
    begun = text.rindex("\x1b[?25l")
    # Not only at the end, which SIGKILL and Ctrl-Z come before.
    assert begun < text.index("\x1b[?25h", begun) < text.index("100%")


@pytest.mark.parametrize(("term", "background"), [("dumb", False), ("xterm", True)])
def test_no_bars_on_a_dumb_terminal_nor_in_the_background(
    monkeypatch: pytest.MonkeyPatch, term: str, background: bool
) -> None:
    stderr = Terminal()
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(stderr, "fileno", lambda: 2)
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp() + background)
    with progress.observer(quiet=False) as observer:
        tell_all(observer)
    assert "\x1b[?" not in stderr.getvalue()
    assert stderr.getvalue().splitlines()[1].startswith("epoch 3/50   50%")


@pytest.mark.parametrize(("width", "bar"), [(80, True), (60, True), (40, False)])
def test_a_bar_fits_and_of_unknown_length_counts(monkeypatch: pytest.MonkeyPatch, width: int, bar: bool) -> None:
    stderr = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress.observer(quiet=False) as observer:
        observer.begin("epoch 3/50, test", 100)
        observer.advance(50, 160.123)
        observer.begin("sample", 0)
        observer.advance(1000)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stderr.getvalue())
    frames = re.split(r"[\r\n]+", text)
    assert max(map(len, frames)) < width
    assert ("\u2501" in text) == bar
    counted = [frame for frame in frames if frame.startswith("sample")]
    assert "1,000" in counted[-1]
    assert not any("%" in frame for frame in counted)


def test_a_terminal_that_has_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    gone = open(theirs, "w")  # noqa: SIM115 - closing it fails, as it must
    monkeypatch.setattr(sys, "stderr", gone)
    with progress.observer(quiet=False) as observer:
        observer.begin("epoch 3/50", 100)
        os.close(ours)
        tell_all(observer)
    console.tell("and nobody hears it")
    with contextlib.suppress(OSError):
        gone.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_names_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.tell("Error: \x1b]0;title\x07 \u202e \udcff \n end")
    assert capsys.readouterr().err == r"Error: \x1b]0;title\x07 \u202e \udcff \n end" + "\n"


def test_bars_show_where_the_answer_cannot_cross_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress.bars_fit("codes.csv")
    with open(tmp_path / "codes.csv", "w") as file:
        monkeypatch.setattr("sys.stdout", file)
        assert progress.bars_fit("-")
    reader, writer = os.pipe()  # another command's bar may be at its end
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert not progress.bars_fit("-")


def test_a_long_pass_tells_a_log_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, clock = io.StringIO(), iter([0.0, 0.0, 0.0, 30.0, 60.0, 90.0, 130.0])
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    lines = progress._Lines()
    lines.begin("test", 10)
    lines.advance(10)
    lines.begin("importance sampling", 100, long=True)
    for _ in range(4):
        lines.advance(20)
    assert stderr.getvalue().splitlines() == [
        "importance sampling   40%  1:30 left",
        "importance sampling   80%  0:32 left",
    ]
