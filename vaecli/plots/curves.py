"""Learning curves: what training and test brought by epoch, of one or many runs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vaecli.metrics import EpochRecord
from vaecli.plots import class_colour, legend_size, plain, styled, told_apart

Metric = Literal["loss", "reconstruction", "kl"]

_LABELS = {"loss": "negative ELBO", "reconstruction": "reconstruction", "kl": "KL divergence"}
_MARKERS = "os^Dv<P>X"  # beside the colours: runs stay apart in grey
MOST_SHADED = 4  # runs; the gaps of more would hide each other
_STAR: Any = {
    "marker": "*",
    "markersize": 13,
    "markeredgecolor": "0.1",
    "markeredgewidth": 0.8,
    "linestyle": "",
    "zorder": 4,
}


@styled()
def curves(runs: Mapping[str, Sequence[EpochRecord]], metric: Metric, log_scale: bool = False) -> Figure:
    """Training (dashed) and test (solid) values by epoch, the gap between them shaded if runs are few, a colour a run.

    A star marks the epoch with the lowest test loss, whatever the metric: the lowest KL is often that of a model which
    has learnt nothing yet. On a log scale, what is not above 0 is left out.
    """
    handles, names = _legend(runs, metric)
    columns, width = legend_size(names)
    figure = Figure(figsize=(6.2 + width, 4.5), layout="constrained")  # inches
    axis = figure.subplots()
    longest = max(map(len, runs.values()))
    for index, records in enumerate(runs.values()):
        _curve(axis, records, metric, index, 1 + (longest - 1) // 12, shaded=len(runs) <= MOST_SHADED)
    if len(runs) == 1:
        axis.set_title(plain(next(iter(runs))))
    axis.set(xlabel="epoch", ylabel=f"{_LABELS[metric]} (nats per image)")
    axis.set_xlim(1 - max(0.3, 0.02 * longest), longest + max(0.3, 0.02 * longest))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if log_scale:
        _log_scale(axis)
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    figure.legend(handles, names, loc="outside right upper", handlelength=2.4, ncols=columns)
    return figure


def _legend(runs: Mapping[str, Sequence[EpochRecord]], metric: Metric) -> tuple[list[Artist], list[str]]:
    """Of one run, what its lines are; of several, each one's colour, marker and best test value before that."""
    handles: list[Artist] = []
    names: list[str] = []
    for index, (name, records) in enumerate(zip(told_apart(list(runs)), runs.values(), strict=True)):
        best = _best(records)
        value = _value(best, "test", metric)
        shown = f"{value:{'.2f' if value >= 0.1 else '#.2g'}} at epoch {best.epoch}"
        names.append(f"{name}: {shown}")
        handles.append(Line2D([], [], color=class_colour(index), marker=_marker(index), markersize=5))
    colour = "0.35"
    if len(runs) == 1:
        handles, names, colour = [], [], class_colour(0)
    dots: Any = {"marker": _marker(0), "markersize": 4.5} if len(runs) == 1 else {}
    handles.append(Line2D([], [], color=colour, linestyle="--", markerfacecolor="white", **dots))
    handles.append(Line2D([], [], color=colour, linestyle="-", **dots))
    names += ["training", "test"]
    if len(runs) <= MOST_SHADED and max(map(len, runs.values())) > 1:
        handles.append(Patch(color=colour, alpha=0.2, linewidth=0))
        names.append("gap")
    handles.append(Line2D([], [], color=colour, **_STAR))
    starred = "lowest test value" if metric == "loss" else "where test loss is lowest"
    names.append(f"{starred}: {shown}" if len(runs) == 1 else starred)
    return handles, names


def _best(records: Sequence[EpochRecord]) -> EpochRecord:
    """The first epoch with the lowest test loss."""
    return min(records, key=lambda record: record.test_loss)


def _value(record: EpochRecord, split: str, metric: Metric) -> float:
    value: float = getattr(record, f"{split}_{metric}")
    return value


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def _curve(axis: Axes, records: Sequence[EpochRecord], metric: Metric, index: int, every: int, shaded: bool) -> None:
    """The run number `index`, with a marker every so many epochs, and the gap between its lines shaded or not."""
    epochs = [record.epoch for record in records]
    train, test = ([_value(record, split, metric) for record in records] for split in ("train", "test"))
    style: Any = {"color": class_colour(index), "marker": _marker(index), "markersize": 4.5, "markevery": every}
    if shaded:
        axis.fill_between(epochs, train, test, color=class_colour(index), alpha=0.12, linewidth=0)
    axis.plot(epochs, train, linestyle="--", markerfacecolor="white", **style)
    axis.plot(epochs, test, linestyle="-", **style)
    best = _best(records)
    axis.plot(best.epoch, _value(best, "test", metric), color=class_colour(index), **_STAR)


def _log_scale(axis: Axes) -> None:
    """Plain numbers at round places, also where all values lie within one power of ten."""
    axis.set_yscale("log", nonpositive="mask")
    low, high = axis.get_ylim()
    if high < 2 * low:
        axis.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    elif high < 20 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
    else:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
