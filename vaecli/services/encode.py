"""`vae encode`: images to codes, as a table."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from vaecli import data, engine
from vaecli.backgrounds import Backgrounds, inverted
from vaecli.catalog import NAMED
from vaecli.codes import Codes, Format, Key, write_codes
from vaecli.errors import DataError
from vaecli.files import open_output
from vaecli.folders import image_roots, list_images
from vaecli.idx import IdxFile, is_idx
from vaecli.images import SIDE, Pixels, conversion_note, fit_all, read_images
from vaecli.runtime import NOISE_BLOCK, memory_errors
from vaecli.services import Observer
from vaecli.services.inputs import Opened, find_split, open_checkpoint, read_paths
from vaecli.services.outputs import Written, guard_output
from vaecli.text import utf8_name

# Images and what the table says of them: (uint8 images (B, 28, 28), keys, labels).
_Block = tuple[Tensor, list[int] | list[str], list[int | None]]


def encode(
    checkpoint: str,
    inputs: Sequence[str | BinaryIO],
    *,
    output: str | BinaryIO,
    form: Format,
    split: data.SplitName = "test",
    sample: bool = False,
    invert: bool = False,
    seed: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Written:
    """Write the posterior's mean and log-variance of every image, and with `sample` one draw of z.

    Without `inputs` the images are those of a split, with its labels. Inputs are image files and
    folders of them (the key is the path; a subfolder that is named like a class of the checkpoint
    gives the label), or IDX files of images (the key counts on through all of them, no labels). An
    open stream among them stands for the paths in it. With `invert` black and white are swapped, and
    paper becomes wholly black; the observer hears of pictures with a bright background.

    Raises CheckpointError, DataError, or VaeError if the output cannot be written.
    """
    observer, inputs = observer or Observer(), [inputs] if isinstance(inputs, str) else inputs
    opened = open_checkpoint(checkpoint, device)
    paths = [path for each in inputs for path in ([each] if isinstance(each, str) else read_paths(each))]
    streams = [each for each in inputs if not isinstance(each, str)]
    guard_output(output, opened.path, dataset or opened.metadata.data.dataset, *streams, *paths)
    key: Key = "index"
    if not paths:
        found = find_split(opened, dataset, split, data_dir, observer)
        names, count, blocks = found.class_names, len(found.images), _split_blocks(found)
    else:
        names = opened.metadata.class_names
        key, count, blocks = _input_blocks(paths, names, observer.note)
    if invert:
        blocks = ((torch.from_numpy(inverted(images.numpy())), keys, labels) for images, keys, labels in blocks)
    if paths or (dataset and dataset not in NAMED):
        blocks = _with_notes(blocks, invert, observer.note)
    if not count:
        raise DataError("There are no images to encode. Name files that hold some.")
    observer.begin("encode", count)
    with memory_errors(opened.device), open_output(output) as stream:
        coded = _coded(opened, blocks, opened.seed(seed) if sample else None, observer)
        write_codes(stream, form, coded, key, names)
    return Written.to(output)


def _coded(opened: Opened, blocks: Iterable[_Block], seed: int | None, observer: Observer) -> Iterator[Codes]:
    """The codes of each block; with a seed, the draws too."""
    for number, (images, keys, labels) in enumerate(blocks):
        posterior = engine.encode(opened.model, images, opened.device)
        tables = list(posterior) if seed is None else [*posterior, engine.sample_posterior(posterior, seed, number)]
        yield Codes(keys, labels, *(table.cpu().numpy() for table in tables))
        observer.advance(len(images))


def _with_notes(blocks: Iterator[_Block], invert: bool, note: Callable[[str], None]) -> Iterator[_Block]:
    """The blocks; at their end `note` hears of images that are empty or on a bright background, also if inverted."""
    seen = Backgrounds()
    for images, keys, labels in blocks:
        seen.add(images.numpy(), keys)
        yield images, keys, labels
    after = "They are so after --invert: encode them without it."
    before = "If the model was trained on white on black, as MNIST is, use --invert."
    for text in seen.notes(after if invert else before):
        note(text)


def _split_blocks(split: data.Split) -> Iterator[_Block]:
    for number, images in engine.blocks(split.images):
        start = number * NOISE_BLOCK
        keys = list(range(start, start + len(images)))
        labels = None if split.labels is None else split.labels[start : start + len(images)].tolist()
        yield images, keys, labels or [None] * len(images)


def _input_blocks(
    inputs: Sequence[str], class_names: Sequence[str], note: Callable[[str], None]
) -> tuple[Key, int, Iterator[_Block]]:
    """The key column's name, the number of images, and the blocks. Raises DataError."""
    idx = [path for path in inputs if is_idx(path)]
    if idx and len(idx) < len(inputs):
        raise DataError("IDX files and images do not go into one table. Encode them separately.")
    if idx:
        files = [IdxFile(path) for path in idx]
        for file in files:
            if len(file.shape) != 3:
                raise DataError(f"{file.path} holds no images: its shape is {file.shape}. Use an images-idx3 file.")
        return "index", sum(file.shape[0] for file in files), _idx_blocks(files, note)
    rows: list[tuple[str, str | None]] = []
    for path in inputs:
        found = _images_in(path, note) if os.path.isdir(path) else [(path, None)]
        if not found or path.endswith(".npz") or (path in NAMED and not os.path.exists(path)):
            raise DataError(f"{path} holds no image files. Name such or IDX files, or give a data set with --dataset.")
        rows += found
    labels = {name: label for label, name in enumerate(class_names)}
    return "path", len(rows), _file_blocks(rows, labels, note)


def _images_in(folder: str, note: Callable[[str], None]) -> list[tuple[str, str | None]]:
    """As `list_images`; of a data set with `train/` and `test/` the classes are the folders below these."""
    roots = sorted(image_roots(os.path.join(folder, "")))  # with its slash, it is the name of no known set
    return [image for root in (roots if len(roots) > 1 else [folder]) for image in list_images(root, note)]


def _file_blocks(
    rows: list[tuple[str, str | None]], labels: dict[str, int], note: Callable[[str], None]
) -> Iterator[_Block]:
    converted = 0
    for start in range(0, len(rows), NOISE_BLOCK):
        part = rows[start : start + NOISE_BLOCK]
        paths = [path for path, _ in part]
        images, changed = read_images(paths)
        converted += changed
        yield (
            torch.from_numpy(images),
            list(map(utf8_name, paths)),
            [None if name is None else labels.get(name) for _, name in part],
        )
    if converted:
        note(conversion_note(converted, len(rows), "images"))


def _idx_blocks(files: list[IdxFile], note: Callable[[str], None]) -> Iterator[_Block]:
    """The images of IDX files one after the other, a block at a time."""
    start = converted = 0
    for file in files:
        for block in file.blocks(NOISE_BLOCK):
            if block.dtype != np.uint8:
                raise DataError(f"{file.path} holds {block.dtype} values, no images. Use an images-idx3-ubyte file.")
            images = torch.from_numpy(fit_all(cast(Pixels, block)))
            yield images, list(range(start, start + len(images))), [None] * len(images)
            start += len(images)
        converted += file.shape[0] if file.shape[1:] != (SIDE, SIDE) else 0
    if converted:
        note(conversion_note(converted, start, "images"))
