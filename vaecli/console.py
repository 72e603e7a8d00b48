"""The only module that writes to the terminal: answers to stdout, everything for people to stderr.

Answers and errors are plain writes, never wrapped or coloured. Rich draws bars, on a terminal only.
"""

import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, BinaryIO, ParamSpec

import typer

from vaecli.errors import Interrupted, VaeError
from vaecli.files import open_output, reason
from vaecli.metrics import EpochRecord
from vaecli.services import Observer

Arguments = ParamSpec("Arguments")

_MOST = 2000  # characters of a line for people, before and after what is left out

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A write without room: on the disk, in the quota, under the limit on file sizes; or to a disk that fails.
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


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


def bars_fit(output: str) -> bool:
    """Whether a live bar on stderr cannot run across the answer or another command's bar."""
    if output != "-":
        return True
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    return False


def tell(text: str) -> None:
    """One line for people, on stderr. A stderr that is closed or full is no reason to stop."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(_printable(text) + "\n")
        sys.stderr.flush()


def _printable(text: str) -> str:
    """Names may hold anything: control characters and broken bytes are shown, not sent, and no line is endless."""
    text = text if len(text) <= 2 * _MOST else f"{text[:_MOST]} ... {text[-_MOST:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def border(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A command whose expected failures end as one line on stderr and an exit code."""

    @functools.wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            _require_current_folder()
            command(*args, **kwargs)
        except VaeError as error:
            tell(f"Error: {error}")
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:  # the reader has what it wanted: `vae encode ... | head`
            _drop_stdout()
            raise typer.Exit(0) from None

    return guarded


def _require_current_folder() -> None:
    """Raise VaeError if another process has removed it: torch would not even load there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise VaeError("The current folder has been removed. Change to another one (cd).") from None


def run(app: typer.Typer, args: list[str] | None) -> int:
    """Run the app as a process does: signals, usage errors and a closed stdout end as they should."""
    args = sys.argv[1:] if args is None else args
    _open_streams()
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        # Until a service works there is nothing to clean up, and half an import to break.
        _handle(dict.fromkeys(SIGNALS, signal.SIG_DFL))
        code = app(args, prog_name="vae", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        tell(f"Error: {_one_line(error, args)}")
        return error.exit_code
    except VaeError as error:
        tell(f"Error: {error}")
        return error.exit_code
    except BrokenPipeError:  # outside a command: --version
        _drop_stdout()
        return 0
    except (MemoryError, RuntimeError) as error:  # while libraries load: what services run out of is theirs to say
        if isinstance(error, RuntimeError) and str(error) != "std::bad_alloc":
            raise
        tell("Error: Out of memory. Free some.")
        return VaeError.exit_code
    except (ImportError, OSError) as error:
        # torch loads some with ctypes, whose OSError has no number. What comes later without one is a bug.
        if isinstance(error, ImportError) or (error.errno is None and "torch" not in sys.modules):
            tell(f"Error: A library does not load: {_not_loaded(error)}")
        elif error.errno in _REFUSED:
            tell(f"Error: Cannot write to standard output: {reason(error)}. Write somewhere else.")
        else:
            raise
        return VaeError.exit_code
    except Interrupted as stop:
        # A shell loop stops only if the command dies of the signal itself.
        signal.signal(stop.signum, signal.SIG_DFL)
        os.kill(os.getpid(), stop.signum)
        return 128 + stop.signum
    except SystemExit as stop:
        # typer ends the process itself when printing help to a reader that has left.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        return 0
    finally:
        _handle(before)
        # The interpreter's own last flush would print what the border has said already.
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            _drop_stdout()


def _open_streams() -> None:
    """Let no other file take the place of a stream that is closed, and let each read and write all that there is."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the next file that is opened would get the number, and whatever C libraries print
            os.open(os.devnull, os.O_RDWR)
        with contextlib.suppress(OSError):  # another process that shares it may have set it otherwise
            os.set_blocking(descriptor, True)
    # Unbuffered (PYTHONUNBUFFERED, `python -u`), a write to a full disk may be short and raise nothing.
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        sys.stdout = open(  # noqa: SIM115
            sys.stdout.fileno(), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, closefd=False
        )


def _one_line(error: typer.TyperException, args: list[str]) -> str:
    """typer's words for wrong usage as one sentence, and where the right usage stands."""
    text = " ".join(error.format_message().split()).replace("Value error, ", "")
    text = text if text.endswith((".", "?", "!")) else f"{text}."
    # An option without its value brings no context.
    command = getattr(getattr(error, "ctx", None), "command_path", " ".join(["vae", *args[:1]]))
    return f"{text} See '{command} --help'."


def _not_loaded(error: Exception) -> str:
    """The dynamic loader's words as one sentence, and a remedy."""
    # numpy's own words are a page of advice; what happened is their cause.
    words = " ".join(str(error.__cause__ or error).split()).rstrip(".")
    if "failed to map segment" in words:  # glibc's, for a limit on memory, and for a file system without programs
        return f"{words}. Free memory, or allow programs in its folder."
    return f"{words}. Install vaecli anew, in an environment of its own."


def _handle(handlers: Mapping[signal.Signals, Any]) -> None:
    """Set handlers of signals; one that is ignored (nohup, `&` in a script) stays ignored."""
    for signum, handler in handlers.items():
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, handler)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Within the block a signal raises Interrupted, so that a service can clean up.

    Only the first one: a terminal that closes may well send two. A second Ctrl-C is a person's, and
    ends the process where it is; no file is ever half written under its name.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        _handle(dict.fromkeys(SIGNALS, lambda signum, frame: None) | {signal.SIGINT: signal.SIG_DFL})
        raise Interrupted(signum)

    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    _handle(dict.fromkeys(SIGNALS, interrupt))
    try:
        yield
    finally:
        _handle(before)


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail either."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, sys.stdout.fileno())
            os.close(descriptor)


@contextlib.contextmanager
def observer(quiet: bool, bars: bool = True) -> Iterator[Observer]:
    """A service at work: signals raise Interrupted, and people hear of its progress.

    They see bars on a terminal (unless the answer may run across it), lines elsewhere, or nothing.
    """
    bars = bars and _has_the_terminal()
    speaking = Observer() if quiet else _Bars() if bars else _Lines()
    with _signals_raise():
        try:
            yield speaking
        finally:
            speaking.close()


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
            self._progress.console.print(_printable(text), soft_wrap=True)

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
