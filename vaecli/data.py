"""Data sets as tensors: a split is one uint8 tensor of images, and one of labels if it has any.

`--dataset` is the name of a known set (see `sources`), a folder of IDX files, a folder of images,
or a `.npz`. Whatever it is, a split comes out as uint8 (N, 28, 28).
"""

import hashlib
import math
import os
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy
from torch import Tensor

from vaecli.catalog import IDX_FILES, NAMED
from vaecli.errors import DataError
from vaecli.files import open_regular
from vaecli.folders import find_file, image_roots, list_images
from vaecli.idx import IdxFile, most_unpacked, read_values
from vaecli.images import SIDE, Pixels, conversion_note, fit_all, read_images
from vaecli.runtime import generator
from vaecli.sources import locate, read_with_torchvision

SplitName = Literal["train", "test"]
Note = Callable[[str], None]

MAX_LABEL = 9_999


@dataclass(frozen=True)
class Split:
    """One split: images uint8 (N, 28, 28), labels int64 (N,) or none, and the names of the classes."""

    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]

    def pick(self, count: int, seed: int) -> "Split":
        """`count` images at random: a folder's images are sorted by class, so the first ones are alike."""
        rows = torch.randperm(len(self.images), generator=generator(seed, "images"))[:count]
        return Split(self.images[rows], None if self.labels is None else self.labels[rows], self.class_names)

    def only(self, label: str, where: str) -> "Split":
        """The images of one class, given by its name in any case, or its number. Raises DataError if there are none."""
        if self.labels is None:
            raise DataError(f"The images of {where} have no labels to choose by. Leave out --like.")
        label = unicodedata.normalize("NFC", label)  # as class names are
        number = int(label) if label.isascii() and label.isdigit() and len(label) < 10 else -1
        named = [place for place, name in enumerate(self.class_names) if name.casefold() == label.casefold()]
        named.sort(key=lambda place: self.class_names[place] != label)  # `a` may be a class beside `A`
        wanted = [*named, number][0]
        rows = torch.nonzero(self.labels == wanted).flatten()
        if not len(rows):
            known = [self.class_names[number] for number in sorted(set(self.labels.tolist()))]
            names = ", ".join([*known[:30], *(["..."] if len(known) > 30 else [])])
            raise DataError(f"No images of {where} have the label '{label}'. Choose one of {names}.")
        return Split(self.images[rows], self.labels[rows], self.class_names)

    def numbered_as(self, class_names: tuple[str, ...]) -> "Split":
        """The same images, with the labels of these classes if all of its own are among them."""
        if self.labels is None or not set(self.class_names) <= set(class_names):
            return self
        numbers = torch.tensor([class_names.index(name) for name in self.class_names])
        return Split(self.images, numbers[self.labels], class_names)

    def sha256(self) -> str:
        """A digest over shape, pixels and labels."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().data)
        return digest.hexdigest()


def is_missing(dataset: str) -> bool:
    """Whether it is neither the name of a set nor a path that leads anywhere."""
    return dataset not in NAMED and not os.path.exists(dataset)


def load(dataset: str, split: SplitName, data_dir: str | None, note: Note) -> Split:
    """One split of a data set; a named set that is not there yet is downloaded.

    `note` hears of downloads, of converted images and of files that are none. Raises DataError if the
    data set does not exist, cannot be read, or has no images in this split.
    """
    if split not in ("train", "test"):
        raise DataError(f"There is no split '{split}'. Use train or test.")
    if is_missing(dataset):
        raise DataError(
            f"No data set '{dataset}': no such path, and none of the names {', '.join(NAMED)}. Check --dataset."
        )
    if dataset in NAMED:
        found = _load_named(dataset, split, data_dir, note)
    elif os.path.isdir(dataset):
        found = _load_folder(dataset, split, note)
    elif os.path.isfile(dataset):
        found = _load_npz(dataset, split)
    else:
        raise DataError(f"{dataset} is neither a folder nor a regular file. Check --dataset.")
    if not len(found.images):
        raise DataError(f"The {split} split of {dataset} has no images. Use another --dataset.")
    return found


def _load_named(name: str, split: SplitName, data_dir: str | None, note: Note) -> Split:
    known = NAMED[name]
    folder = locate(name, split, data_dir, note)
    if known.files:
        images, labels = _read_idx_pair(folder, known.files[split], note)
    else:
        pixels, classes = read_with_torchvision(known, folder, split)
        images, labels = _fitted(pixels, note), classes.astype(np.int64)
    labels = labels - known.first_label
    if known.transposed:
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(known.class_names):
        raise DataError(f"The labels in {folder} are not those of {name}. Check --data-dir.")
    return Split(torch.from_numpy(images), torch.from_numpy(labels), known.class_names)


def _read_idx_pair(folder: Path, names: tuple[str, str], note: Note) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Images uint8 (N, 28, 28) and labels int64 (N,) of one split."""
    for name in names:
        if find_file(folder, name) is None:
            raise DataError(f"{folder} has no {name}, gzipped or not. Put it there.")
    image_path, label_path = (cast(Path, find_file(folder, name)) for name in names)
    images, labels = IdxFile(image_path).read(), IdxFile(label_path).read()
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(f"{image_path} holds no images: {images.dtype} {images.shape}. Get the file anew.")
    if labels.ndim == 2:  # QMNIST: the class, then seven columns of provenance
        labels = labels[:, 0]
    if labels.shape != images.shape[:1]:
        raise DataError(f"{label_path} holds {labels.shape} labels for {len(images):,} images. Get the files anew.")
    return _fitted(images, note), labels.astype(np.int64)


def _fitted(images: Pixels, note: Note) -> Pixels:
    """Images of any one size as uint8 (N, 28, 28); `note` hears if they had to be converted."""
    if images.shape[1:] != (SIDE, SIDE) and len(images):
        note(conversion_note(len(images), len(images), f"images of {images.shape[2]}x{images.shape[1]}"))
    return fit_all(images)


def _load_folder(folder: str, split: SplitName, note: Note) -> Split:
    roots = image_roots(folder)
    if not roots:
        images, labels = _read_idx_pair(Path(folder), IDX_FILES[split], note)
        return _labelled(images, labels, folder)
    if len(roots) == 2:
        # Each load lists both; of what it passes over a split's own speaks.
        listed = {
            name: list_images(root, note if name == split else lambda text: None)
            for name, root in zip(("train", "test"), roots, strict=True)
        }
    else:
        if len(own := [name for name in ("train", "test") if os.path.isdir(os.path.join(folder, name))]) == 1:
            other = "test" if own == ["train"] else "train"
            note(f"{folder} has {own[0]}/ and no {other}/, so its folders are taken for classes, not for splits.")
        rows = list_images(folder, note)
        listed = {name: [rows[i] for i in _rows_of(name, len(rows), folder)] for name in ("train", "test")}
    # Both splits must agree on what a label means, even if one of them lacks a class.
    names = tuple(sorted({name for rows in listed.values() for _, name in rows if name is not None}))
    rows = listed[split]
    images, converted = read_images([path for path, _ in rows])
    if converted:
        note(conversion_note(converted, len(rows), "training images" if split == "train" else "test images"))
    if not names:
        return Split(torch.from_numpy(images), None, ())
    for path, name in rows:
        if name is None:
            raise DataError(
                f"Some images of {folder} lie in folders of classes, but {path} does not. Move it into one."
            )
    if len(names) > MAX_LABEL + 1:
        raise DataError(f"{folder} has {len(names):,} classes. Use at most {MAX_LABEL + 1:,}.")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[str(name)] for _, name in rows], np.int64)
    return Split(torch.from_numpy(images), torch.from_numpy(labels), names)


def _rows_of(split: str, count: int, where: str) -> Sequence[int]:
    """Without splits of its own, every tenth image of a data set is the test split."""
    if count < 10:
        raise DataError(
            f"{where} has no test split and too few images for one ({count}). Give at least 10, or both splits."
        )
    return [row for row in range(count) if (row % 10 == 9) == (split == "test")]


def _load_npz(path: str, split: SplitName) -> Split:
    with open_regular(path, DataError) as (stream, size):
        try:
            with zipfile.ZipFile(stream) as archive, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of headers that Python 2 wrote, or no one
                held = set(archive.namelist())
                own = "test_images.npy" in held
                prefix = "test_" if own and split == "test" else ""
                if f"{prefix}images.npy" not in held:
                    raise DataError(f"{path} has no array 'images'. Save it with numpy.savez(path, images=images).")
                images = _read_npy(archive, f"{prefix}images", path, size)
                labels = _read_npy(archive, f"{prefix}labels", path, size) if f"{prefix}labels.npy" in held else None
        except (DataError, MemoryError):
            raise
        # zipfile, its decompressors and numpy's header parser raise a dozen types on damaged files.
        except Exception as error:
            raise DataError(
                f"{path} is no data set: a damaged .npz, or none at all ({error}). Check --dataset."
            ) from error
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE):
        remedy = "Make it uint8 (N, 28, 28) with greys of 0 to 255."
        raise DataError(f"'{prefix}images' in {path} is {images.dtype} {images.shape}. {remedy}")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]):
        raise DataError(
            f"'{prefix}labels' in {path} is {labels.dtype} {labels.shape}. Make it integers ({len(images)},)."
        )
    if not own:
        rows = _rows_of(split, len(images), path)
        images, labels = images[rows], None if labels is None else labels[rows]
    if labels is None:
        return Split(torch.from_numpy(images), None, ())
    return _labelled(images, labels.astype(np.int64), path)


def _read_npy(archive: zipfile.ZipFile, name: str, path: str, size: int) -> npt.NDArray[Any]:
    """One array of a `.npz` of `size` bytes: as numpy writes it, never pickled, and no larger than it says."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"'{name}' in {path} is packed in an unusual way. Save it with numpy.savez.")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        held = min(member.file_size, size if member.compress_type == zipfile.ZIP_STORED else most_unpacked(size))
        if (
            dtype.hasobject
            or not dtype.itemsize
            or min(shape, default=0) < 0
            or dtype.itemsize * math.prod(shape) > held
        ):
            raise DataError(f"'{name}' in {path} is no plain array that fits its file. Save it anew.")
        values = read_values(cast(BinaryIO, stream), dtype, shape[::-1] if fortran else shape)
        if stream.read(1):  # at the end zipfile compares its checksum, too
            raise DataError(f"'{name}' in {path} holds more than its header claims. Save it anew.")
        return np.ascontiguousarray(values.T if fortran else values)


def _labelled(images: Pixels, labels: npt.NDArray[np.int64], where: str) -> Split:
    """A split whose classes have no names but their numbers."""
    if len(labels) and not 0 <= labels.min() <= labels.max() <= MAX_LABEL:
        raise DataError(f"Labels in {where} run from {labels.min()} to {labels.max()}. Use 0 to {MAX_LABEL:,}.")
    names = tuple(str(label) for label in range(int(labels.max()) + 1)) if len(labels) else ()
    return Split(torch.from_numpy(images), torch.from_numpy(labels), names)
