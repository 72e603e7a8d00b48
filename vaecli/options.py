"""Every option of the commands, declared once."""

import re
from typing import Annotated, Any, Literal

import typer

LrSchedule = Literal["constant", "cosine"]
SplitName = Literal["train", "test"]
Precision = Literal["auto", "fp32", "bf16"]
CodesFormat = Literal["csv", "jsonl", "npz", "safetensors"]
Metric = Literal["loss", "reconstruction", "kl"]

_MAX_FLOAT = 2.0**127  # the last power of 2 in float32; as in run.Settings
_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9]\d{0,3}))?|mps")


def _positive(value: float) -> float:
    if not 0 < value <= _MAX_FLOAT:
        raise typer.BadParameter(f"{value} is not above 0, or too large.")
    return value


def _not_negative(value: float | None) -> float | None:
    if value is not None and not 0 <= value <= _MAX_FLOAT:
        raise typer.BadParameter(f"{value} is below 0, or too large.")
    return value


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise typer.BadParameter(f"'{value}' is not one of auto, cpu, cuda, cuda:N, mps.")
    return value


def _dims(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[0-9]{1,9},[0-9]{1,9}", value):
        raise typer.BadParameter(f"'{value}' is not two dimensions such as 0,3.")
    return value


def _integers(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", value):
        raise typer.BadParameter(f"'{value}' is not a list of numbers such as 0,3.")
    return value


def _sources(incomplete: str) -> list[str]:
    known = ("prior", "grid", "traverse", "interpolate", "train", "test")
    return [name for name in known if name.startswith(incomplete)]


def _given(value: str | None) -> str | None:
    if value == "":  # an unset variable of a script, which must not mean the default
        raise typer.BadParameter("it is empty.")
    return value


def _all_given(values: list[str] | None) -> list[str] | None:
    for value in values or []:
        _given(value)
    return values


def _output(value: str | None) -> str | None:
    _given(value)
    # The answer's own line goes to stdout, too, and must not follow a file's bytes there.
    return "-" if value in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1") else value


def _seed(value: int | None) -> int | None:
    if value is not None and value < 0:
        raise typer.BadParameter(f"{value} is below 0.")
    return value


def _file(default: str, formats: str) -> Any:
    """The option of a file that a command writes."""
    words = f"{formats}; - is stdout, as png."
    return typer.Option("-o", "--output", metavar="FILE", callback=_output, show_default=default, help=words)


# What many commands share.
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        callback=_given,
        show_default=False,
        help="A .safetensors file, or a run folder (its last one).",
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only the answer and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", callback=_device, help="auto, cpu, cuda, cuda:N or mps.")
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        callback=_given,
        show_default="$VAE_DATA_DIR, else the user's cache",
        help="Where named data sets lie, or are downloaded to.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", callback=_seed, show_default="the checkpoint's", help="The seed of all randomness."
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "-d",
        "--dataset",
        metavar="NAME|PATH",
        callback=_given,
        show_default="the checkpoint's",
        help="As in 'vae train'.",
    ),
]
Split = Annotated[SplitName, typer.Option("--split", help="Which images.")]

# Of train.
TrainDataset = Annotated[
    str,
    typer.Option(
        "-d",
        "--dataset",
        metavar="NAME|PATH",
        callback=_given,
        help="mnist, fashion-mnist, kmnist, qmnist, emnist-digits, emnist-letters, usps; "
        "or a folder of IDX files, a folder of images, a .npz.",
    ),
]
TrainSeed = Annotated[int, typer.Option("--seed", metavar="N", callback=_seed, help="The seed of all randomness.")]
# The bounds are those of run.Settings, told here before anything is read.
ZDim = Annotated[int, typer.Option("-z", "--z-dim", min=1, max=32768, help="Dimensions of the latent space.")]
Epochs = Annotated[
    int, typer.Option("-e", "--epochs", min=1, max=25000, help="In total, a resumed run's earlier ones included.")
]
BatchSize = Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Images a step.")]
LearningRate = Annotated[float, typer.Option("--lr", callback=_positive, help="Adam's learning rate.")]
Beta = Annotated[float, typer.Option("--beta", callback=_not_negative, help="Weight of the KL term in the objective.")]
TrainLrSchedule = Annotated[
    LrSchedule, typer.Option("--lr-schedule", help="cosine: the learning rate falls to 0 by the end.")
]
KlWarmup = Annotated[
    int,
    typer.Option(
        "--kl-warmup",
        metavar="EPOCHS",
        min=0,
        max=25000,
        help="Let the KL term's weight grow from 0 to --beta in the first so many epochs.",
    ),
]
OutputDir = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output-dir",
        metavar="DIR",
        callback=_given,
        show_default="outputs/<dataset>-z<z_dim>",
        help="The run folder.",
    ),
]
CheckpointEvery = Annotated[
    int, typer.Option("--checkpoint-every", min=1, help="Epochs between kept weights; the last are always kept.")
]
LogInterval = Annotated[int, typer.Option("--log-interval", min=0, help="Batches between progress lines; 0: none.")]
TrainPrecision = Annotated[
    Precision,
    typer.Option("--precision", help="What the training computes in; auto: bf16 where the hardware is made for it."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder, if there is one.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Try one batch of each step; write nothing.")]

# Of test.
Samples = Annotated[
    int, typer.Option("--samples", min=1, max=10**9, help="Draws of z for each image; its loss is their mean.")
]
ImportanceSamples = Annotated[
    int | None,
    typer.Option(
        "--importance-samples",
        metavar="K",
        min=1,
        max=10**9,
        help="Add log_likelihood, a lower bound on log p(x) from K draws an image.",
    ),
]
Knn = Annotated[
    int | None,
    typer.Option(
        "--knn",
        metavar="K",
        min=1,
        help="Add knn_accuracy: test labels guessed by the K training images with the nearest codes.",
    ),
]

# Of the others.
Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        callback=_all_given,
        show_default=False,
        help="Image files, folders of them, or IDX files; - reads their paths from stdin. Without any, a split.",
    ),
]
TableOutput = Annotated[
    str, typer.Option("-o", "--output", metavar="FILE", callback=_output, help="Where the table goes; - is stdout.")
]
TableFormat = Annotated[
    CodesFormat | None,
    typer.Option("--format", show_default="by the output's suffix; csv on stdout", help="The table's format."),
]
WithSample = Annotated[bool, typer.Option("--sample", help="Add z_*: one draw from each posterior.")]
Invert = Annotated[bool, typer.Option("--invert", help="Make dark ink on light paper white on black.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="SOURCE",
        callback=_given,
        autocompletion=_sources,
        show_default="prior; with --like, train",
        help="Where the codes come from: prior, train, test, grid, traverse, interpolate, FILE or - (see above).",
    ),
]
Count = Annotated[
    int | None,
    typer.Option(
        "-n",
        metavar="N",
        min=1,
        show_default="100, or all of a smaller split; traverse: 10 a row; FILE: every row",
        help="How many images.",
    ),
]
Pairs = Annotated[bool, typer.Option("--pairs", help="With train or test: originals beside their reconstructions.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        callback=_not_negative,
        show_default="1",
        help="Scales z's standard deviation; 0 decodes means.",
    ),
]
Like = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="LABEL",
        callback=_given,
        help="With train or test: only images of this class, a name or a number.",
    ),
]
WalkDims = Annotated[
    str | None,
    typer.Option(
        "--dims",
        metavar="I,J",
        callback=_integers,
        show_default="grid: 0,1; traverse: all",
        help="Dimensions to vary.",
    ),
]
Indices = Annotated[
    str | None,
    typer.Option(
        "--indices", metavar="I,J[,...]", callback=_integers, help="With interpolate: the test images, by number."
    ),
]
ImagesOutput = Annotated[
    str | None,
    _file("<run>/samples.png", ".png, .npz, .gif (traverse, interpolate, FILE), or a folder/ for a .png each"),
]
ScatterOutput = Annotated[str | None, _file("<run>/scatter.png", ".png, .svg or .pdf")]
CurvesOutput = Annotated[
    str | None, _file("<run>/curves.png; of several, ./curves.png", ".png, .svg, .pdf, or .csv for the numbers")
]
Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN", callback=_all_given, show_default=False, help="Run folders or .safetensors files."),
]
Dims = Annotated[
    str | None,
    typer.Option(
        "--dims",
        metavar="I,J",
        callback=_dims,
        show_default="(0, 1), (2, 3) and so on",
        help="One panel, of these two dimensions.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, show_default="all", help="So many images, picked at random."),
]
Pca = Annotated[
    bool, typer.Option("--pca", help="One panel, of the means' first two principal components (z_dim above 2).")
]
Manifold = Annotated[bool, typer.Option("--manifold", help="Decoded images behind the points (z_dim 2).")]
CurveMetric = Annotated[Metric, typer.Option("--metric", help="What to draw.")]
LogScale = Annotated[bool, typer.Option("--log-scale", help="A logarithmic scale of the values.")]
