"""Files are written whole or not at all, and read only when they are what they should be."""

import contextlib
import errno
import fcntl
import io
import os
import stat
import time
from pathlib import Path

import pytest

from vaecli.errors import VaeError
from vaecli.files import (
    LEFTOVER,
    open_folder,
    open_output,
    open_whole,
    read_regular,
    write_whole,
)


def test_what_takes_a_name_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut leaves an empty file under the name, or no name."""
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    write_whole(tmp_path / "file", b"bytes")
    assert steps == ["file", "name", "folder"]
    steps.clear()
    with open_folder(str(tmp_path / "folder"), lambda path: False) as put:
        put("a", b"a")
        put("b", b"b")
    assert steps == ["file", "file", "name", "name", "folder"]


def test_the_disk_is_the_drive_and_not_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS that takes a call of its own, which some shares refuse."""
    calls: list[int] = []

    def control(descriptor: int, command: int) -> None:
        calls.append(command)
        raise OSError

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    write_whole(tmp_path / "file", b"bytes")
    assert calls == [51, 51]  # of the file and its folder
    assert (tmp_path / "file").read_bytes() == b"bytes"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def half_write() -> None:
        with open_whole(target) as stream:
            stream.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        half_write()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_no_new_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    def fail(opened: contextlib.AbstractContextManager[object]) -> None:
        with opened:
            raise KeyError

    for opened in (open_output(str(tmp_path / "a/b/c/file")), open_folder(str(tmp_path / "a/b/c"), lambda path: False)):
        with pytest.raises(KeyError):
            fail(opened)
        assert os.listdir(tmp_path / "a") == []


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A file-size limit is a disk that is full, for one process."""
    import resource
    import signal

    target, limits = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(VaeError, match=r"Cannot write .*file: File too large"):
            write_whole(target, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []


def test_mode_is_that_of_a_plain_open(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        (tmp_path / "plain").open("w").close()
        write_whole(tmp_path / "ours", b"")
    finally:
        os.umask(previous)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")}
    assert modes["ours"] == modes["plain"] == 0o640
    (tmp_path / "ours").chmod(0o600)
    write_whole(tmp_path / "ours", b"again")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o600


def test_a_share_that_refuses_modes_takes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refused)
    for content in (b"first", b"second"):
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content


def test_a_folder_that_cannot_be_opened_takes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    write_whole(tmp_path / "file", b"there")
    assert (tmp_path / "file").read_bytes() == b"there"


def test_what_killed_commands_left_goes_after_a_day(tmp_path: Path) -> None:
    hour = 3600
    for name, age in ((f".vae-{'0' * 16}.tmp", 25), (f".vae-{'1' * 16}.tmp", 23), (".vae-theirs", 1000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00000.png").touch()
        os.utime(tmp_path / name, times=(time.time() - age * hour,) * 2)
    link = f".vae-{'2' * 16}.tmp"
    (tmp_path / link).symlink_to(".vae-theirs")
    os.utime(tmp_path / link, times=(0, 0), follow_symlinks=False)
    assert fill(tmp_path, "", "a") == {"a", f".vae-{'1' * 16}.tmp", ".vae-theirs", link}
    assert (tmp_path / ".vae-theirs/00000.png").exists()


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_device_is_written_straight() -> None:
    write_whole("/dev/null", b"bytes")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("target", ["missing/file", ".", "file/file"])
def test_unwritable_targets_are_expected_errors(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VaeError, match="Cannot write"):
        write_whole(tmp_path / target, b"")
    assert os.listdir(tmp_path) == ["file"]


def test_an_output_makes_its_folders_or_takes_a_stream(tmp_path: Path) -> None:
    with open_output(str(tmp_path / "a/b/file")) as stream:
        stream.write(b"bytes")
    assert (tmp_path / "a/b/file").read_bytes() == b"bytes"

    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(VaeError, match="standard output: No space left"), open_output(Full()) as stream:
        stream.write(b"bytes")


def test_a_part_of_a_file_tells_whose_it_is(tmp_path: Path) -> None:
    """Also that of a name as long as a name may be."""
    for name in ("check10.safetensors", "𐌀" * 63):
        with open_whole(tmp_path / name):
            (part,) = os.listdir(tmp_path)
            match = LEFTOVER.fullmatch(part)
            assert match
            assert match[1] == name[:50]
        (tmp_path / name).unlink()


def test_reading_takes_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(bytes(11))
    (tmp_path / "circle").symlink_to("circle")
    cases = {
        "fifo": "regular file",
        "large": "11 bytes",
        ".": "folder",
        "none": "exist",
        "circle": "links",
        "a\0": "null",
    }
    for name, words in cases.items():
        with pytest.raises(VaeError, match=words):
            read_regular(f"{tmp_path}/{name}", limit=10)
    (tmp_path / "link").symlink_to("large")
    assert read_regular(tmp_path / "link", limit=11) == bytes(11)


def fill(folder: Path, ours: str, *names: str) -> set[str]:
    """Fill the folder; what it holds then. The name 'stop' ends the filling early."""
    with open_folder(str(folder), lambda path: os.path.basename(path) in ours) as put:
        for name in names:
            if name == "stop":
                raise RuntimeError
            put(name, name.encode())
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_filled_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "deep/new"
    with pytest.raises(RuntimeError):
        fill(folder, "", "a", "stop")
    assert not folder.exists()
    assert fill(folder, "", "a", "b") == {"a", "b"}
    assert (folder / "b").read_bytes() == b"b"
    assert fill(folder, "b", "c") == {"a", "c"}  # b was ours, and belongs to the last filling
    with pytest.raises(VaeError, match="not made by this command"):
        fill(folder, "", "d", "a")
    assert {path.name for path in folder.iterdir()} == {"a", "c"}


def test_two_that_fill_a_folder_at_once_remove_the_same_files(tmp_path: Path) -> None:
    assert fill(tmp_path, "", "a") == {"a"}

    def is_ours(path: str) -> bool:
        (tmp_path / "a").unlink(missing_ok=True)  # as the other one does
        return path.endswith("/a")

    with open_folder(str(tmp_path), is_ours) as put:
        put("b", b"b")
    assert os.listdir(tmp_path) == ["b"]
