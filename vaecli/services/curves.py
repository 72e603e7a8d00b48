"""`vae curves`: training and test loss by epoch, of runs or of checkpoints' histories. Needs no torch."""

import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from vaecli import plots
from vaecli.checkpoint import read_metadata, read_state_metadata
from vaecli.errors import CheckpointError, VaeError
from vaecli.files import open_output
from vaecli.lock import LOCK
from vaecli.metrics import EpochRecord, read_metrics, to_csv
from vaecli.plots.curves import Metric
from vaecli.plots.curves import curves as draw
from vaecli.run import CONFIG, METRICS, STATE, find_checkpoint, read_config, resume_command, run_files
from vaecli.services import Observer
from vaecli.services.outputs import Written, guard_output


def curves(
    paths: Sequence[str],
    *,
    output: str | BinaryIO,
    form: str,
    metric: Metric = "loss",
    log_scale: bool = False,
    observer: Observer | None = None,
) -> Written:
    """Draw the learning curves of run folders (finished or not) and weights files in one figure.

    As csv: all their metrics, a row a run and epoch. A run without a finished epoch is left out, and beside
    runs also other files and folders, as a shell's `outputs/*` names them; the observer hears of each.
    Raises VaeError if nothing is left or, on a log scale, for a run without a value above 0,
    CheckpointError for weights that are damaged or not there.
    """
    observer, paths = observer or Observer(), [paths] if isinstance(paths, str) else paths
    guard_output(output, *(path for path in paths if not os.path.isdir(path)))
    unique: dict[str, str] = {}
    for path in paths:
        unique.setdefault(os.path.realpath(path), path)
    histories: dict[str, Sequence[EpochRecord]] = {}
    strangers: dict[str, CheckpointError] = {}
    for path in unique.values():
        try:
            histories[path] = _history(path)
        except CheckpointError as error:
            if not _is_strange(path):
                raise
            strangers[path] = error
    if not histories:
        raise next(iter(strangers.values()))
    if not any(histories.values()):
        first, *others = histories
        which = f"{first} and {len(others)} more have" if others else f"{first} has"
        raise VaeError(
            f"{which} no finished epoch yet. Wait for the first one, or go on with '{resume_command(first)}'."
        )
    for path in strangers:
        observer.note(f"Left out {path}: it is no run.")
    runs = {}
    for name, (path, history) in zip(_names(list(histories)), histories.items(), strict=True):
        if not history:
            observer.note(f"Left out {path}: it has no finished epoch yet.")
            continue
        if log_scale and not any(getattr(record, f"test_{metric}") > 0 for record in history):
            raise VaeError(f"No test {metric} of {path} is above 0. Leave out --log-scale.")
        runs[name] = history
    if form != "csv" and not log_scale and _few_are_far_above(runs.values(), metric):
        observer.note("A few values are far above the others: --log-scale keeps both apart.")
    data = to_csv(runs) if form == "csv" else plots.render(draw(runs, metric, log_scale), form)
    with open_output(output) as stream:
        stream.write(data)
    return Written.to(output)


def _history(path: str) -> Sequence[EpochRecord]:
    """Its epochs; none of a run in its first one, or before."""
    metrics, state = (os.path.join(path, name) for name in (METRICS, STATE))
    if os.path.isfile(metrics) and (records := read_metrics(metrics)):
        return records
    if os.path.isfile(state):
        return read_state_metadata(state).history
    try:
        checkpoint = find_checkpoint(path)
    except CheckpointError:
        if os.path.isfile(os.path.join(path, CONFIG)):
            read_config(path)  # raises if it is another program's
            return ()
        if os.path.isfile(os.path.join(path, LOCK)):  # a training that is reading its data
            return ()
        raise
    return read_metadata(checkpoint).history


def _few_are_far_above(histories: Iterable[Sequence[EpochRecord]], metric: Metric) -> bool:
    """Whether the largest value makes a line along the axis of most others, as a first epoch's loss may."""
    records = [record for history in histories for record in history]
    values = [getattr(record, f"{split}_{metric}") for record in records for split in ("train", "test")]
    return bool(max(values) > 20 * statistics.median(values) > 0)


def _is_strange(path: str) -> bool:
    """Whether it is there, but nothing that a training makes."""
    if os.path.isdir(path):
        return not run_files(path)
    return os.path.lexists(path) and not path.endswith(".safetensors")  # a link that leads nowhere is there, too


def _names(paths: Sequence[str]) -> list[str]:
    """Run folders by name, files as `<run>/<file>`, with as many folders before them as tell them apart."""
    parts = [Path(os.path.abspath(path).removesuffix(".safetensors")).parts for path in paths]
    for more in range(max(map(len, parts))):
        least = (1 if os.path.isdir(path) else 2 for path in paths)
        names = [os.path.join(*part[-(count + more) :]) for part, count in zip(parts, least, strict=True)]
        if len(set(names)) == len(names):
            return names
    return list(paths)
