"""Figures: what is in them. What they look like is looked at by eye, in outputs/gallery."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, StepPatch

from vaecli import plots
from vaecli.metrics import MAX_LOSS, EpochRecord
from vaecli.plots import class_colour, plain, told_apart
from vaecli.plots.curves import Metric, curves
from vaecli.plots.scatter import MANIFOLD_SIDE, MAX_NAMES, MAX_PANELS, manifold_codes, panels, reach, scatter

PRIOR = "prior 1\u03c3, 2\u03c3"


def codes(z_dim: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, z_dim)).astype(np.float32), np.arange(count) % 10


@pytest.mark.parametrize(
    ("z_dim", "pairs"),
    [
        (1, []),
        (2, [(0, 1)]),
        (3, [(0, 1), (0, 2)]),
        (4, [(0, 1), (2, 3)]),
        (5, [(0, 1), (2, 3), (0, 4)]),
        (6, [(0, 1), (2, 3), (4, 5)]),
    ],
)
def test_panels_are_consecutive_pairs(z_dim: int, pairs: list[tuple[int, int]]) -> None:
    assert panels(z_dim) == pairs
    figure = scatter(*codes(z_dim), tuple("0123456789"), "title")
    labels = [(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes]
    assert labels == ([(f"z[{a}]", f"z[{b}]") for a, b in pairs] or [("z[0]", "share of each class's images")])


def test_all_panels_have_one_scale_centred_on_zero_and_hold_every_point() -> None:
    points, labels = codes(4)
    points[0, 3] = 50
    figure = scatter(points, labels, (), "title")
    limits = {axis.get_xlim() for axis in figure.axes} | {axis.get_ylim() for axis in figure.axes}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high
    assert high > 50
    assert all(axis.get_aspect() == 1 for axis in figure.axes)


def test_all_axes_reach_past_the_priors_circles() -> None:
    """Of a dead latent space, too: the points sit in the middle of the circles, and not alone in a blown-up panel."""
    figure = scatter((codes(4)[0] * 1e-3).astype(np.float32), None, (), "title")
    for axis in figure.axes:
        assert axis.get_xlim()[1] > 2
        circles = [patch for patch in axis.patches if isinstance(patch, Circle)]
        assert [circle.get_radius() for circle in circles] == [1, 2]
        assert not any(coordinate for circle in circles for coordinate in np.ravel(circle.get_center()))


def test_no_class_hides_another() -> None:
    """Classes are drawn mixed: among the last tenth, which lies on top, is every one."""
    points, labels = codes(2, 1_000)
    order = np.argsort(labels)
    drawn = scatter(points[order], labels[order], (), "title").axes[0].collections[0].get_facecolor()
    assert len({to_rgb(tuple(colour)) for colour in np.asarray(drawn)[-100:]}) == 10


def test_more_points_are_smaller() -> None:
    sizes = []
    for count in (100, 10_000, 60_000):
        (drawn,) = scatter(*codes(2, count), (), "title").axes[0].collections
        assert isinstance(drawn, PathCollection)
        sizes.append(drawn.get_sizes()[0])
    assert sizes[0] > sizes[1] > sizes[2] > 0.5


def test_points_are_pixels_in_vector_files() -> None:
    drawn = plots.render(scatter(*codes(2, 5_000), (), "title"), "svg")
    assert drawn.count(b"<image") == 1
    assert drawn.count(b"<use") < 500


def test_classes_are_named_where_they_lie_and_names_never_overlap() -> None:
    generator = np.random.default_rng(0)
    centres = np.stack([np.cos(np.arange(10) * 0.628), np.sin(np.arange(10) * 0.628)], axis=1) * 2
    labels = np.arange(2_000) % 10
    points = (centres[labels] + 0.2 * generator.normal(size=(2_000, 2))).astype(np.float32)
    figure = scatter(points, labels, ("Ankle boot", *"bcdefghij"), "title")
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    assert {text.get_text() for text in texts} == {"Ankle boot", *"bcdefghij"}
    for text in texts:
        label = 0 if text.get_text() == "Ankle boot" else "abcdefghij".index(text.get_text())
        assert np.linalg.norm(np.subtract(text.get_position(), centres[label])) < 0.6
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def heights(axis: Axes) -> list[float]:
    """Of each histogram, its bars' heights in all."""
    steps = [patch.get_data() for patch in axis.patches if isinstance(patch, StepPatch)]
    return [float((np.asarray(tops) - np.asarray(base)).sum()) for tops, _, base in steps]


def test_classes_of_one_dimension_have_a_row_each() -> None:
    points, labels = codes(1, 500)
    figure = scatter(points, labels, tuple("abcdefghij"), "title")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list("abcdefghij")
    totals = heights(axis)
    assert len(totals) == 20
    assert np.allclose(totals, totals[0]), "each is a share of its class"
    uneven = heights(scatter(points, np.minimum(labels, 1), ("a", "b"), "title").axes[0])
    assert np.allclose(uneven, uneven[0])


def test_one_dimension_without_labels_counts_images() -> None:
    (axis,) = scatter(codes(1, 500)[0], None, (), "title").axes
    assert axis.get_ylabel() == "images"
    assert heights(axis)[0] == 500


def test_each_decoded_tile_lies_at_its_code() -> None:
    """The tiles here are flat, each in a grey that only it has: the picture at a code is that code's tile."""
    points, labels = codes(2)
    places = manifold_codes(points)
    tiles = np.zeros((MANIFOLD_SIDE**2, 28, 28), np.uint8)
    tiles[:] = (np.arange(len(tiles)) % 251)[:, None, None]
    (image,) = scatter(points, labels, (), "title", manifold=tiles).axes[0].images
    left, right, bottom, top = image.get_extent()
    sheet = np.asarray(image.get_array())
    assert (left, right, bottom, top) == (-reach(points), reach(points), -reach(points), reach(points))
    for (x, y), tile in zip(places, tiles, strict=True):
        row = int((top - y) / (top - bottom) * len(sheet))
        column = int((x - left) / (right - left) * len(sheet))
        assert sheet[row, column] == 255 - int(tile[0, 0] * 0.38)


def colours(figure: Figure) -> set[tuple[float, ...]]:
    return {to_rgb(tuple(colour)) for axis in figure.axes for colour in np.asarray(axis.collections[0].get_facecolor())}


def test_a_class_keeps_its_colour_whatever_else_is_shown() -> None:
    points, labels = codes(2)
    everything = colours(scatter(points, labels, (), "title"))
    sevens = colours(scatter(points[labels == 7], labels[labels == 7], (), "title"))
    assert sevens == {to_rgb(plots.class_colour(7))}
    assert sevens < everything
    assert len(everything) == 10


@pytest.mark.parametrize(("edge", "panels"), [(1.0, 1), (3.3, 2), (3.4, 16), (40.0, 3)])
def test_both_axes_have_the_same_ticks(edge: float, panels: int) -> None:
    z = codes(2 * panels)[0]
    z[0, 0] = edge
    for axis in scatter(z, None, (), "title").axes:
        assert axis.get_xticks().tolist() == axis.get_yticks().tolist()
        assert 3 <= len(axis.get_xticks()) <= 11


def test_legend_names_the_classes_that_are_there_and_lies_off_the_points() -> None:
    points, labels = codes(4)
    figure = scatter(points, labels, tuple("abcdefghij"), "title")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*"abcdefghij", PRIOR]
    box = legend.get_window_extent()
    assert not any(box.overlaps(axis.get_window_extent()) for axis in figure.axes)
    assert figure.bbox.x1 >= box.x1


def test_without_labels_the_legend_is_of_the_prior_alone() -> None:
    (legend,) = scatter(codes(2)[0], None, (), "title").legends
    assert [text.get_text() for text in legend.get_texts()] == [PRIOR]


@pytest.mark.parametrize("z_dim", [1, 2])
def test_thousands_of_classes_make_a_figure_of_sane_size(z_dim: int) -> None:
    points = codes(z_dim, 3_000)[0]
    figure = scatter(points, np.arange(3_000), (), "title")
    assert max(figure.get_size_inches()) < 25
    more = {1: f"{3_000 - MAX_NAMES:,} more classes,\nnot shown", 2: f"and {3_000 - MAX_NAMES:,} more"}[z_dim]
    assert more in [text.get_text() for text in figure.legends[0].get_texts()]


def test_any_number_of_classes_has_colours_of_its_own() -> None:
    assert len({plots.class_colour(label) for label in range(62)}) == 62


def test_a_class_whose_name_the_font_lacks_goes_by_its_number() -> None:
    names = ("zéro", "日本", "中国")
    assert texts(scatter(*codes(2), names, "title"))[:4] == ["zéro", "#1", "#2", "3"]


def test_many_dimensions_show_the_first_panels() -> None:
    assert len(scatter(*codes(100), (), "title").axes) == MAX_PANELS


def history(epochs: int, level: float = 150.0) -> list[EpochRecord]:
    return [EpochRecord(e, level + 9 / e, level, 5.0, level + 10 / e, level, 6.0) for e in range(1, epochs + 1)]


def lines(figure: Figure, style: str) -> list[Line2D]:
    return [line for line in figure.axes[0].lines if line.get_linestyle() == style]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_are_the_histories() -> None:
    figure = curves({"run": history(5)}, "loss")
    (train,), (test,) = lines(figure, "--"), lines(figure, "-")
    assert np.asarray(train.get_ydata()).tolist() == [record.train_loss for record in history(5)]
    assert np.asarray(test.get_ydata()).tolist() == [record.test_loss for record in history(5)]
    assert texts(figure) == ["training", "test", "gap", "lowest test value: 152.00 at epoch 5"]


def test_the_largest_losses_that_are_read_can_be_drawn() -> None:
    values = np.array([-MAX_LOSS, MAX_LOSS, 5e-324]) * (1 - 1e-9)
    records = [EpochRecord(e, *[float(value)] * 6) for e, value in enumerate(values, 1)]
    for log_scale in (False, True):
        assert plots.render(curves({"run": records}, "loss", log_scale), "png").startswith(b"\x89PNG")


def test_a_star_marks_the_lowest_test_loss_whatever_the_metric() -> None:
    records = [EpochRecord(e, 9, 8, 1, test, test - kl, kl) for e, test, kl in [(1, 12, 3), (2, 10, 2.5), (3, 11, 2)]]
    for metric, value in (("loss", 10), ("reconstruction", 7.5), ("kl", 2.5)):
        figure = curves({"run": records}, metric)  # type: ignore[arg-type]
        (star,) = lines(figure, "None")
        assert (star.get_xdata(), star.get_ydata()) == ([2], [value])
        said = "lowest test value" if metric == "loss" else "where test loss is lowest"
        assert texts(figure)[-1] == f"{said}: {value:.2f} at epoch 2"


def test_the_gap_between_training_and_test_is_filled() -> None:
    (gap,) = curves({"run": history(5)}, "loss").axes[0].collections
    four, five = (curves({str(run): history(5) for run in range(count)}, "loss") for count in (4, 5))
    assert len(four.axes[0].collections) == 4
    assert "gap" in texts(four)
    assert not five.axes[0].collections  # they would hide each other
    assert "gap" not in texts(five)
    corners = {tuple(corner) for corner in gap.get_paths()[0].vertices.tolist()}  # type: ignore[union-attr]
    for record in history(5):
        assert {(record.epoch, record.train_loss), (record.epoch, record.test_loss)} <= corners


def lab(colour: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """CIELAB (D65) of an sRGB colour."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = np.cbrt(to_xyz @ linear / [0.95047, 1, 1.08883])  # none of them is dark enough for the linear part
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_colours_of_digits_and_letters_are_far_apart() -> None:
    colours = [lab(class_colour(label)) for label in range(26)]
    assert min(math.dist(one, other) for one, other in itertools.combinations(colours, 2)) > 22
    assert len({class_colour(label) for label in range(60)}) == 60


def test_long_names_are_told_apart() -> None:
    sweep = [f"fashion-mnist-convvae-z2-lr{rate}-cosine-schedule-kl-warmup-10-seed0" for rate in (0.001, 0.003)]
    shown = texts(curves({name: history(3) for name in sweep}, "loss"))[:2]
    assert shown[0] != shown[1]
    assert told_apart(["a" * 100]) == [plain("a" * 100, 60)]
    assert told_apart(["\x00", "\x01"]) == ["?", "?"]  # nothing helps


@pytest.mark.parametrize(("loss", "shown"), [(0.0297, "0.030"), (0.1, "0.10"), (1e-9, "1.0e-09")])
def test_small_values_keep_two_digits(loss: float, shown: str) -> None:
    figure = curves({"run": [EpochRecord(1, 1, 1, 0, loss, loss, 0)]}, "loss")
    assert texts(figure)[-1] == f"lowest test value: {shown} at epoch 1"


def test_several_runs_are_named_and_told_apart_by_colour_and_marker() -> None:
    figure = curves({"a": history(3), "b": history(60, 130)}, "kl")
    assert texts(figure)[:2] == ["a: 6.00 at epoch 3", "b: 6.00 at epoch 60"]
    assert len({line.get_color() for line in lines(figure, "-")}) == 2
    assert len({line.get_marker() for line in lines(figure, "-")}) == 2
    assert figure.axes[0].get_ylabel() == "KL divergence (nats per image)"


@pytest.mark.parametrize("count", [1, 9, 40])
def test_the_legend_lies_off_the_curves(count: int) -> None:
    figure = curves({f"{i}-{'name' * 30}-{i}": history(3 + i, 100 + i) for i in range(count)}, "loss")
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(figure.axes[0].get_window_extent())
    assert len(set(texts(figure))) == count + 3


def test_one_epoch_is_one_tick_and_no_gap() -> None:
    figure = curves({"run": history(1)}, "loss")
    assert "gap" not in texts(figure)
    axis = figure.axes[0]
    low, high = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("levels", [(150, 90), (400, 110), (5e-3, 200)])
def test_a_log_scale_has_plain_numbers_on_it(levels: tuple[float, float]) -> None:
    figure = curves({str(level): history(5, level) for level in levels}, "loss", log_scale=True)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    shown = [label.get_text() for label in axis.get_yticklabels() if label.get_window_extent().overlaps(figure.bbox)]
    assert axis.get_yscale() == "log"
    assert len(shown) >= 3
    assert all(float(text) > 0 for text in shown)
    low, high = axis.get_ylim()
    ticks = [low, *(tick for tick in axis.get_yticks() if low <= tick <= high), high]
    widest = max(math.log(above / below) for below, above in itertools.pairwise(ticks))
    assert widest < 0.26 * math.log(high / low)  # no quarter without a tick


def test_a_long_name_keeps_its_ends() -> None:
    assert plots.plain("a" * 50 + "z") == "a" * 50 + "z"
    shown = plots.plain("begin" + "x" * 100 + "end", 20)
    assert (len(shown), shown[:5], shown[-3:]) == (20, "begin", "end")
    assert len(plots.plain("x" * 100, 33)) == 33


def test_no_matplotlibrc_changes_them() -> None:
    plain_one = plots.render(curves({"a": history(3)}, "loss"), "png")
    with mpl.rc_context({"axes.facecolor": "red", "text.usetex": True, "savefig.dpi": 20}):
        assert plots.render(curves({"a": history(3)}, "loss"), "png") == plain_one


def test_figures_of_threads_are_the_same_and_leave_settings_as_they_were() -> None:
    def draw(_: int) -> bytes:
        return plots.render(curves({"a": history(3)}, "loss"), "svg")

    alone = draw(0)
    with mpl.rc_context({"axes.spines.top": True, "font.size": 13}), ThreadPoolExecutor(4) as pool:
        assert set(pool.map(draw, range(8))) == {alone}
        assert (mpl.rcParams["axes.spines.top"], mpl.rcParams["font.size"]) == (True, 13)


def test_no_figure_says_when_it_was_made() -> None:
    files = {form: plots.render(scatter(*codes(2), (), "title"), form) for form in ("png", "svg", "pdf")}
    assert b"Date" not in files["pdf"]
    assert b"date" not in files["svg"]
    assert b"tEXt" not in files["png"]


def test_points_lie_at_their_codes_in_the_colour_of_their_class() -> None:
    z, labels = codes(4)
    figure = scatter(z, labels, (), "title")
    for axis, pair in zip(figure.axes, ((0, 1), (2, 3)), strict=True):
        drawn = axis.collections[0]
        places = np.asarray(drawn.get_offsets()).tolist()
        colours = [to_rgb(tuple(colour)) for colour in np.asarray(drawn.get_facecolor())]
        expected = {(*map(float, z[i, pair]), to_rgb(class_colour(labels[i]))) for i in range(len(z))}
        assert {(*place, colour) for place, colour in zip(places, colours, strict=True)} == expected


def test_absent_classes_shift_no_names_or_colours() -> None:
    labels = np.where(np.arange(60) % 2, 3, 7)
    figure = scatter(codes(2)[0], labels, tuple("abcdefghij"), "title")
    assert texts(figure) == ["d", "h", PRIOR]
    handles = figure.legends[0].legend_handles[:2]
    assert [handle.get_color() for handle in handles if isinstance(handle, Line2D)] == [
        class_colour(3),
        class_colour(7),
    ]


def test_absent_classes_have_no_row_of_one_dimension() -> None:
    labels = np.where(np.arange(60) % 2, 3, 7)
    axis = scatter(codes(1)[0], labels, tuple("abcdefghij"), "title").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["d", "h"]
    ridges = [patch for patch in axis.patches if isinstance(patch, StepPatch)][::2]  # filled, then outlined
    assert [to_rgb(ridge.get_facecolor()) for ridge in ridges] == [to_rgb(class_colour(label)) for label in (3, 7)]
    assert [float(np.ravel(ridge.get_data()[2])[0]) for ridge in ridges] == [0, -1]  # downwards, as one reads
    assert [np.asarray(line.get_xdata())[0] for line in axis.lines] == [-2, -1, 1, 2]  # the prior's sigmas


@pytest.mark.parametrize("metric", ["loss", "reconstruction", "kl"])
def test_lines_are_the_metrics_own_in_the_legends_colours(metric: Metric) -> None:
    runs = {"a": history(3), "b": history(4, 130)}
    figure = curves(runs, metric)
    for style, part in (("--", "train"), ("-", "test")):
        drawn = [np.asarray(line.get_ydata()).tolist() for line in lines(figure, style)]
        assert drawn == [[getattr(record, f"{part}_{metric}") for record in records] for records in runs.values()]
    handles = figure.legends[0].legend_handles[:2]
    colours = [handle.get_color() for handle in handles if isinstance(handle, Line2D)]
    assert colours == [line.get_color() for line in lines(figure, "-")]


def test_a_single_run_is_the_title() -> None:
    assert curves({"my run": history(3)}, "loss").axes[0].get_title() == "my run"


def test_the_first_of_equal_epochs_is_starred() -> None:
    records = [EpochRecord(epoch, 9, 8, 1, 10, 9, 1) for epoch in (1, 2, 3)]
    assert np.asarray(lines(curves({"run": records}, "loss"), "None")[0].get_xdata()).tolist() == [1]


def test_a_logarithm_leaves_out_what_has_none() -> None:
    axis = curves({"run": history(3)}, "loss", log_scale=True).axes[0]
    assert np.isnan(axis.yaxis.get_transform().transform(np.array([-1.0]))).all()
