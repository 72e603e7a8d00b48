"""What the points of `vae scatter` are; how they are drawn is in test_plots.py."""

import numpy as np
import pytest
import torch

from vaecli import engine
from vaecli.errors import UsageError
from vaecli.services.inputs import open_checkpoint
from vaecli.services.scatter import _decoded, principal_components, scatter


@pytest.fixture
def cloud() -> np.ndarray:
    """Codes that vary most along (3, 4, 0)/5, then along the third axis, around a mean that is not 0."""
    generator = np.random.default_rng(0)
    directions = np.array([[0.6, 0.8, 0], [0, 0, 1], [0.8, -0.6, 0]])
    steps = generator.normal(size=(4_000, 3)) * [3, 2, 0.5]
    points: np.ndarray = (steps @ directions + [1, 2, 3]).astype(np.float32)
    return points


def test_principal_components_are_where_the_variance_is(cloud: np.ndarray) -> None:
    points, shares = principal_components(cloud)
    assert points.shape == (4_000, 2)
    assert shares == pytest.approx([9 / 13.25, 4 / 13.25], abs=0.02)
    assert points.var(axis=0) / cloud.var(axis=0).sum() == pytest.approx(shares, rel=1e-4)
    assert np.corrcoef(points[:, 0], points[:, 1])[0, 1] == pytest.approx(0, abs=1e-4)
    assert np.corrcoef(points[:, 0], cloud @ [0.6, 0.8, 0])[0, 1] == pytest.approx(1, abs=1e-2)
    assert np.corrcoef(points[:, 1], cloud[:, 2])[0, 1] == pytest.approx(1, abs=1e-2)


def test_principal_components_turn_and_do_not_move(cloud: np.ndarray) -> None:
    """The prior's mean stays at 0, where its circles are drawn."""
    points, _ = principal_components(np.concatenate([cloud, np.zeros((1, 3), np.float32)]))
    assert points[-1].tolist() == [0, 0]
    assert (np.linalg.norm(points, axis=1) <= np.linalg.norm([*cloud, [0, 0, 0]], axis=1) + 1e-4).all()


@pytest.mark.parametrize("dims", [(0,), (1, 1), (0, 1, 2)])
def test_a_panel_has_two_dimensions(dims: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="are not two dimensions"):
        scatter("run", output="a.png", form="png", dims=dims)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_codes_that_are_all_the_same_have_components_without_variance(count: int) -> None:
    points, shares = principal_components(np.ones((count, 3), np.float32))
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    assert shares == [0, 0]


def test_tiles_are_decoded_at_their_places(ckpt: str) -> None:
    opened = open_checkpoint(ckpt, "cpu")
    places = np.array([[0.5, -1], [2, 0.25]], np.float32)
    for pair in ((0, 1), (1, 0)):
        expected = engine.decode(opened.model, torch.from_numpy(places[:, pair].copy()))
        assert np.array_equal(_decoded(opened, places, pair), expected.numpy())
