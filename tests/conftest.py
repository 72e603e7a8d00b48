"""Shared by the tests: a few hundred real MNIST digits, a small trained run, and the command itself."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from vaecli import data
from vaecli.cli import app
from vaecli.run import Settings
from vaecli.services import Observer
from vaecli.services.resume import Trained
from vaecli.services.train import train

DIGITS = Path(__file__).parent / "data"  # IDX: 500 training and 150 test images of MNIST
FEW = Path(__file__).parent / "few.npz"  # the first 100 and 30 of them, for tests that train often
TINY: dict[str, Any] = {"dataset": str(DIGITS), "batch_size": 50, "precision": "fp32", "device": "cpu"}

INKS = ("navy", "maroon", "darkgreen", "black", "purple", "indigo", "#333", "brown", "darkslategray", "#402000")
PAPERS = ("white", "ivory", "#f0e6d2", "#dfe8f0", "honeydew")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]

Invoke = Callable[..., Result]


class Tutorial(nn.Module):
    """The tutorial's two tables as a plain torch class that shares nothing with ours."""

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.linear1mean = nn.Linear(3136, z_dim)
        self.linear1logvar = nn.Linear(3136, z_dim)
        self.linear2 = nn.Linear(z_dim, 3136)
        self.deconv1 = nn.ConvTranspose2d(64, 64, 3, stride=2)
        self.deconv2 = nn.ConvTranspose2d(64, 32, 3, stride=2)
        self.conv3 = nn.Conv2d(32, 1, 4)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.relu(self.conv2(torch.relu(self.conv1(x)))).reshape(len(x), 3136)
        mean, logvar = self.linear1mean(h), self.linear1logvar(h)
        h = torch.relu(self.linear2(mean + torch.exp(logvar / 2) * eps)).reshape(len(x), 64, 7, 7)
        return self.conv3(torch.relu(self.deconv2(torch.relu(self.deconv1(h))))), mean, logvar


class Notes(Observer):
    """Keeps what a service notes."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture(autouse=True)
def _no_data_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds data in the developer's cache, or anything in the folder it is run from."""
    monkeypatch.setenv("VAE_DATA_DIR", str(tmp_path / "no-data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """A test draws the same numbers whatever ran before it, or a rare kink of the ReLUs would fail one now and then."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny batches are faster on one thread, and two test runs side by side do not fight."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> data.Split:
    """The 150 test digits."""
    return data.load(str(DIGITS), "test", None, lambda text: None)


@pytest.fixture
def many(digits: data.Split) -> data.Split:
    """More test images than one block holds, in `many.npz`, a data set."""
    rows = torch.arange(1100) % len(digits.images)
    images, labels = digits.images[rows], digits.labels[rows]  # type: ignore[index]
    np.savez("many.npz", images=images[:10].numpy(), test_images=images.numpy(), test_labels=labels.numpy())
    return data.Split(images, labels, digits.class_names)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of 2 epochs, z_dim 2. Do not write into it: take `run_copy`."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = train(Settings(z_dim=2, epochs=2, checkpoint_every=1, **TINY), str(folder))
    assert result is not None
    return result


@pytest.fixture(scope="session")
def ckpt(trained: Trained) -> str:
    """The run's last weights file."""
    return trained.checkpoint


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a model, z_dim 4, that draws digits, if roughly."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    settings = Settings(z_dim=4, epochs=6, lr=0.003, **(TINY | {"batch_size": 25}))
    result = train(settings, str(folder))
    assert result is not None
    return result.checkpoint


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digits 0 to 9 from a font, large, in coloured inks on tinted papers, as PNG and JPEG."""
    from matplotlib import get_data_path  # here, for plots sets what matplotlib reads on its import

    font = Path(get_data_path(), "fonts/ttf/DejaVuSans-BoldOblique.ttf")
    folder, names = tmp_path_factory.mktemp("scans"), []
    for digit, ink in enumerate(INKS):
        size = (450, 500) if digit % 2 else (1200, 1100)
        page = Image.new("RGB", size, PAPERS[digit % len(PAPERS)])
        large = ImageFont.truetype(str(font), round(0.85 * max(size)))
        ImageDraw.Draw(page).text((size[0] / 2, size[1] / 2), str(digit), fill=ink, font=large, anchor="mm")
        names.append(str(folder / f"{digit}.{'jpg' if digit % 2 else 'png'}"))
        page.save(names[-1])
    return names


@pytest.fixture
def run_copy(trained: Trained, tmp_path: Path) -> Path:
    """The trained run, to write into."""
    return shutil.copytree(Path(trained.checkpoint).parent, tmp_path / "run")


@pytest.fixture
def invoke() -> Invoke:
    """The command in this process: `invoke("test", ckpt)`, or with something on `stdin`."""

    def call(*args: object, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)

    return call


def process(
    *args: object, stdin: bytes = b"", env: dict[str, str] | None = None, **options: object
) -> "subprocess.CompletedProcess[bytes]":
    """The command as a process of its own."""
    command = [sys.executable, "-m", "vaecli", *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


@contextlib.contextmanager
def mounted(folder: Path, *what: str) -> Iterator[Path]:
    """A new folder where this is mounted; skips the test where mounting is not permitted."""
    folder.mkdir()
    mount = ["mount", *what, str(folder)]
    if (
        sys.platform != "linux"
        or shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def small_file_system(folder: Path, size: str) -> "contextlib.AbstractContextManager[Path]":
    """A file system of its own in a new folder, of so many bytes."""
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


def assert_one_line(stderr: str | bytes) -> str:
    """The error line, which must be all that stderr has."""
    text = stderr.decode() if isinstance(stderr, bytes) else stderr
    assert text.startswith("Error: ")
    assert text.endswith((".\n", "'.\n")), text
    assert text.count("\n") == 1, text
    return text
