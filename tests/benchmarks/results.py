"""The table of the tutorial's results: `python tests/benchmarks/results.py MEASURES RUN...`

A column a z_dim, in Markdown: means over its runs with the lowest and the highest in brackets. What the
file MEASURES (`vae test --json`) in the first of these runs says has rows of its own.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vaecli.metrics import read_metrics
from vaecli.run import METRICS, Settings, read_config

LOSSES = {
    "training loss": "train_loss",
    "test loss": "test_loss",
    "its reconstruction": "test_reconstruction",
    "its KL": "test_kl",
}


def table(folders: list[Path], measured: str) -> str:
    """Runs of equal z_dim, which may differ in seed and precision, make a column."""
    columns: dict[int, list[Path]] = {}
    for folder in folders:
        columns.setdefault(read_config(str(folder)).z_dim, []).append(folder)
    cells = [column(z_dim, runs, measured) for z_dim, runs in sorted(columns.items())]
    names = dict.fromkeys(name for each in cells for name in each)
    rows = [[name, *(each.get(name, "") for each in cells)] for name in names]
    rows.insert(1, ["---", *["---:"] * len(cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def column(z_dim: int, runs: list[Path], measured: str) -> dict[str, str]:
    """What is said of one z_dim, by the name of its row."""
    ends = [read_metrics(str(run / METRICS))[-1] for run in runs]
    if len({end.epoch for end in ends}) > 1 or len({recipe(run) for run in runs}) > 1:
        raise SystemExit(f"Runs of {z_dim} dimensions differ in more than seed and precision.")
    losses = {name: spread([getattr(end, field) for end in ends]) for name, field in LOSSES.items()}
    return (
        {"": f"z_dim {z_dim}", "epochs": str(ends[0].epoch), "seeds": str(len(runs))}
        | losses
        | measures(runs[0] / measured)
    )


def recipe(run: Path) -> Settings:
    settings = read_config(str(run))
    return replace(settings, seed=0, precision="auto", device="auto", checkpoint_every=1, log_interval=0)


def spread(values: list[float]) -> str:
    mean = f"{sum(values) / len(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def measures(file: Path) -> dict[str, str]:
    """The rows of what `vae test` said."""
    one: dict[str, Any] = json.loads(file.read_text())
    rows = {"active units": str(one["active_units"])}
    if "knn" in one:
        rows[f"{one['knn']} nearest neighbours"] = f"{one['knn_accuracy']:.1%}"
    if "importance_samples" in one:
        bound = f"{one['log_likelihood']:.2f} ± {one['log_likelihood_se']:.2f}"
        rows[f"log-likelihood, K = {one['importance_samples']}"] = bound
    return rows


if __name__ == "__main__":
    print(table([Path(run) for run in sys.argv[2:]], sys.argv[1]))
