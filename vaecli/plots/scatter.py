"""Where images lie in the latent space: a panel a pair of dimensions; of one dimension, a row a class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from vaecli.plots import class_colour, drawable, legend_size, styled, told_apart

Codes = npt.NDArray[np.float32]
Groups = Mapping[int | None, npt.NDArray[np.int64]]  # the rows of each class; None: without labels

MAX_PANELS = 16
MAX_NAMES = 60  # classes that are named
MANIFOLD_SIDE = 22  # decoded images along an axis
_PRIOR: Any = {"color": "0.25", "linewidth": 0.9, "linestyle": (0, (4, 3)), "alpha": 0.65}
_INK = 0.3  # the points' area in all, as a share of the panel's


def panels(z_dim: int) -> list[tuple[int, int]]:
    """The pairs of dimensions to show: consecutive ones, a left-over one against dimension 0."""
    pairs = [(i, i + 1) for i in range(0, z_dim - 1, 2)]
    return [*pairs, (0, z_dim - 1)] if z_dim > 1 and z_dim % 2 else pairs


def reach(codes: Codes) -> float:
    """How far all axes go from 0: past every code, and past the prior's two sigma."""
    return max(1.05 * float(np.abs(codes).max()), 2.2)


def manifold_codes(codes: Codes) -> Codes:
    """The (x, y) at the centres of the tiles that fill a panel, row by row from its top left, (M, 2)."""
    edge = reach(codes)
    centres = edge * ((2 * np.arange(MANIFOLD_SIDE) + 1) / MANIFOLD_SIDE - 1)
    x, y = np.meshgrid(centres, centres[::-1])
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


@styled()
def scatter(
    codes: Codes,
    labels: npt.NDArray[np.int64] | None,
    class_names: Sequence[str],
    title: str,
    pairs: Sequence[tuple[int, int]] | None = None,
    axis_names: Sequence[str] | None = None,
    manifold: npt.NDArray[np.uint8] | None = None,
) -> Figure:
    """Codes (N, Z) by class, and the prior's one and two sigma: a panel for each of `pairs`.

    `pairs` are those of `panels` unless given, at most 16. All axes have one scale and are centred on
    0, where the prior is. `axis_names` are z[0], z[1], ... unless given. `manifold`, uint8
    (M, 28, 28), are the images decoded at `manifold_codes` and lie behind the points.
    """
    pairs = (panels(codes.shape[1]) if pairs is None else pairs)[:MAX_PANELS]
    axis_names = axis_names or [f"z[{i}]" for i in range(codes.shape[1])]
    groups = _groups(labels, len(codes))
    named = [label for label in list(groups)[:MAX_NAMES] if label is not None]
    names = dict(zip(named, told_apart([_name(class_names, label) for label in named]), strict=True))
    unnamed = 0 if labels is None else len(groups) - len(names)
    handles, entries = _legend(names if pairs else {}, unnamed)  # of one dimension, the rows are named
    legend_columns, legend_width = legend_size(entries)

    columns = {0: 1, 1: 1, 2: 2, 3: 3, 4: 2}.get(len(pairs), 3 if len(pairs) <= 6 else 4)
    rows = -(-len(pairs) // columns) or 1
    side = 7.0 if manifold is not None else {1: 5.4, 2: 4.6, 3: 4.0}.get(columns, 3.4)  # inches
    height = side * rows if pairs else max(side, 0.34 * len(names) + 1)
    spaced = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, compress=True)  # inches: room for labels
    figure = Figure(figsize=(side * columns + legend_width, height + 0.4), layout=spaced)
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for extra in axes[max(len(pairs), 1) :]:
        extra.remove()
    edge = reach(codes)
    for axis, pair in zip(axes, pairs, strict=False):
        points = codes[:, pair]
        axis.set(xlabel=axis_names[pair[0]], ylabel=axis_names[pair[1]])
        _points(axis, points, groups, side, small=manifold is not None)
        _circles(axis)
        if manifold is None:
            _name_classes(axis, points, groups, names, edge, side)
        else:
            _manifold(axis, manifold, edge)
        axis.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal")
        for each in (axis.xaxis, axis.yaxis):  # one scale, so the same ticks
            each.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    if not pairs:
        _ridges(axes[0], codes[:, 0], groups, names, edge)
        axes[0].set(xlabel=axis_names[0], xlim=(-edge, edge))
    figure.legend(handles, entries, loc="outside right center", ncols=legend_columns, handletextpad=0.4)
    return figure


def _name(class_names: Sequence[str], label: int) -> str:
    """The class's name, or its number if the font lacks it: as `#7`, for another class may be called 7."""
    name = class_names[label] if label < len(class_names) else str(label)
    return name if drawable(name) else f"#{label}"


def _legend(names: Mapping[int, str], unnamed: int) -> tuple[list[Line2D], list[str]]:
    handles = [Line2D([], [], linestyle="", marker="o", markersize=7, color=class_colour(n)) for n in names]
    entries = list(names.values())
    if unnamed:
        more = f"and {unnamed:,} more" if names else f"{unnamed:,} more classes,\nnot shown"
        handles, entries = [*handles, Line2D([], [], linestyle="")], [*entries, more]
    return [*handles, Line2D([], [], **_PRIOR)], [*entries, "prior 1σ, 2σ"]  # noqa: RUF001


def _groups(labels: npt.NDArray[np.int64] | None, count: int) -> Groups:
    if labels is None:
        return {None: np.arange(count)}
    return {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def _points(axis: Axes, points: Codes, groups: Groups, side: float, small: bool) -> None:
    colours = np.empty(len(points), dtype="U9")
    for label, rows in groups.items():
        colours[rows] = class_colour(label or 0)
    # One shuffled draw: class by class, the last one would hide the others.
    order = np.random.default_rng(0).permutation(len(points))
    area = _INK * (72 * side) ** 2 / len(points)  # square points
    axis.scatter(
        points[order, 0],
        points[order, 1],
        s=float(np.clip(area, 0.9, 18)) * (0.5 if small else 1),
        c=colours[order],
        alpha=0.8 if len(points) <= 2_000 else 0.6,
        linewidths=0,
        rasterized=True,  # 10,000 vector points make an SVG that no viewer likes
    )


def _circles(axis: Axes) -> None:
    halo = [withStroke(linewidth=2.6, foreground="white")]  # else they drown in dense points
    for sigma in (1, 2):
        axis.add_patch(Circle((0, 0), sigma, fill=False, zorder=2.5, path_effects=halo, **_PRIOR))
    for line in (axis.axhline, axis.axvline):
        line(0, color="0.85", linewidth=0.8, zorder=0.5)


def _manifold(axis: Axes, images: npt.NDArray[np.uint8], edge: float) -> None:
    tiles = np.pad(images, ((0, 0), (1, 1), (1, 1)))  # (M, 30, 30)
    rows = tiles.reshape(MANIFOLD_SIDE, MANIFOLD_SIDE, *tiles.shape[1:]).swapaxes(1, 2)
    sheet = rows.reshape(MANIFOLD_SIDE * tiles.shape[1], -1)
    # Dark on white and pale, so that the points stay the figure's subject.
    pale = 255 - (sheet * 0.38).astype(np.uint8)
    axis.imshow(pale, cmap="gray", vmin=0, vmax=255, extent=(-edge, edge, -edge, edge), zorder=0)


def _name_classes(
    axis: Axes, points: Codes, groups: Groups, names: Mapping[int, str], edge: float, side: float
) -> None:
    """Each class's name where it is dense and purest, for print without colour.

    A name that would hide another is left out, and that of a class of a few points, or of one that
    is nowhere a third of what lies there.
    """
    size = 9 if side > 4 else 7.5
    names = {label: name for label, name in names.items() if len(groups[label]) >= 20 and len(groups) <= 30}
    if not names:
        return
    edges = np.linspace(-edge, edge, 49)
    centres = (edges[:-1] + edges[1:]) / 2
    unit = 2 * edge / (72 * (side - 0.8))  # what a point of the type's size is on the axes
    counts = {label: _smooth(points[groups[label]], edges) for label in names}
    total = np.sum(list(counts.values()), axis=0) + 1e-9
    merits = {label: count**2 / total for label, count in counts.items()}
    taken: list[tuple[float, float, float, float]] = []
    for label in sorted(names, key=lambda label: -float(merits[label].max())):
        width, height = (0.7 * size * len(names[label]) + 3) * unit / 2, 1.25 * size * unit / 2
        for place in np.argsort(-merits[label], axis=None, kind="stable")[:300]:
            i, j = np.unravel_index(place, merits[label].shape)
            x, y = float(centres[i]), float(centres[j])
            if merits[label][i, j] < 0.15 * merits[label].max():
                break
            if counts[label][i, j] < total[i, j] / 3:
                continue
            if abs(x) + width < edge and all(abs(x - a) > width + c or abs(y - b) > height + d for a, b, c, d in taken):
                taken.append((x, y, width, height))
                halo = [withStroke(linewidth=2.5, foreground="white")]
                style: Any = {"ha": "center", "va": "center", "fontsize": size, "weight": "bold", "color": "0.1"}
                axis.text(x, y, names[label], path_effects=halo, zorder=4, **style)
                break


def _smooth(points: Codes, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How many points lie in each square and its neighbours."""
    padded = np.pad(np.histogram2d(points[:, 0], points[:, 1], bins=[edges, edges])[0], 1)
    along = padded[:-2] + padded[1:-1] + padded[2:]
    return along[:, :-2] + along[:, 1:-1] + along[:, 2:]


def _ridges(axis: Axes, values: Codes, groups: Groups, names: Mapping[int, str], edge: float) -> None:
    """A histogram a class, one above the other on one scale, each a share of its class; without labels the count."""
    bins = np.linspace(-edge, edge, 97)
    rows = {label: np.histogram(values[groups[label]], bins)[0] / len(groups[label]) for label in names}
    scale = 0.92 / max((float(row.max()) for row in rows.values()), default=1.0)
    for base, (label, row) in enumerate(rows.items()):
        _stairs(axis, scale * row - base, bins, -base, class_colour(label))
    if names:
        axis.set_yticks(range(0, -len(rows), -1), list(names.values()))
        axis.set_ylim(0.9 - len(rows), 1.1)
        axis.set_ylabel("share of each class's images")
    else:
        _stairs(axis, np.histogram(values, bins)[0], bins, 0, class_colour(0))
        axis.set_ylabel("images")
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for sigma in (-2, -1, 1, 2):
        axis.axvline(sigma, zorder=0.5, **_PRIOR)


def _stairs(axis: Axes, tops: npt.NDArray[Any], bins: npt.NDArray[Any], base: float, colour: str) -> None:
    axis.stairs(tops, bins.tolist(), baseline=base, fill=True, color=colour, alpha=0.5)
    axis.stairs(tops, bins.tolist(), baseline=base, color=colour, linewidth=1.2)
