"""`vae scatter`: the posterior means of a split, coloured by class."""

import os
from dataclasses import dataclass
from typing import BinaryIO

import torch

from vaecli import data, engine, plots
from vaecli.files import open_output
from vaecli.runtime import memory_errors
from vaecli.services import Observer
from vaecli.services.inputs import open_checkpoint, open_split
from vaecli.services.outputs import guard_output


@dataclass(frozen=True)
class Scattered:
    """Where the figure went."""

    output: str


def scatter(
    checkpoint: str,
    *,
    output: str | BinaryIO,
    form: str,
    split: data.SplitName = "test",
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Scattered:
    """Draw where the images of a split lie in the latent space, as a png, svg or pdf.

    Raises CheckpointError, DataError, or VaeError if the output cannot be written.
    """
    observer = observer or Observer()
    opened = open_checkpoint(checkpoint, device)
    guard_output(output, opened.path, dataset or opened.metadata.data.dataset)
    found = open_split(opened, dataset, split, data_dir, observer)
    observer.begin("scatter", len(found.images))
    means = []
    with memory_errors(opened.device):
        for _, images in engine.blocks(found.images):
            means.append(engine.encode(opened.model, images, opened.device).mean.cpu())
            observer.advance(len(images))
    shown = len(plots.panels(opened.model.z_dim))
    if shown > plots.MAX_PANELS:
        observer.note(f"Showing the first {plots.MAX_PANELS} of {shown} pairs of dimensions.")
    name = os.path.basename(os.path.abspath(dataset or opened.metadata.data.dataset))
    title = f"{name}, {len(found.images):,} {split} images, z_dim {opened.model.z_dim}, epoch {opened.metadata.epoch}"
    labels = None if found.labels is None else found.labels.numpy()
    figure = plots.scatter(torch.cat(means).numpy(), labels, found.class_names, title)
    with open_output(output) as stream:
        stream.write(plots.render(figure, form))
    return Scattered(output if isinstance(output, str) else "-")
