"""`vae curves`: training and test loss by epoch, of runs or of checkpoints' histories. Needs no torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from vaecli import plots
from vaecli.checkpoint import read_metadata
from vaecli.errors import VaeError
from vaecli.files import open_output
from vaecli.metrics import EpochRecord, read_metrics
from vaecli.run import METRICS, find_checkpoint
from vaecli.services.outputs import guard_output


@dataclass(frozen=True)
class Drawn:
    """Where the figure went."""

    output: str


def curves(paths: Sequence[str], *, output: str | BinaryIO, form: str, metric: plots.Metric = "loss") -> Drawn:
    """Draw the learning curves of run folders (finished or not) and weights files in one figure.

    Raises VaeError for a path without a finished epoch, CheckpointError for a file that is none.
    """
    guard_output(output, *(path for path in paths if not os.path.isdir(path)))
    paths = list(dict.fromkeys(paths))
    runs = {}
    for path, name in zip(paths, _names(paths), strict=True):
        runs[name] = _history(path)
        if not runs[name]:
            raise VaeError(f"{path} has no finished epoch yet. Wait for the first one.")
    with open_output(output) as stream:
        stream.write(plots.render(plots.curves(runs, metric), form))
    return Drawn(output if isinstance(output, str) else "-")


def _history(path: str) -> Sequence[EpochRecord]:
    metrics = os.path.join(path, METRICS)
    if os.path.isfile(metrics):
        return read_metrics(metrics)
    return read_metadata(find_checkpoint(path)).history


def _names(paths: Sequence[str]) -> list[str]:
    """Run folders by name, files as `<run>/<file>`; the whole paths where those are not unique."""
    short = []
    for path in paths:
        folder, name = os.path.split(os.path.abspath(path))
        run = "" if os.path.isdir(path) else os.path.basename(folder)
        short.append(os.path.join(run, name.removesuffix(".safetensors")))
    return short if len(set(short)) == len(short) else list(paths)
