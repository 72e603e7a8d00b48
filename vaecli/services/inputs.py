"""What most commands begin with: a checkpoint on a device, and a split of a data set."""

from dataclasses import dataclass

import torch

from vaecli import checkpoint, data, engine
from vaecli.model import ConvVAE
from vaecli.run import find_checkpoint
from vaecli.runtime import be_exact, choose_device
from vaecli.services import Observer


@dataclass(frozen=True)
class Opened:
    """A checkpoint, ready for use."""

    path: str
    model: ConvVAE
    metadata: checkpoint.Metadata
    device: torch.device

    def seed(self, chosen: int | None) -> int:
        """The seed chosen by the user, else the checkpoint's."""
        return self.metadata.training.seed if chosen is None else chosen


def open_checkpoint(path: str, device: str) -> Opened:
    """Load a weights file, or a run folder's last one. Raises CheckpointError, or VaeError for the device."""
    file, place = find_checkpoint(path), choose_device(device)
    be_exact(place)
    model, metadata = checkpoint.load(file, place)
    return Opened(file, engine.prepare(model, place), metadata, place)


def open_split(
    opened: Opened, dataset: str | None, split: data.SplitName, data_dir: str | None, observer: Observer
) -> data.Split:
    """A split of `dataset`, by default of the one the checkpoint was trained on. Raises DataError.

    If a data set of the same name has other content than in training, the observer hears of it.
    """
    source = opened.metadata.data
    name = dataset or source.dataset
    found = data.load(name, split, data_dir, observer.note)
    if name == source.dataset:
        if found.sha256() != (source.train_sha256 if split == "train" else source.test_sha256):
            observer.note(f"The {split} split of {name} has changed since the checkpoint was trained on it.")
        elif opened.metadata.class_names:
            found = data.Split(found.images, found.labels, opened.metadata.class_names)
    return found
