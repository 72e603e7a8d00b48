"""`vae scatter`: the posterior means of a split, coloured by class."""

import os
from dataclasses import dataclass
from typing import BinaryIO

import torch

from vaecli import data, engine, plots
from vaecli.errors import VaeError
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
    dims: tuple[int, ...] | None = None,
    limit: int | None = None,
    seed: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Scattered:
    """Draw where the images of a split lie in the latent space, as a png, svg or pdf.

    A panel a pair of dimensions, or one panel of `dims`; all images, or `limit` picked at random.

    Raises CheckpointError, DataError, or VaeError for dimensions that the model has not and an
    output that cannot be written.
    """
    observer = observer or Observer()
    opened = open_checkpoint(checkpoint, device)
    guard_output(output, opened.path, dataset or opened.metadata.data.dataset)
    z_dim = opened.model.z_dim
    if dims and (max(dims) >= z_dim or len(set(dims)) < 2):
        raise VaeError(
            f"--dims {dims[0]},{dims[1]} are not two of the model's dimensions. Choose from 0 to {z_dim - 1}."
        )
    found = open_split(opened, dataset, split, data_dir, observer)
    if limit and limit < len(found.images):
        found = found.pick(limit, opened.seed(seed))
    observer.begin("scatter", len(found.images))
    means = []
    with memory_errors(opened.device):
        for _, images in engine.blocks(found.images):
            means.append(engine.encode(opened.model, images, opened.device).mean.cpu())
            observer.advance(len(images))
    pairs = [(dims[0], dims[1])] if dims else plots.panels(z_dim)
    if len(pairs) > plots.MAX_PANELS:
        observer.note(f"Showing the first {plots.MAX_PANELS} of {len(pairs)} pairs of dimensions; --dims shows any.")
    name = os.path.basename(os.path.abspath(dataset or opened.metadata.data.dataset))
    title = f"{name}, {len(found.images):,} {split} images, z_dim {z_dim}, epoch {opened.metadata.epoch}"
    labels = None if found.labels is None else found.labels.numpy()
    figure = plots.scatter(torch.cat(means).numpy(), labels, found.class_names, title, pairs)
    with open_output(output) as stream:
        stream.write(plots.render(figure, form))
    return Scattered(output if isinstance(output, str) else "-")
