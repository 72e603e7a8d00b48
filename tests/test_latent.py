"""Walks through the latent space."""

import numpy as np
import pytest
import torch

from vaecli.errors import VaeError
from vaecli.latent import REACH, interpolation, manifold, quantiles, traversal


@pytest.mark.parametrize("count", [1, 2, 10, 31])
def test_quantiles_cut_the_gaussian_into_equal_shares(count: int) -> None:
    z = quantiles(count).double()
    shares = torch.distributions.Normal(0.0, 1.0).cdf(z)  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(shares, (np.arange(count) + 0.5) / count, atol=1e-6)
    assert torch.equal(z, -z.flip(0))


def test_manifold_lies_as_a_scatter_does() -> None:
    z = manifold(9, 4, (3, 1))
    assert z.shape == (9, 4)
    assert not z[:, [0, 2]].any()
    square = z.view(3, 3, 4)
    assert (square[:, 1:, 3] > square[:, :-1, 3]).all()  # the first dimension grows to the right
    assert (square[1:, :, 1] < square[:-1, :, 1]).all()  # the second one upwards
    assert len({tuple(row) for row in z.tolist()}) == 9


def test_manifold_of_one_dimension_takes_any_count() -> None:
    z = manifold(7, 2, (1,))
    assert torch.equal(z[:, 1], quantiles(7))
    assert not z[:, 0].any()


@pytest.mark.parametrize(("count", "remedy"), [(2, "Use 1 or 4"), (99, "Use 81 or 100")])
def test_manifold_is_a_square(count: int, remedy: str) -> None:
    with pytest.raises(VaeError, match=remedy):
        manifold(count, 2, (0, 1))


def test_traversal_varies_one_dimension_a_row() -> None:
    rows = traversal(10, 3, (2, 0)).view(2, 5, 3)
    for row, dim in zip(rows, (2, 0), strict=True):
        np.testing.assert_allclose(row[:, dim], np.linspace(-REACH, REACH, 5), atol=1e-6)
        assert not np.delete(row.numpy(), dim, axis=1).any()
    assert not traversal(2, 2, (0, 1)).any()  # a single step is the middle
    with pytest.raises(VaeError, match=r"2 rows.* Use 4"):
        traversal(5, 2, (0, 1))


def test_interpolation_is_straight_and_meets_its_stops() -> None:
    stops = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    z = interpolation(21, stops)
    assert torch.equal(z[[0, 10, 20]], stops)
    torch.testing.assert_close(z[1:11] - z[:10], ((stops[1] - stops[0]) / 10).expand(10, 5))
    for count in (3, 4, 40, 100):
        z = interpolation(count, stops)
        assert len(z) == count
        (middle,) = (i for i in range(count) if torch.equal(z[i], stops[1]))
        assert abs(2 * middle - (count - 1)) <= 1
        assert torch.equal(z[[0, -1]], stops[[0, 2]])
