"""The table of the tutorial's results: `python tests/benchmarks/results.py outputs/mnist-z2 outputs/mnist-z2-seed1 ...`

A row a z_dim, in Markdown: means over its runs with the lowest and the highest in brackets. What a
run's `measures-K.json` holds (`vae test --importance-samples K --knn 5 --json`) has its own columns.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vaecli.metrics import EpochRecord, read_metrics
from vaecli.run import METRICS, Settings, read_config

COLUMNS: dict[str, Callable[[EpochRecord], float]] = {
    "training loss": lambda last: last.train_loss,
    "test loss": lambda last: last.test_loss,
    "reconstruction": lambda last: last.test_reconstruction,
    "KL": lambda last: last.test_kl,
}


def table(folders: list[Path]) -> str:
    """Runs of equal z_dim, which may differ in seed and precision, make a row."""
    rows: dict[int, list[Path]] = {}
    for folder in folders:
        rows.setdefault(read_config(str(folder)).z_dim, []).append(folder)
    lines = [
        ["z_dim", "epochs", "runs", *COLUMNS, "log-likelihood", "active units", "nearest neighbours"],
        ["---", *["---:"] * (len(COLUMNS) + 5)],
    ]
    for z_dim, runs in sorted(rows.items()):
        ends = [read_metrics(str(run / METRICS))[-1] for run in runs]
        if len({end.epoch for end in ends}) > 1 or len({recipe(run) for run in runs}) > 1:
            raise SystemExit(f"Runs of {z_dim} dimensions differ in more than seed and precision.")
        losses = [spread([column(end) for end in ends]) for column in COLUMNS.values()]
        lines.append([str(z_dim), str(ends[0].epoch), str(len(runs)), *losses, *measures(runs)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(values: list[float]) -> str:
    mean = f"{sum(values) / len(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def recipe(run: Path) -> Settings:
    settings = read_config(str(run))
    return replace(settings, seed=0, precision="auto", device="auto", checkpoint_every=1, log_interval=0)


def measures(runs: list[Path]) -> list[str]:
    """The columns of the first run that has been measured, with the most draws."""
    found = [json.loads(path.read_text()) for run in runs[::-1] for path in run.glob("measures-*.json")]
    if not found:
        return ["", "", ""]
    one: dict[str, Any] = max(found, key=lambda each: int(each["importance_samples"]))
    bound = f"{one['log_likelihood']:.2f} ± {one['log_likelihood_se']:.2f} (K = {one['importance_samples']})"
    neighbours = f"{100 * one['knn_accuracy']:.1f}% ({one['knn']})" if "knn" in one else ""
    return [bound, str(one["active_units"]), neighbours]


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]]))
