"""What people see while a service works: bars on a terminal, lines elsewhere, or nothing."""

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator

from vaecli.console import printable, tell
from vaecli.console.process import signals_raise
from vaecli.metrics import EpochRecord
from vaecli.services import Observer


@contextlib.contextmanager
def observer(quiet: bool, output: str = "") -> Iterator[Observer]:
    """A service at work: signals raise Interrupted, and people hear of its progress.

    They see bars on a terminal (unless the `output` may run across it), lines elsewhere, or nothing.
    """
    bars = bars_fit(output) and _has_the_terminal()
    speaking = Observer() if quiet else _Bars() if bars else _Lines()
    with signals_raise():
        try:
            yield speaking
        finally:
            speaking.close()


def bars_fit(output: str) -> bool:
    """Whether a live bar on stderr cannot run across the answer or another command's bar."""
    if output != "-":
        return True
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    return False


def _has_the_terminal() -> bool:
    """Whether stderr is a terminal that can redraw a line, and no shell is writing to it beside this process."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    with contextlib.suppress(OSError):  # it is the terminal of no session
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    return True


def epoch_line(record: EpochRecord, epochs: int, seconds_left: float) -> str:
    """What a finished epoch brought, for people."""
    speed = f"  {record.images_per_second:,.0f} images/s" if record.images_per_second else ""
    left = f"  {duration(seconds_left)} left" if record.epoch < epochs else ""
    return (
        f"epoch {record.epoch}/{epochs}  train loss {record.train_loss:.2f}  "
        f"test loss {record.test_loss:.2f}{speed}{left}"
    )


def duration(seconds: float) -> str:
    """`m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Speaking(Observer):
    """Says each note once: two splits out of one folder have the same to say of it."""

    def __init__(self) -> None:
        self._said = set[str]()

    def note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _say(self, text: str) -> None:
        tell(text)


class _Lines(_Speaking):
    """A plain line for every loss and every epoch: for pipes, logs and CI."""

    SILENCE = 60.0  # seconds, of a long pass

    def __init__(self) -> None:
        super().__init__()
        self.begin("", 0)

    def begin(self, what: str, images: int, *, long: bool = False) -> None:
        self._what, self._images, self._done, self._long = what, images or 1, 0, long
        self._began = self._told = time.monotonic()

    def advance(self, images: int, loss: float | None = None) -> None:
        self._done += images
        share = self._done / self._images
        if loss is not None:
            tell(f"{self._what}  {share:4.0%}  loss {loss:.2f}")
        elif self._long and (now := time.monotonic()) - self._told >= self.SILENCE:
            self._told = now
            tell(f"{self._what}  {share:4.0%}  {duration((now - self._began) * (1 / share - 1))} left")

    def finish_epoch(self, record: EpochRecord, epochs: int, seconds_left: float) -> None:
        tell(epoch_line(record, epochs, seconds_left))


class _Bars(_Speaking):
    """One live bar on the terminal; what is worth keeping scrolls by above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        super().__init__()
        console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        room = console.width - 48  # columns beside what follows: a full line would wrap at the terminal's ^C
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            *([BarColumn(bar_width=min(24, room))] if room >= 4 else []),
            TaskProgressColumn("{task.percentage:>3.0f}%", "{task.completed:,.0f}", markup=False),
            TextColumn("{task.fields[loss]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=5,
        )
        self._task = self._progress.add_task("", loss="", visible=False)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that has gone is no reason to stop
            self._progress.console.print(printable(text), soft_wrap=True)

    def begin(self, what: str, images: int, *, long: bool = False) -> None:
        with contextlib.suppress(OSError):
            self._progress.remove_task(self._task)  # rich cannot set the total of one back to unknown
            self._progress.add_task(what, total=images or None, loss="")
            self._progress.start()
            self._progress.console.show_cursor()  # rich hides it: a shell would lack it after Ctrl-Z or SIGKILL
        self._task = self._progress.task_ids[-1]  # it is there also if it could not be drawn

    def advance(self, images: int, loss: float | None = None) -> None:
        if loss is not None:
            self._progress.update(self._task, loss=f"loss {loss:.2f}")
        self._progress.advance(self._task, images)

    def finish_epoch(self, record: EpochRecord, epochs: int, seconds_left: float) -> None:
        self._say(epoch_line(record, epochs, seconds_left))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._progress.stop()
