"""`vae scatter`: the posterior means of a split, coloured by class."""

import os
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from vaecli import data, engine, plots
from vaecli.errors import UsageError, VaeError
from vaecli.files import open_output
from vaecli.plots.scatter import MAX_PANELS, manifold_codes, panels
from vaecli.plots.scatter import scatter as draw
from vaecli.runtime import memory_errors
from vaecli.services import Observer
from vaecli.services.inputs import Opened, open_checkpoint, open_split, posterior_means
from vaecli.services.outputs import Written, guard_output


def scatter(
    checkpoint: str,
    *,
    output: str | BinaryIO,
    form: str,
    split: data.SplitName = "test",
    dims: tuple[int, ...] | None = None,
    limit: int | None = None,
    pca: bool = False,
    manifold: bool = False,
    seed: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Written:
    """Draw where the images of a split lie in the latent space, as a png, svg or pdf.

    A panel a pair of dimensions, or one panel: of `dims`, or with `pca` of the means' two principal
    components. All images, or `limit` picked at random. `manifold` puts decoded images behind them.

    Raises UsageError, CheckpointError, DataError, or VaeError for dimensions that the model has not, a
    manifold of more or fewer than two, and an output that cannot be written.
    """
    if dims and pca:
        raise UsageError("--dims and --pca exclude each other. Choose one.")
    if dims and not len(dims) == len(set(dims)) == 2:
        raise UsageError(f"--dims {','.join(map(str, dims))} are not two dimensions. Choose two different ones.")
    observer = observer or Observer()
    opened = open_checkpoint(checkpoint, device)
    guard_output(output, opened.path, dataset or opened.metadata.data.dataset)
    z_dim = opened.model.z_dim
    _require_dimensions(z_dim, dims, manifold)
    if pca and z_dim <= 2:
        observer.note(f"With z_dim {z_dim} there is nothing for --pca to reduce: the codes are drawn as they are.")
    found = open_split(opened, dataset, split, data_dir, observer)
    if limit and limit < len(found.images):
        found = found.pick(limit, opened.seed(seed))
    observer.begin("scatter", len(found.images))
    with memory_errors(opened.device):
        codes = posterior_means(opened, found.images, observer).numpy()
        axes, pairs = None, [(dims[0], dims[1])] if dims else panels(z_dim)
        if pca and z_dim > 2:
            codes, shares = principal_components(codes)
            axes = [f"principal component {i} ({share:.0%} of the variance)" for i, share in enumerate(shares, 1)]
            pairs = [(0, 1)]
        tiles = _decoded(opened, manifold_codes(codes), pairs[0]) if manifold else None
    if len(pairs) > MAX_PANELS:
        observer.note(f"Showing the first {MAX_PANELS} of {len(pairs)} pairs of dimensions; --dims shows any.")
    labels = None if found.labels is None else found.labels.numpy()
    title = _title(opened, dataset, len(found.images), split)
    figure = draw(codes, labels, found.class_names, title, pairs, axes, tiles)
    with open_output(output) as stream:
        stream.write(plots.render(figure, form))
    return Written.to(output)


def _require_dimensions(z_dim: int, dims: tuple[int, ...] | None, manifold: bool) -> None:
    if dims and z_dim < 2:
        raise VaeError("The model has one dimension, and --dims names two. Leave it out.")
    if dims and max(dims) >= z_dim:
        raise VaeError(f"The model has no dimension {max(dims)}. Choose --dims from 0 to {z_dim - 1}.")
    if manifold and z_dim != 2:
        raise VaeError(f"--manifold needs a model of 2 dimensions, and this one has {z_dim}. Leave it out.")


def _title(opened: Opened, dataset: str | None, count: int, split: data.SplitName) -> str:
    name = plots.plain(os.path.basename(os.path.abspath(dataset or opened.metadata.data.dataset)), 40)
    kind = "training" if split == "train" else split
    images = "image" if count == 1 else "images"
    return f"{name}, {count:,} {kind} {images}, z_dim {opened.model.z_dim}, epoch {opened.metadata.epoch}"


def principal_components(codes: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], list[float]]:
    """Codes (N, Z) along the two directions in which they vary most, (N, 2), and each one's share of the variance.

    The codes are turned and not moved, so 0 is still the prior's mean and its sigmas are still circles.
    """
    spread = np.cov(codes, rowvar=False, bias=True, dtype=np.float64)  # (Z, Z)
    variances, directions = np.linalg.eigh(spread)  # ascending
    first = directions[:, :-3:-1]  # (Z, 2)
    first = first * np.sign(first[np.abs(first).argmax(axis=0), [0, 1]])  # which way is up is else arbitrary
    total = float(np.trace(spread)) or 1.0
    return (codes @ first).astype(np.float32), [max(float(v), 0.0) / total for v in variances[:-3:-1]]


def _decoded(opened: Opened, places: npt.NDArray[np.float32], pair: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The images at places (M, 2) in the plane of the two dimensions `pair`, uint8 (M, 28, 28)."""
    z = torch.empty(len(places), 2)
    z[:, pair] = torch.from_numpy(places)
    return engine.decode(opened.model, z.to(opened.device)).numpy()
