"""`vae`: six commands, each of them options -> one service call -> one answer.

Services are imported inside the commands: torch takes seconds, and `vae --help` shall not.
"""

import contextlib
import logging
import os
import shlex
from typing import Annotated, Any, BinaryIO, get_args

import typer

from vaecli import console, options
from vaecli.allocator import keep_freed_memory
from vaecli.console import process, progress
from vaecli.errors import UsageError, VaeError
from vaecli.run import Settings, default_folder, read_config
from vaecli.threads import stay_within_quota

app = typer.Typer(
    name="vae",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_RECIPE = Settings()


def main(args: list[str] | None = None) -> int:
    """The entry point: runs the command line and returns the exit code."""
    keep_freed_memory()
    stay_within_quota()
    # matplotlib: a backend for interactive work, maybe one that is not installed here, is of no use, figures
    # have no date, and a home that cannot be written is worth no lines on stderr.
    os.environ["MPLBACKEND"] = "agg"
    os.environ.pop("SOURCE_DATE_EPOCH", None)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    os.environ.pop("TORCH_LOGS", None)  # of parts not used here; empty or wrong, it stops torch from loading
    return process.run(app, args)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console.answer(f"vae {version('vaecli')}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _vae(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train and use a convolutional variational autoencoder on MNIST-like images.

    \b
    Begin with:
      ckpt=$(vae train --z-dim 2 --epochs 5 --resume)
      vae test "$ckpt"
      vae scatter "$ckpt"
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
@process.border
def train(
    context: typer.Context,
    z_dim: options.ZDim = _RECIPE.z_dim,
    epochs: options.Epochs = _RECIPE.epochs,
    batch_size: options.BatchSize = _RECIPE.batch_size,
    lr: options.LearningRate = _RECIPE.lr,
    lr_schedule: options.TrainLrSchedule = "constant",
    beta: options.Beta = _RECIPE.beta,
    kl_warmup: options.KlWarmup = _RECIPE.kl_warmup,
    dataset: options.TrainDataset = _RECIPE.dataset,
    data_dir: options.DataDir = None,
    output_dir: options.OutputDir = None,
    checkpoint_every: options.CheckpointEvery = _RECIPE.checkpoint_every,
    log_interval: options.LogInterval = _RECIPE.log_interval,
    precision: options.TrainPrecision = "auto",
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    seed: options.TrainSeed = _RECIPE.seed,
    device: options.Device = _RECIPE.device,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model. The answer is the path of its last checkpoint.

    The run folder gets config.json, metrics.jsonl (a line an epoch), check10.safetensors and so on,
    and state.safetensors, from which --resume goes on exactly, also after a crash. Losses are the
    mean negative ELBO in nats per image.

    \b
    Examples:
      vae train --z-dim 4 --epochs 50
      vae train --z-dim 4 --epochs 80 --resume
      vae train --dataset my-digits/ --output-dir runs/mine
      vae train --lr-schedule cosine --output-dir runs/cosine
      ckpt=$(vae train -q)
    """
    from vaecli.services.train import train as service

    settings = Settings(
        z_dim=z_dim,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        lr_schedule=lr_schedule,
        beta=beta,
        kl_warmup=kl_warmup,
        seed=seed,
        dataset=dataset,
        data_dir=data_dir,
        precision=precision,
        device=device,
        checkpoint_every=checkpoint_every,
        log_interval=log_interval,
    )
    folder = output_dir or default_folder(dataset, z_dim)
    with progress.observer(quiet) as observer:
        trained = service(
            settings,
            folder,
            resume=resume,
            overwrite=overwrite,
            dry_run=dry_run,
            typed=_typed(context) & vars(settings).keys(),
            observer=observer,
        )
        if trained is None:
            return
        path = trained.checkpoint
        quoted = shlex.quote(f"./{path}" if path.startswith("-") else path)  # else it would be an option
        observer.note(
            f"Done after epoch {trained.epochs}: training loss {trained.train_losses[-1]:.2f}, "
            f"test loss {trained.test_losses[-1]:.2f} nats per image. Next:"
        )
        with contextlib.suppress(VaeError):  # someone may just be writing it
            data_dir = read_config(folder).data_dir  # a resumed run's own
        place = f" --data-dir {shlex.quote(data_dir)}" if data_dir else ""
        for command in ("test", "sample", "scatter"):
            observer.note(f"  vae {command} {quoted}{place}")
        observer.note(f"  vae curves {quoted}")
    console.answer_json(trained) if json else console.answer(trained.checkpoint)


@app.command("test")
@process.border
def evaluate(
    ckpt: options.Checkpoint,
    split: options.Split = "test",
    samples: options.Samples = 1,
    importance_samples: options.ImportanceSamples = None,
    knn: options.Knn = None,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the negative ELBO on a split, and more.

    Prints means over all images in nats per image, with standard errors (_se): loss =
    reconstruction + kl, z sampled. bits_per_dim is loss / (784 ln 2). kl_per_dim adds up to kl;
    active_units are the dimensions whose posterior mean varies between images.

    log_likelihood is the importance-weighted bound on log p(x), from below; its draws come by turns
    from the posterior, from wider ones and from the prior. Published numbers are mostly of
    dynamically binarised pixels: the loss of grey ones may stand beside their losses as it is,
    log_likelihood beside their log p(x) as a lower bound only.

    If data, z_dim, epochs and recipe are those of the tutorial's results, stderr says where the
    loss falls among them.

    \b
    Examples:
      vae test outputs/mnist-z2
      vae test outputs/mnist-z2 --split train
      vae test outputs/mnist-z2 --json | jq .loss
      vae test outputs/mnist-z2 --knn 5
      vae test outputs/mnist-z2 --importance-samples 100
    """
    from vaecli.services.evaluate import evaluate as service

    with progress.observer(quiet) as observer:
        result = service(
            ckpt,
            split=split,
            samples=samples,
            importance_samples=importance_samples,
            knn=knn,
            seed=seed,
            dataset=dataset,
            data_dir=data_dir,
            device=device,
            observer=observer,
        )
    console.answer_json(result) if json else console.answer_lines(result)


@app.command()
@process.border
def encode(
    context: typer.Context,
    ckpt: options.Checkpoint,
    inputs: options.Inputs = None,
    split: options.Split = "test",
    output: options.TableOutput = "-",
    form: options.TableFormat = None,
    sample: options.WithSample = False,
    invert: options.Invert = False,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Turn images into a table of codes.

    A code is the mean and the log-variance of an image's posterior. The table has a row an image:
    index,label,mean_0,...,logvar_0,... for a split or IDX files, path,label,... for image files and
    folders of them. Pictures of other sizes and colours are converted to 28x28 grey.

    A .npz or .safetensors holds arrays: mean, logvar, label (-1 for none) and index, or path, which
    in safetensors is metadata.

    The INPUT - is a list of paths on stdin, one a line, or ended by NUL as 'find -print0' does.

    \b
    Examples:
      vae encode outputs/mnist-z2 | head -3
      vae encode outputs/mnist-z2 --split train -o codes.npz
      vae encode outputs/mnist-z2 scans/ photo.jpg --invert --format jsonl
      find scans/ -name '*.png' | sort | vae encode outputs/mnist-z2 - -o a.csv
    """
    if output.endswith("/"):
        raise UsageError(f"A table is one file, and {output} names a folder. Name a file with -o.")
    formats = get_args(options.CodesFormat)
    chosen = form or _format(output, formats, "csv", f", or --format {', '.join(formats)}")
    if inputs and (unused := _typed(context) & {"split", "dataset"}):
        names = " and ".join(f"--{name}" for name in sorted(unused))
        raise UsageError(f"INPUT does not go with {names}. Name the images one way.")
    if inputs and inputs.count("-") > 1:
        raise UsageError("Standard input can be read once. Name - once.")
    if json and output == "-":
        raise UsageError("--json and the table would share stdout. Use --format jsonl in its place, or -o FILE.")
    from vaecli.services.encode import encode as service

    with progress.observer(quiet, output) as observer:
        result = service(
            ckpt,
            [console.stdin() if name == "-" else name for name in inputs or []],
            output=_target(output),
            form=chosen,
            split=split,
            sample=sample,
            invert=invert,
            seed=seed,
            dataset=dataset,
            data_dir=data_dir,
            device=device,
            observer=observer,
        )
    _answer_output(result, json)


@app.command()
@process.border
def sample(
    ckpt: options.Checkpoint,
    source: options.From = None,
    count: options.Count = None,
    pairs: options.Pairs = False,
    temperature: options.Temperature = None,
    like: options.Like = None,
    dims: options.WalkDims = None,
    indices: options.Indices = None,
    output: options.ImagesOutput = None,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make images from the decoder.

    --from says which codes are decoded, and T is the temperature:

    \b
      prior        z drawn from N(0, T^2)
      train, test  images picked from that split at random, encoded, z drawn
                   from their posteriors, deviation times T
      grid         the manifold: z at the quantiles of N(0, T^2) over two
                   dimensions, the others 0; -n is a square
      traverse     a row a dimension, from -3 T to 3 T, the others 0
      interpolate  straight lines through the codes (the means) of the test
                   images --indices; no temperature
      FILE or -    a csv or jsonl: its columns z_*, else mean_*; no temperature

    A .png is one grid, a .npz holds 'images', uint8 (N, 28, 28), which --dataset reads back (with
    --pairs also 'originals'), and a folder gets 00000.png and so on in place of those of an earlier
    command. The same command makes the same bytes.

    \b
    Examples:
      vae sample outputs/mnist-z2
      vae sample outputs/mnist-z2 --from train --pairs -n 50
      vae sample outputs/mnist-z2 --like 7 --temperature 0.5 -o sevens.png
      vae sample outputs/mnist-z2 --from grid -n 400 -o manifold.png
      vae sample outputs/mnist-z2 --from interpolate --indices 18,61 -o walk.gif
      vae encode outputs/mnist-z2 a.png | vae sample outputs/mnist-z2 --from -
    """
    output = output or _beside(ckpt, "samples.png")
    form = _images_format(output)
    _check_json(json, output)
    from vaecli.services.sample import sample as service

    with progress.observer(quiet, output) as observer:
        result = service(
            ckpt,
            output=_target(output),
            form=form,
            source=console.stdin() if source == "-" else source,
            count=count,
            pairs=pairs,
            temperature=temperature,
            like=like,
            dims=_integers(dims),
            indices=_integers(indices),
            seed=seed,
            dataset=dataset,
            data_dir=data_dir,
            device=device,
            observer=observer,
        )
    _answer_output(result, json)


@app.command()
@process.border
def scatter(
    ckpt: options.Checkpoint,
    split: options.Split = "test",
    dims: options.Dims = None,
    limit: options.Limit = None,
    pca: options.Pca = False,
    manifold: options.Manifold = False,
    output: options.ScatterOutput = None,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw the latent space, coloured by class.

    The points are the posterior means of a split, the dashed circles the prior's one and two sigma.
    A panel for each pair of dimensions: (0, 1), (2, 3) and so on, an odd last one with 0; of one
    dimension, a row a class.

    \b
    Examples:
      vae scatter outputs/mnist-z2
      vae scatter outputs/mnist-z2 --split train -o latent.svg
      vae scatter outputs/mnist-z2 --manifold --limit 2000
      vae scatter outputs/mnist-z4 --dims 0,3 -o dims.png
      vae scatter outputs/mnist-z16 --pca -o pca.pdf
    """
    output = output or _beside(ckpt, "scatter.png")
    form = _format(output, ("png", "svg", "pdf"), "png")
    _check_json(json, output)
    from vaecli.services.scatter import scatter as service

    with progress.observer(quiet, output) as observer:
        result = service(
            ckpt,
            output=_target(output),
            form=form,
            split=split,
            dims=_integers(dims),
            limit=limit,
            pca=pca,
            manifold=manifold,
            seed=seed,
            dataset=dataset,
            data_dir=data_dir,
            device=device,
            observer=observer,
        )
    _answer_output(result, json)


@app.command()
@process.border
def curves(
    context: typer.Context,
    runs: options.Runs,
    metric: options.CurveMetric = "loss",
    log_scale: options.LogScale = False,
    output: options.CurvesOutput = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw the learning curves of runs.

    Training (dashed) and test (solid) by epoch, of one or many runs, finished or not; those in their
    first epoch and what is no run are left out. A star marks the lowest test loss.

    A .csv holds the numbers instead: a row a run and epoch, with the columns run, epoch,
    train_loss, train_reconstruction, train_kl, the same of test, seconds, images_per_second.

    \b
    Examples:
      vae curves outputs/mnist-z2
      vae curves outputs/mnist-z2 outputs/mnist-z4 --metric kl -o kl.pdf
      vae curves outputs/mnist-z2 outputs/mnist-z4 --log-scale
      vae curves outputs/mnist-z2 outputs/mnist-z4 -o runs.csv
    """
    output = output or (_beside(runs[0], "curves.png") if len(runs) == 1 else "curves.png")
    form = _format(output, ("png", "svg", "pdf", "csv"), "png")
    _check_json(json, output)
    if form == "csv" and (unused := _typed(context) & {"metric", "log_scale"}):
        names = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
        raise UsageError(f"A .csv holds all metrics as they are. Leave out {names}.")
    from vaecli.services.curves import curves as service

    with progress.observer(quiet, output) as observer:
        result = service(runs, output=_target(output), form=form, metric=metric, log_scale=log_scale, observer=observer)
    _answer_output(result, json)


def _typed(context: typer.Context) -> set[str]:
    """The names of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _beside(checkpoint: str, name: str) -> str:
    """A file in the run folder that a checkpoint argument is, or is in."""
    return os.path.join(checkpoint if os.path.isdir(checkpoint) else os.path.dirname(checkpoint), name)


def _format(output: str, known: tuple[str, ...], default: str, other: str = "") -> Any:
    """The output's format by its suffix; the default on stdout. Raises UsageError for another, with `other` ways."""
    suffix = os.path.splitext(output)[1].lower().removeprefix(".")
    if suffix in known:
        return suffix
    special = not suffix and os.path.exists(output) and not os.path.isfile(output) and not os.path.isdir(output)
    if output == "-" or special:  # a device, such as /dev/null, or a named pipe
        return default
    names = ", ".join(f".{name}" for name in known)
    raise UsageError(f"No format for '{output}': its suffix is none of {names}. Use one of these{other}.")


def _images_format(output: str) -> Any:
    """As `_format`; a folder is a path that ends in a slash, or one that is there and has no such suffix."""
    known = ("png", "npz", "gif")
    named = output == "-" or output.lower().endswith(tuple(f".{suffix}" for suffix in known))
    if output.endswith("/") or (os.path.isdir(output) and not named):
        return "folder"
    return _format(output, known, "png", ", or a folder that ends in /")


def _integers(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else tuple(map(int, text.split(",")))


def _check_json(json: bool, output: str) -> None:
    if json and output == "-":
        raise UsageError("--json and the file would share stdout. Use -o FILE.")


def _target(output: str) -> str | BinaryIO:
    return console.stdout() if output == "-" else output


def _answer_output(result: Any, json: bool) -> None:
    """Where the file went; nothing, if the answer itself went to stdout."""
    if result.output != "-":
        console.answer_json(result) if json else console.answer(result.output)
