"""What most commands begin with: a checkpoint on a device, and a split of a data set."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch

from vaecli import checkpoint, data, engine
from vaecli.backgrounds import Backgrounds
from vaecli.catalog import NAMED
from vaecli.errors import DataError
from vaecli.files import reason
from vaecli.folders import image_roots
from vaecli.metadata import Metadata
from vaecli.model import ConvVAE
from vaecli.run import find_checkpoint
from vaecli.runtime import be_exact, choose_device, memory_errors
from vaecli.services import Observer

MAX_LISTING = 2**28  # bytes of a list of paths


@dataclass(frozen=True)
class Opened:
    """A checkpoint, ready for use."""

    path: str
    model: ConvVAE
    metadata: Metadata
    device: torch.device

    def seed(self, chosen: int | None) -> int:
        """The seed chosen by the user, else the checkpoint's."""
        return self.metadata.training.seed if chosen is None else chosen


def read_paths(listing: BinaryIO) -> list[str]:
    """The paths in a list, one a line (Windows' line ends too), or if it has NULs, one before each.

    Raises DataError if there are none.
    """
    try:
        data = listing.read(MAX_LISTING + 1)
    except OSError as error:
        raise DataError(f"Cannot read the list of paths: {reason(error)}. Name the images as arguments.") from error
    if len(data) > MAX_LISTING:
        raise DataError(f"The list of paths has more than {MAX_LISTING:,} bytes. Give it in parts.")
    lines = data.split(b"\0") if b"\0" in data else data.replace(b"\r\n", b"\n").split(b"\n")
    paths = [os.fsdecode(path) for path in lines if path]
    if not paths:
        raise DataError("The list of paths on standard input is empty. Send one path a line, as find and ls do.")
    return paths


def open_checkpoint(path: str, device: str) -> Opened:
    """Load a weights file, or a run folder's last one. Raises CheckpointError, or VaeError for the device."""
    file, place = find_checkpoint(path), choose_device(device)
    be_exact(place)
    with memory_errors(place):
        model, metadata = checkpoint.load(file, place)
        return Opened(file, engine.prepare(model, place), metadata, place)


def open_split(
    opened: Opened, dataset: str | None, split: data.SplitName, data_dir: str | None, observer: Observer
) -> data.Split:
    """A split as `find_split` gives it; of another data set the observer hears of bright backgrounds, too."""
    found = find_split(opened, dataset, split, data_dir, observer)
    if dataset:
        note_background(dataset, [found], observer)
    return found


def find_split(
    opened: Opened, dataset: str | None, split: data.SplitName, data_dir: str | None, observer: Observer
) -> data.Split:
    """A split of `dataset`, by default of the one the checkpoint was trained on. Raises DataError.

    If a data set of the same name has other content than in training, the observer hears of it.
    """
    source = opened.metadata.data
    name = dataset or source.dataset
    if not dataset and data.is_missing(name):
        raise DataError(f"The data set of {opened.path} is not here: '{name}'. Name it with --dataset.")
    with memory_errors(opened.device):
        found = data.load(name, split, data_dir, observer.note)
    if name == source.dataset:
        if found.sha256() != (source.train_sha256 if split == "train" else source.test_sha256):
            observer.note(f"The {split} split of {name} has changed since the checkpoint was trained on it.")
        else:  # a split that lacks the last classes knows no names of theirs
            names = max(found.class_names, opened.metadata.class_names, key=len)
            found = dataclasses.replace(found, class_names=names)
    return found.numbered_as(opened.metadata.class_names) if image_roots(name) else found


def posterior_means(opened: Opened, images: torch.Tensor, observer: Observer) -> torch.Tensor:
    """The codes (N, Z), on the CPU, of uint8 images (N, 28, 28)."""
    means = []
    for _, block in engine.blocks(images):
        means.append(engine.encode(opened.model, block, opened.device).mean.cpu())
        observer.advance(len(block))
    return torch.cat(means)


def note_background(dataset: str, splits: Sequence[data.Split], observer: Observer) -> None:
    """Images of one's own are used as they are, also where white on black was meant, or where they show nothing."""
    if dataset in NAMED:
        return
    seen = Backgrounds()
    for split in splits:
        seen.add(split.images.numpy())
    how = "convert in.png -negate out.png" if image_roots(dataset) else "255 - images"
    remedy = f"They are used so; for white on black, as MNIST is, invert copies of them first ({how})."
    for text in seen.notes(remedy):
        observer.note(text)
