"""`vae sample`: images out of the decoder, from the prior or from encoded images."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.lib import format as npy

from vaecli import engine
from vaecli.errors import DataError, UsageError
from vaecli.files import open_output
from vaecli.idx import MAX_BYTES
from vaecli.images import SIDE, Pixels, grid
from vaecli.runtime import NOISE_BLOCK, memory_errors, noise
from vaecli.services import Observer
from vaecli.services.inputs import Opened, open_checkpoint, open_split
from vaecli.services.outputs import guard_output

Source = Literal["prior", "train", "test"]
Format = Literal["png", "npz"]

DEFAULT_COUNT = 100
MAX_GRID = 10_000  # images in one picture
MAX_IMAGES = MAX_BYTES // SIDE**2  # what --dataset can read back


@dataclass(frozen=True)
class Sampled:
    """Where the images went."""

    output: str


def sample(
    checkpoint: str,
    *,
    output: str | BinaryIO,
    form: Format,
    source: Source = "prior",
    count: int | None = None,
    pairs: bool = False,
    seed: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Sampled:
    """Write `count` decoded images, by default 100: a png grid, or a npz with `images` uint8 (N, 28, 28).

    From `prior`, z ~ N(0, I). From `train` or `test`, that many images are picked at random, encoded,
    z sampled from their posteriors, and decoded; with `pairs` each original stands left of its
    reconstruction (in a npz: `originals`). Equal arguments give equal bytes.

    Raises CheckpointError, DataError, or UsageError for arguments that do not go together.
    """
    if pairs and source == "prior":
        raise UsageError("--pairs shows originals, which the prior has none of. Use --from train or --from test.")
    most = MAX_GRID if form == "png" else MAX_IMAGES
    if count is not None and count > most:
        raise UsageError(f"A .{form} holds at most {most:,} images. Use a smaller -n{', or .npz' * (form == 'png')}.")
    if source == "prior" and dataset:
        raise UsageError("The prior needs no --dataset. Leave it out, or use --from train or --from test.")
    observer = observer or Observer()
    opened = open_checkpoint(checkpoint, device)
    guard_output(output, opened.path, dataset or opened.metadata.data.dataset)
    chosen = opened.seed(seed)
    originals = None
    if source != "prior":
        split = open_split(opened, dataset, source, data_dir, observer)
        count = count or min(DEFAULT_COUNT, len(split.images))
        if count > len(split.images):
            raise DataError(f"The {source} split has {len(split.images):,} images, fewer than -n {count:,}. Use fewer.")
        originals = split.pick(count, chosen).images
    count = count or DEFAULT_COUNT
    observer.begin("sample", count)
    with memory_errors(opened.device), open_output(output) as stream:
        images = _prior(opened, count, chosen) if originals is None else _reconstructed(opened, originals, chosen)
        blocks = _watched(images, observer)
        beside = originals.numpy() if pairs and originals is not None else None
        if form == "npz":
            _write_npz(stream, blocks, count, beside)
        else:
            tiles = np.concatenate(list(blocks))
            tiles = tiles if beside is None else np.concatenate([beside, tiles], axis=2)
            grid(tiles).save(stream, "png")
    return Sampled(output if isinstance(output, str) else "-")


def _prior(opened: Opened, count: int, seed: int) -> Iterator[Pixels]:
    for block, start in enumerate(range(0, count, NOISE_BLOCK)):
        z = noise(seed, "prior", block, opened.model.z_dim)[: count - start]
        yield engine.decode(opened.model, z.to(opened.device)).numpy()


def _reconstructed(opened: Opened, originals: torch.Tensor, seed: int) -> Iterator[Pixels]:
    for block, images in engine.blocks(originals):
        posterior = engine.encode(opened.model, images, opened.device)
        yield engine.decode(opened.model, engine.sample_posterior(posterior, seed, block)).numpy()


def _watched(blocks: Iterator[Pixels], observer: Observer) -> Iterator[Pixels]:
    for block in blocks:
        yield block
        observer.advance(len(block))


def _write_npz(stream: BinaryIO, blocks: Iterator[Pixels], count: int, originals: Pixels | None) -> None:
    """As `numpy.savez` writes it, but block by block, so that memory does not grow with the number."""
    with zipfile.ZipFile(stream, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE)}
            npy.write_array_header_1_0(member, header)
            for block in blocks:
                member.write(block.tobytes())
        if originals is not None:
            with archive.open("originals.npy", "w", force_zip64=True) as member:
                npy.write_array(member, originals, allow_pickle=False)
