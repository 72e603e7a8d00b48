"""`vae sample`: images out of the decoder, from the prior, from encoded images, along walks, or from a table."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from vaecli import data, engine, latent
from vaecli.codes import read_codes
from vaecli.errors import DataError, UsageError, VaeError
from vaecli.files import reason
from vaecli.images import Pixels
from vaecli.runtime import NOISE_BLOCK, memory_errors, noise
from vaecli.services import Observer
from vaecli.services.inputs import Opened, open_checkpoint, open_split
from vaecli.services.outputs import Written, guard_folder, guard_output
from vaecli.services.pictures import MOST, Format, write_pictures

DEFAULT_COUNT = 100
STEPS = 10  # of a dimension's traversal, unless told otherwise
SOURCES = ("prior", "train", "test", "grid", "traverse", "interpolate")  # any other is a file

# What an option goes with; `FILE` is a table of codes.
_GOES_WITH = {
    "--pairs": ("train", "test"),
    "--like": ("train", "test"),
    "--dataset": ("train", "test", "interpolate"),
    "--dims": ("grid", "traverse"),
    "--indices": ("interpolate",),
    "--temperature": ("prior", "train", "test", "grid", "traverse"),
    "An -o that ends in .gif": ("traverse", "interpolate", "FILE"),
}


@dataclass(frozen=True)
class _Plan:
    """What to decode: codes (B, Z) in blocks, how many (None: not known before they end), images a row."""

    codes: Iterator[Tensor]
    count: int | None
    columns: int | None = None
    originals: Tensor | None = None


def sample(
    checkpoint: str,
    *,
    output: str | BinaryIO,
    form: Format,
    source: str | BinaryIO | None = None,
    count: int | None = None,
    pairs: bool = False,
    temperature: float | None = None,
    like: str | None = None,
    dims: tuple[int, ...] | None = None,
    indices: tuple[int, ...] | None = None,
    seed: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Written:
    """Write decoded images as a png grid, a gif, a npz with `images` uint8 (N, 28, 28), or pngs into a folder.

    The source says which codes are decoded, and `temperature` (by default 1) scales their deviation:

    * `prior`: z ~ N(0, temperature^2 I), `count` of them, by default 100.
    * `train`, `test`: that many images of the split (of the class `like`) are picked at random and
      encoded, and z = mean + temperature * deviation * noise; with `pairs` each original stands left
      of its reconstruction (in a npz: `originals`). `like` alone means `train`.
    * `grid`: the manifold, z at the quantiles of N(0, temperature^2) over two `dims`, by default 0
      and 1, the others 0; `count` is a square (with one dimension, any number).
    * `traverse`: a row for each of `dims`, by default all, from -3 to 3 times temperature, the
      others 0; `count` is a multiple of their number, by default 10 each.
    * `interpolate`: equal steps on straight lines from each of the posterior means of the test images
      `indices` to the next; `count` is at least their number.
    * the path of a csv or jsonl, or an open one: its codes as they are, every row or the first `count`.

    Equal arguments give equal bytes. Raises CheckpointError, DataError, VaeError for dimensions or
    counts that do not fit, or UsageError for arguments that do not go together.
    """
    if source is None:
        source = "prior" if like is None else "train"
    typed = {
        "--pairs": pairs,
        "--like": like is not None,
        "--dataset": dataset is not None,
        "--dims": dims is not None,
        "--indices": indices is not None,
        "--temperature": temperature is not None,
        "An -o that ends in .gif": form == "gif",
    }
    _check_usage(source, form, count, typed, dims, indices)
    observer, temperature = observer or Observer(), 1.0 if temperature is None else temperature
    opened = open_checkpoint(checkpoint, device)
    inputs = [opened.path, dataset or opened.metadata.data.dataset]
    (guard_folder if form == "folder" else guard_output)(output, *inputs, *([] if source in SOURCES else [source]))
    chosen = opened.seed(seed)
    with memory_errors(opened.device), contextlib.ExitStack() as files:
        if source == "prior":
            count = count or DEFAULT_COUNT
            plan = _Plan(_prior(opened, count, chosen, temperature), count)
        elif source in ("train", "test"):
            name: data.SplitName = "train" if source == "train" else "test"
            split = open_split(opened, dataset, name, data_dir, observer)
            plan = _reconstructions(opened, split, name, count, like, chosen, temperature)
        elif source == "interpolate":
            images = open_split(opened, dataset, "test", data_dir, observer).images
            plan = _interpolation(opened, images, indices or (), count or DEFAULT_COUNT)
        elif source in ("grid", "traverse"):
            plan = _walk(opened, source, count, dims, temperature, MOST[form])
        else:
            stream, table = _open_codes(source, files)
            codes = files.enter_context(contextlib.closing(read_codes(stream, table, opened.model.z_dim, NOISE_BLOCK)))
            plan = _Plan(_first(map(torch.from_numpy, codes), table, count, form), count)
        observer.begin("sample", plan.count or 0)
        write_pictures(
            output,
            form,
            _decoded(opened, plan.codes, observer),
            count=plan.count,
            columns=plan.columns,
            there_and_back=source in SOURCES,
            originals=plan.originals.numpy() if pairs and plan.originals is not None else None,
        )
    return Written.to(output)


def _check_usage(
    source: str | BinaryIO,
    form: Format,
    count: int | None,
    typed: Mapping[str, bool],
    dims: tuple[int, ...] | None,
    indices: tuple[int, ...] | None,
) -> None:
    """Raise UsageError for arguments that do not go together, whatever the checkpoint."""
    name = source if source in SOURCES else "FILE"
    for option, sources in _GOES_WITH.items():
        if typed[option] and name not in sources:
            *others, last = sources
            fitting = f"{', '.join(others)} or {last}" if others else last
            raise UsageError(f"{option} goes with --from {fitting}, not {name}. Change --from, or leave that out.")
    named = len(indices or ())
    if name == "interpolate" and named < 2:
        raise UsageError(
            "--from interpolate needs two test images or more. Name them by number with --indices, such as 18,61."
        )
    if name == "interpolate" and named > (wanted := count or DEFAULT_COUNT):
        raise UsageError(f"--indices names {named:,} images, more than -n {wanted:,}. Use a larger -n.")
    if name == "grid" and dims and len(dims) > 2:
        raise UsageError("A grid has one or two dimensions. Use --dims I,J, or --from traverse.")
    if dims and len(set(dims)) < len(dims):
        raise UsageError(f"--dims {','.join(map(str, dims))} names a dimension twice. Use each once.")
    if count is not None and count < 1:
        raise UsageError(f"-n {count} makes no image. Use at least 1.")
    if count is not None and count > MOST[form]:
        raise UsageError(_too_many(form))
    try:  # with --dims a walk's shape depends on no model
        if name == "grid" and count and dims and len(dims) == 2:
            latent.side_of(count)
        if name == "traverse" and count and dims:
            latent.steps_of(count, len(dims))
    except VaeError as error:
        raise UsageError(str(error)) from None


def _too_many(form: Format) -> str:
    where = "A folder" if form == "folder" else f"A .{form}"
    other = "" if form == "npz" else ", or an -o that ends in .npz"
    return f"{where} takes at most {MOST[form]:,} images. Use a smaller -n{other}."


def _prior(opened: Opened, count: int, seed: int, temperature: float) -> Iterator[Tensor]:
    for block, start in enumerate(range(0, count, NOISE_BLOCK)):
        yield noise(seed, "prior", block, opened.model.z_dim)[: count - start] * temperature


def _reconstructions(
    opened: Opened,
    split: data.Split,
    source: str,
    count: int | None,
    like: str | None,
    seed: int,
    temperature: float,
) -> _Plan:
    what = f"the {source} split"
    if like is not None:
        split = split.only(like, what)
        what += f" with the label '{like}'"
    count = count or min(DEFAULT_COUNT, len(split.images))
    if count > len(split.images):
        raise DataError(
            f"-n {count:,} is more than there are images in {what} ({len(split.images):,}). Use a smaller -n."
        )
    originals = split.pick(count, seed).images

    def codes() -> Iterator[Tensor]:
        for block, images in engine.blocks(originals):
            posterior = engine.encode(opened.model, images, opened.device)
            yield engine.sample_posterior(posterior, seed, block, temperature)

    return _Plan(codes(), count, originals=originals)


def _walk(
    opened: Opened, source: str, count: int | None, dims: tuple[int, ...] | None, temperature: float, most: int
) -> _Plan:
    z_dim = opened.model.z_dim
    dims = dims or tuple(range(z_dim) if source == "traverse" else range(min(2, z_dim)))
    if max(dims) >= z_dim:
        raise VaeError(f"The model has no dimension {max(dims)}. Choose --dims from 0 to {z_dim - 1}.")
    count = count or (STEPS * len(dims) if source == "traverse" else DEFAULT_COUNT)
    if count > most:
        raise VaeError(f"{len(dims):,} dimensions make {count:,} images, too many for one output. Choose --dims.")
    if source == "traverse":
        z, columns = latent.traversal(count, z_dim, dims), count // len(dims)
    else:
        z, columns = latent.manifold(count, z_dim, dims), None
    return _Plan(iter(torch.split(z * temperature, NOISE_BLOCK)), count, columns)


def _interpolation(opened: Opened, images: Tensor, indices: tuple[int, ...], count: int) -> _Plan:
    if max(indices) >= len(images):
        raise DataError(f"There is no test image {max(indices):,}. Choose --indices from 0 to {len(images) - 1:,}.")
    means = engine.encode(opened.model, images[list(indices)], opened.device).mean.cpu()
    return _Plan(iter(torch.split(latent.interpolation(count, means), NOISE_BLOCK)), count)


def _open_codes(source: str | BinaryIO, files: contextlib.ExitStack) -> tuple[BinaryIO, str]:
    """The table of codes and its name; it may be a pipe. Raises DataError."""
    if not isinstance(source, str):
        return source, "standard input"
    try:
        return files.enter_context(open(source, "rb")), source
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file '{source}'. Give --from a csv or jsonl of codes, or one of {', '.join(SOURCES)}."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read codes from '{source}': {reason(error)}. Give a csv or jsonl.") from error


def _first(blocks: Iterator[Tensor], name: str, count: int | None, form: Format) -> Iterator[Tensor]:
    """Every code of a table, or the first `count`; it is read to its end, or its writer would fail."""
    seen = 0
    for z in blocks:
        if count is None and seen + len(z) > MOST[form]:
            raise DataError(f"{name} has more codes than one output takes. {_too_many(form)}")
        if (wanted := z if count is None else z[: max(0, count - seen)]).numel():
            yield wanted
        seen += len(z)
    if count is not None and seen < count:
        raise DataError(f"{name} has {seen:,} codes, fewer than -n {count:,}. Use a smaller -n.")


def _decoded(opened: Opened, codes: Iterator[Tensor], observer: Observer) -> Iterator[Pixels]:
    for z in codes:
        yield engine.decode(opened.model, z.to(opened.device)).numpy()
        observer.advance(len(z))
