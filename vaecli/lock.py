"""One training at a time in a run folder: a lock that the kernel lets go when the process dies."""

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vaecli.errors import VaeError
from vaecli.files import reason

LOCK = ".lock"
# What file systems without locks answer; on macOS the last two differ.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextlib.contextmanager
def lock_folder(folder: str, note: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """The folder, made if it is missing, for this process alone until the block ends or the process dies.

    Yields a function that raises VaeError once the folder is no longer this process's own: removed,
    or another's. The kernel locks the file `.lock` in the folder, which names the process and is
    gone after the block, as are the folders made here that stay empty. A folder that cannot be
    written needs no lock; of one that cannot be locked `note` hears.

    Raises VaeError naming the other process if there is one, or if the system refuses.
    """
    path, descriptor = Path(folder), None
    try:
        made = list(itertools.takewhile(lambda part: not part.exists(), (path, *path.parents)))
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            descriptor = _lock(path / LOCK, folder, note)
    except OSError as error:  # of the folder or its lock, which another user's killed training may have left
        raise VaeError(f"Cannot use {error.filename or folder}: {reason(error)}. Choose another -o.") from error

    def check() -> None:
        if descriptor is not None and not _is_at(path / LOCK, descriptor):
            raise VaeError(
                f"{folder} was moved, removed or replaced during the training. If moved, go on there with --resume."
            )

    try:
        yield check
    finally:
        with contextlib.suppress(OSError):
            # What came in the place of the folder, though it may be empty, is another's.
            if descriptor is not None and _is_at(path / LOCK, descriptor):
                os.unlink(path / LOCK)  # still locked, so nobody else holds it
                for part in made:
                    part.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path, folder: str, note: Callable[[str], None]) -> int:
    """A descriptor of the lock file, locked. Raises VaeError if another process holds it."""
    from filelock import lock_descriptor

    with contextlib.ExitStack() as undo:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        undo.callback(os.close, descriptor)
        try:
            if not lock_descriptor(descriptor, blocking=False):
                owner = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "another process"
                raise VaeError(f"{folder} is in use by {owner}. Wait until it ends, or use another -o.")
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            note(f"The file system of {folder} has no locks: keep other trainings out of it yourself.")
        if _is_at(path, descriptor):
            if (found := os.pread(descriptor, 100, 0)) and not found.startswith(b"process "):
                raise VaeError(f"{path} is not of a training. Remove it if nothing needs it, or use another -o.")
            with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
            undo.pop_all()
            return descriptor
    return _lock(path, folder, note)  # its last owner removed it after we had opened it


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False
