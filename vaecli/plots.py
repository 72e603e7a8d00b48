"""The figures, as matplotlib Figures without pyplot: no global state, no display, the same bytes each time."""

import io
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

# Before matplotlib is imported: a home that cannot be written is worth no lines on stderr, and a
# backend chosen for interactive work, maybe one that is not installed here, is of no use.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
os.environ["MPLBACKEND"] = "agg"

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vaecli.metrics import EpochRecord

Metric = Literal["loss", "reconstruction", "kl"]

# Paul Tol's "muted" scheme (personal.sron.nl/~pault), made to stay apart under the common
# colour-vision deficiencies and in lightness; reordered so that digits that a VAE puts side by side
# (4 7 9, 3 5 8) differ most. A class has the same colour in every figure.
PALETTE = (
    "#332288", "#88CCEE", "#117733", "#CC6677", "#AA4499",
    "#44AA99", "#999933", "#DDCC77", "#882255", "#777777",
)  # fmt: skip
UNLABELLED = PALETTE[0]
MAX_PANELS = 16
# Up to so many points: their area in square points, and their opacity.
_MARKERS = ((200, 20.0, 0.8), (2_000, 9.0, 0.7), (20_000, 4.0, 0.55), (math.inf, 1.5, 0.4))
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "svg.hashsalt": "vae",
}


def render(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a png, svg or pdf file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # names in any script
        figure.savefig(buffer, format=form, dpi=120, bbox_inches="tight", metadata=undated[form])
    return buffer.getvalue()


def _plain(name: str, longest: int = 80) -> str:
    """A name as text that can be drawn: no mathematics between dollars, nothing unprintable, not endless."""
    shown = "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def class_colour(label: int) -> str:
    """The colour of a class, whatever else is in the figure."""
    if label < len(PALETTE):
        return PALETTE[label]
    # Golden-ratio steps around the wheel keep neighbours apart for any number of classes.
    return mpl.colors.to_hex(mpl.colormaps["hsv"]((label * 0.618034) % 1))


def panels(z_dim: int) -> list[tuple[int, int]]:
    """The pairs of dimensions to show: consecutive ones, a left-over one against dimension 0."""
    pairs = [(i, i + 1) for i in range(0, z_dim - 1, 2)]
    return [*pairs, (0, z_dim - 1)] if z_dim > 1 and z_dim % 2 else pairs


def scatter(
    codes: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64] | None,
    class_names: Sequence[str],
    title: str,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Figure:
    """Codes (N, Z) by class: histograms for one dimension, else a panel a pair of dimensions.

    `pairs` are those of `panels` unless given; at most 16 are shown. All axes have one scale and are
    centred on 0, where the prior is.
    """
    with mpl.rc_context(_STYLE):
        pairs = (panels(codes.shape[1]) if pairs is None else pairs)[:MAX_PANELS]
        columns = min(len(pairs), 4 if len(pairs) > 4 else 2) or 1
        rows = -(-len(pairs) // columns) or 1
        side = 5.4 if columns == 1 else 4.6 if columns == 2 else 3.4
        groups = _groups(labels, len(codes))
        names = {label: _class_name(label, class_names) for label in groups if label is not None}
        legend_columns = 1 + (len(names) - 1) // 20
        legend_width = legend_columns * (0.7 + 0.09 * max(map(len, names.values()), default=0))  # inches
        spaced = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)  # inches: room for each panel's labels
        figure = Figure(figsize=(side * columns + legend_width, side * rows + 0.5), layout=spaced)
        figure.suptitle(_plain(title), fontsize=12)
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for extra in axes[max(len(pairs), 1) :]:
            extra.remove()
        if pairs:
            limit = 1.05 * float(np.abs(codes).max()) or 1.0
            for axis, pair in zip(axes[: len(pairs)], pairs, strict=True):
                _scatter_panel(axis, codes, pair, groups, limit)
        else:
            _histograms(axes[0], codes[:, 0], groups)
        if names:
            dots = [Line2D([], [], linestyle="none", marker="o", markersize=7, color=class_colour(n)) for n in names]
            text = list(names.values())
            figure.legend(dots, text, loc="outside right center", ncols=legend_columns, handletextpad=0.2)
        return figure


def _groups(labels: npt.NDArray[np.int64] | None, count: int) -> Mapping[int | None, npt.NDArray[np.int64]]:
    """The rows of each class; without labels, all rows."""
    if labels is None:
        return {None: np.arange(count)}
    return {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def _scatter_panel(
    axis: Axes,
    codes: npt.NDArray[np.float32],
    pair: tuple[int, int],
    groups: Mapping[int | None, npt.NDArray[np.int64]],
    limit: float,
) -> None:
    colours = np.empty(len(codes), dtype="U9")
    for label, rows in groups.items():
        colours[rows] = UNLABELLED if label is None else class_colour(label)
    # One shuffled draw: class by class, the last one would hide the others.
    order = np.random.default_rng(0).permutation(len(codes))
    size, alpha = next((size, alpha) for most, size, alpha in _MARKERS if len(codes) <= most)
    axis.scatter(
        codes[order, pair[0]],
        codes[order, pair[1]],
        s=size,
        c=colours[order],
        alpha=alpha,
        linewidths=0,
        rasterized=True,  # 10,000 vector points make an SVG that no viewer likes
    )
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axis.set(xlabel=f"z[{pair[0]}]", ylabel=f"z[{pair[1]}]")
    for line in (axis.axhline, axis.axvline):
        line(0, color="0.8", linewidth=0.8, zorder=0)


def _histograms(axis: Axes, codes: npt.NDArray[np.float32], groups: Mapping[int | None, npt.NDArray[np.int64]]) -> None:
    limit = 1.05 * float(np.abs(codes).max()) or 1.0
    bins = np.linspace(-limit, limit, 81).tolist()
    for label, rows in groups.items():
        colour = UNLABELLED if label is None else class_colour(label)
        axis.hist(codes[rows], bins=bins, color=colour, alpha=0.3, histtype="stepfilled")
        axis.hist(codes[rows], bins=bins, color=colour, linewidth=1.4, histtype="step")
    axis.set(xlabel="z[0]", ylabel="images", xlim=(-limit, limit))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))


def _class_name(label: int, class_names: Sequence[str]) -> str:
    return _plain(class_names[label], 32) if label < len(class_names) else str(label)


def curves(runs: Mapping[str, Sequence[EpochRecord]], metric: Metric) -> Figure:
    """Training (dashed) and test (solid) values by epoch of one or several runs, a colour a run."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.5), layout="constrained")
        axis = figure.subplots()
        handles, names = [], []
        for (name, records), colour in zip(runs.items(), _cycle(len(runs)), strict=True):
            epochs = [record.epoch for record in records]
            marker = "o" if len(epochs) <= 12 else ""
            style = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.6}
            train = [getattr(record, f"train_{metric}") for record in records]
            test = [getattr(record, f"test_{metric}") for record in records]
            dashed = axis.plot(epochs, train, linestyle="--", markerfacecolor="white", **style)  # type: ignore[arg-type]
            solid = axis.plot(epochs, test, linestyle="-", **style)  # type: ignore[arg-type]
            if len(runs) == 1:
                handles, names = [*dashed, *solid], ["training", "test"]
                axis.set_title(_plain(name))
            else:
                handles, names = [*handles, *solid], [*names, _plain(name, 32)]
        if len(runs) > 1:
            handles += [Line2D([], [], color="0.3", linestyle=style) for style in ("--", "-")]
            names += ["training", "test"]
        label = {"loss": "negative ELBO", "reconstruction": "reconstruction", "kl": "KL divergence"}[metric]
        axis.set(xlabel="epoch", ylabel=f"{label} (nats per image)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        figure.legend(handles, names, loc="outside right upper", handlelength=2.4)
        return figure


def _cycle(count: int) -> list[str]:
    return [class_colour(index) for index in range(count)]
