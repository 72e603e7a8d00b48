"""Figures: what is in them. What they look like is looked at by eye, in outputs/gallery."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from vaecli import plots
from vaecli.metrics import EpochRecord


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
    assert plots.panels(z_dim) == pairs
    figure = plots.scatter(*codes(z_dim), tuple("0123456789"), "title")
    labels = [(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes]
    assert labels == ([(f"z[{a}]", f"z[{b}]") for a, b in pairs] or [("z[0]", "images")])


def test_all_panels_have_one_scale_centred_on_zero_and_hold_every_point() -> None:
    points, labels = codes(4)
    points[0, 3] = 50
    figure = plots.scatter(points, labels, (), "title")
    limits = {axis.get_xlim() for axis in figure.axes} | {axis.get_ylim() for axis in figure.axes}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high
    assert high > 50
    assert all(axis.get_aspect() == 1 for axis in figure.axes)


def colours(figure: Figure) -> set[tuple[float, ...]]:
    return {to_rgb(tuple(colour)) for axis in figure.axes for colour in np.asarray(axis.collections[0].get_facecolor())}


def test_a_class_keeps_its_colour_whatever_else_is_shown() -> None:
    points, labels = codes(2)
    everything = colours(plots.scatter(points, labels, (), "title"))
    sevens = colours(plots.scatter(points[labels == 7], labels[labels == 7], (), "title"))
    assert sevens == {to_rgb(plots.class_colour(7))}
    assert sevens < everything
    assert len(everything) == 10


def test_legend_names_the_classes_that_are_there_and_lies_off_the_points() -> None:
    points, labels = codes(4)
    figure = plots.scatter(points, labels, tuple("abcdefghij"), "title")
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list("abcdefghij")
    box = legend.get_window_extent()
    assert not any(box.overlaps(axis.get_window_extent()) for axis in figure.axes)
    assert figure.bbox.x1 >= box.x1


def test_without_labels_there_is_no_legend() -> None:
    assert plots.scatter(codes(2)[0], None, (), "title").legends == []


def test_any_number_of_classes_has_colours_of_its_own() -> None:
    assert len({plots.class_colour(label) for label in range(62)}) == 62


def test_many_dimensions_show_the_first_panels() -> None:
    assert len(plots.scatter(*codes(100), (), "title").axes) == plots.MAX_PANELS


def history(epochs: int, level: float = 150.0) -> list[EpochRecord]:
    return [EpochRecord(e, level + 9 / e, level, 5.0, level + 10 / e, level, 6.0) for e in range(1, epochs + 1)]


def test_curves_are_the_histories() -> None:
    figure = plots.curves({"run": history(5)}, "loss")
    train, test = figure.axes[0].lines
    assert np.asarray(train.get_ydata()).tolist() == [record.train_loss for record in history(5)]
    assert np.asarray(test.get_ydata()).tolist() == [record.test_loss for record in history(5)]
    assert (train.get_linestyle(), test.get_linestyle()) == ("--", "-")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "test"]


def test_several_runs_are_named_and_coloured() -> None:
    figure = plots.curves({"a": history(3), "b": history(60, 130)}, "kl")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "training", "test"]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert figure.axes[0].get_ylabel() == "KL divergence (nats per image)"


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_equal_figures_are_equal_bytes(form: str) -> None:
    first, second = (plots.render(plots.scatter(*codes(3), (), "title"), form) for _ in range(2))
    assert first == second
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[form])
    assert b"matplotlib.org" not in first or form != "png"
