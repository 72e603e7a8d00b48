"""Files in and out: written whole or not at all, read only when they are what they should be."""

import contextlib
import fcntl
import itertools
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vaecli.errors import VaeError

# What a write that was killed leaves behind; the group begins with the target's name.
LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
# Folders in which commands make several files, and the seconds untouched after which one was left by a killed command.
WORK, ABANDONED = re.compile(r"\.vae-[0-9a-f]{16}\.tmp"), 86_400
_REMEDY = "Free some space, fix the permissions or choose another place or name."


def reason(error: Exception) -> str:
    """What failed in the system's or a library's own words, without Python's error number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextlib.contextmanager
def _making(folder: Path) -> Iterator[None]:
    """The folder, made if it is missing; what was made and is empty after the block is removed again."""
    made = list(itertools.takewhile(lambda part: not part.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # it holds files now
            for part in made:
                part.rmdir()


@contextlib.contextmanager
def open_whole(path: str | os.PathLike[str], *, parents: bool = False) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` when the block ends well, and not at all otherwise.

    The bytes go to a temporary file beside the target, reach the disk, and take the target's name
    in one step; the folder is synced, so the new name survives a power cut. The mode is the one a
    plain `open` gives. A link is followed; a target that exists and is no regular file
    (`/dev/null`, a pipe) is written straight. With `parents`, missing folders are made.

    Raises VaeError where the system refuses, a full disk in the middle of the block included; only
    BrokenPipeError passes.
    """
    try:
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and not stat.S_ISREG(mode):
            with open(path, "wb") as stream:
                yield stream
            return
        target = Path(os.path.realpath(path))
        # 50 characters are at most 200 bytes, and a name may have 255.
        temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.tmp")
        with _making(target.parent) if parents else contextlib.nullcontext():
            try:
                with open(temporary, "xb") as stream:
                    if mode is not None and os.fstat(stream.fileno()).st_mode != mode:  # some shares refuse chmod
                        os.fchmod(stream.fileno(), stat.S_IMODE(mode))
                    yield stream
                    stream.flush()
                    _sync(stream.fileno())
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _sync_folder(target.parent)
    except BrokenPipeError:  # the target is a pipe, whose reader may leave early
        raise
    except OSError as error:
        raise VaeError(f"Cannot write {os.fspath(path)}: {reason(error)}. {_REMEDY}") from error


def write_whole(path: str | os.PathLike[str], data: bytes, *, parents: bool = False) -> None:
    """Put `data` at `path`, whole or not at all (see `open_whole`)."""
    with open_whole(path, parents=parents) as stream:
        stream.write(data)


@contextlib.contextmanager
def open_output(output: str | BinaryIO) -> Iterator[BinaryIO]:
    """What a command answers with: a path, written whole and its folders made, or an open stream.

    Raises VaeError if the system refuses; only BrokenPipeError passes.
    """
    if isinstance(output, str):
        with open_whole(output, parents=True) as stream:
            yield stream
        return
    try:
        yield output
        output.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise VaeError(f"Cannot write to standard output: {reason(error)}. Write somewhere else.") from error


@contextlib.contextmanager
def open_folder(folder: str, is_ours: Callable[[str], bool]) -> Iterator[Callable[[str, bytes], None]]:
    """Yields `put(name, data)`; the files appear in the folder when the block ends well, and not at all otherwise.

    Each appears whole, one after the other. Those that an earlier block put there, which
    `is_ours(path)` knows, are replaced by the new ones; other files stay. Raises VaeError where the
    system refuses, or for a name that is taken by another's file.
    """
    target = Path(os.path.realpath(folder))
    names: list[str] = []

    def put(name: str, data: bytes) -> None:
        if os.path.lexists(target / name) and not is_ours(str(target / name)):
            raise VaeError(f"{os.path.join(folder, name)} is there, and not made by this command. Use another folder.")
        names.append(name)
        (work / name).write_bytes(data)

    try:
        with workplace(target) as work:
            yield put
            earlier = {name for name in os.listdir(target) if is_ours(str(target / name))}
            for name in names:  # all at the end: one by one as they are written takes 15 ms a file
                with open(work / name, "rb") as stream:
                    os.fsync(stream.fileno())
            for name in names:
                os.replace(work / name, target / name)
            for name in earlier.difference(names):
                (target / name).unlink(missing_ok=True)  # another command may be filling the folder, too
        _sync_folder(target)
    except OSError as error:
        raise VaeError(f"Cannot write into {folder}: {reason(error)}. {_REMEDY}") from error


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, which is made if it is missing, gone after the block as is what was made and is empty.

    Those that commands, killed a day ago or earlier, left there go first.
    """
    work = folder / f".vae-{secrets.token_hex(8)}.tmp"
    with _making(folder):
        _remove_abandoned(folder)
        try:
            work.mkdir(0o700)
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    for name in filter(WORK.fullmatch, os.listdir(folder)):
        with contextlib.suppress(OSError):
            if time.time() - os.lstat(folder / name).st_mtime > ABANDONED:
                shutil.rmtree(folder / name)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)
    if (barrier := getattr(fcntl, "F_FULLFSYNC", None)) is not None:  # on macOS fsync leaves bytes in the drive's cache
        with contextlib.suppress(OSError):  # network shares have none
            fcntl.fcntl(descriptor, barrier)


def _sync_folder(folder: Path) -> None:
    # Some file systems cannot sync a folder, and some folders cannot be read; the file is there all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str], error: type[VaeError]) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file (links followed), open for reading, and its size in bytes.

    Raises `error` for anything else, and for what fails in the block. What is judged is what is
    open, so nothing can be exchanged in between. The file is opened without waiting, so that a
    pipe with no writer is refused and not waited for.
    """
    name = os.fspath(path) or "''"
    try:
        try:
            stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (closed below)
        except ValueError as failure:  # a name that no file can have
            raise OSError(str(failure)) from failure
        with stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{name} is not a regular file. Copy its bytes to one first.")
            yield stream, status.st_size
    except FileNotFoundError as missing:
        raise error(f"{name} does not exist. Check the path.") from missing
    except IsADirectoryError as folder:
        raise error(f"{name} is a folder. Name a file in it.") from folder
    except OSError as failure:
        raise error(f"Cannot read {name}: {reason(failure)}. Check the path and its permissions.") from failure


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file (see `open_regular`) of at most `limit` bytes. Raises VaeError."""
    with open_regular(path, VaeError) as (stream, size):
        if size > limit:
            raise VaeError(f"{os.fspath(path)} has {size:,} bytes, more than {limit:,}. Use a smaller file.")
        return stream.read(size)
