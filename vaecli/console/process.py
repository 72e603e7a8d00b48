"""The command as a process: its streams, its signals, and the border where failures become a line and an exit code."""

import contextlib
import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, ParamSpec

import typer

from vaecli.console import tell
from vaecli.errors import Interrupted, VaeError
from vaecli.files import reason

Arguments = ParamSpec("Arguments")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A write without room: on the disk, in the quota, under the limit on file sizes; or to a disk that fails.
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


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
def signals_raise() -> Iterator[None]:
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
