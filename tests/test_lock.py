"""One training at a time in a run folder."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from vaecli.errors import VaeError
from vaecli.lock import LOCK, lock_folder


def never(text: str) -> None:
    raise AssertionError(text)


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new/run"
    with lock_folder(str(folder), never) as check:
        check()
        assert os.listdir(folder) == [LOCK]
        with (
            pytest.raises(VaeError, match=f"run is in use by process {os.getpid()} on "),
            lock_folder(str(folder), never),
        ):
            never("two hold it")
        (folder / LOCK).write_bytes(b"\xff\n")  # whatever is in it
        with pytest.raises(VaeError, match="in use by \N{REPLACEMENT CHARACTER}"), lock_folder(str(folder), never):
            never("two hold it")
    assert os.listdir(tmp_path) == []  # folders that stayed empty are gone, too
    with lock_folder(str(folder), never):
        (folder / "file").touch()
    assert os.listdir(folder) == ["file"]


def test_a_lock_left_by_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 1 on another host, and a long name that would otherwise stay behind\n")
    with lock_folder(str(tmp_path), never):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"


def test_a_file_of_that_name_that_is_no_lock_stays(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("theirs\n")
    with pytest.raises(VaeError, match="not of a training"), lock_folder(str(tmp_path), never):
        never("it was taken for a lock")
    assert (tmp_path / LOCK).read_text() == "theirs\n"


def test_a_lock_that_was_taken_away_is_noticed_and_the_next_ones_left_alone(tmp_path: Path) -> None:
    with lock_folder(str(tmp_path), never) as check:
        (tmp_path / LOCK).unlink()
        with lock_folder(str(tmp_path), never) as theirs:
            with pytest.raises(VaeError, match="removed or replaced"):
                check()
            theirs()
    assert os.listdir(tmp_path) == []


def test_a_lock_that_its_owner_removes_at_that_moment_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = filelock.lock_descriptor

    def late(descriptor: int, *, blocking: bool) -> bool:
        monkeypatch.undo()
        (tmp_path / LOCK).unlink()  # opened before, and locked after
        return really(descriptor, blocking=blocking)

    monkeypatch.setattr(filelock, "lock_descriptor", late)
    with lock_folder(str(tmp_path), never) as check:
        check()
        assert os.listdir(tmp_path) == [LOCK]


def test_an_owner_whose_lock_was_taken_away_leaves_the_next_ones(tmp_path: Path) -> None:
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(lock_folder(str(tmp_path), never))
        (tmp_path / LOCK).unlink()
        theirs = second.enter_context(lock_folder(str(tmp_path), never))
        first.close()
        theirs()


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_said(answer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(filelock, "lock_descriptor", unsupported)
    heard: list[str] = []
    with lock_folder(str(tmp_path), heard.append) as check:
        check()
    assert len(heard) == 1
    assert "has no locks" in heard[0]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("elsewhere")], ids=["folder", "link"])
def test_a_lock_that_is_no_file_is_an_expected_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / LOCK)
    with pytest.raises(VaeError, match=r"Cannot use .*/\.lock: "), lock_folder(str(tmp_path), never):
        never("locked")
    assert os.listdir(tmp_path) == [LOCK]
