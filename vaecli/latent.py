"""Walks through the latent space: the manifold, traversals and interpolations, as codes to decode.

All are float32 (N, Z), row by row as the pictures will stand: the manifold's rows from the top down.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vaecli.errors import VaeError

REACH = 3.0  # standard deviations on either side that a traversal covers


def quantiles(count: int) -> Tensor:
    """z (count,) that cut a standard Gaussian into equal shares, each at the middle of its share."""
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    z: Tensor = torch.special.ndtri(shares)
    return z.float()


def side_of(count: int) -> int:
    """Codes a side of a square of `count`. Raises VaeError if it is none."""
    side = math.isqrt(count)
    if side * side != count:
        raise VaeError(f"A grid is a square, which -n {count:,} is not. Use {side**2:,} or {(side + 1) ** 2:,}.")
    return side


def steps_of(count: int, rows: int) -> int:
    """Codes a row of `count` in equal rows. Raises VaeError if they do not fill them."""
    steps, rest = divmod(count, rows)
    if rest:
        fewer = f"{steps * rows:,} or " if steps else ""
        raise VaeError(f"-n {count:,} does not fill {rows} rows, one a dimension. Use {fewer}{(steps + 1) * rows:,}.")
    return steps


def manifold(count: int, z_dim: int, dims: Sequence[int]) -> Tensor:
    """Codes (count, Z) at the Gaussian's quantiles over one or two dimensions, the others 0.

    Over two they are a square, `dims[0]` from left to right and `dims[1]` from the bottom to the
    top, as in a scatter (Kingma & Welling 2013, appendix A). Raises VaeError if `count` is no square.
    """
    z = torch.zeros(count, z_dim)
    if len(dims) == 1:
        z[:, dims[0]] = quantiles(count)
        return z
    side = side_of(count)
    across = quantiles(side)
    z[:, dims[0]] = across.repeat(side)
    z[:, dims[1]] = across.flip(0).repeat_interleave(side)
    return z


def traversal(count: int, z_dim: int, dims: Sequence[int]) -> Tensor:
    """Codes (count, Z), a row of equal steps from -3 to 3 for each of `dims`, the others 0.

    Raises VaeError if `count` is no multiple of the number of rows.
    """
    steps = steps_of(count, len(dims))
    z = torch.zeros(len(dims), steps, z_dim)
    for row, dim in enumerate(dims):
        z[row, :, dim] = torch.linspace(-REACH, REACH, steps) if steps > 1 else 0.0
    return z.flatten(0, 1)


def interpolation(count: int, stops: Tensor) -> Tensor:
    """Codes (count, Z) along the straight lines from each of `stops` (K, Z) to the next; `count` is K or more.

    All stops are among them; the steps of a line are equal, and their number is, up to one, that of any other line.
    """
    frames = torch.linspace(0, count - 1, len(stops), dtype=torch.float64).round()
    places = torch.from_numpy(np.interp(np.arange(count), frames, np.arange(len(stops))))
    begin = places.floor().long().clamp(max=len(stops) - 2)
    share = (places - begin).float()[:, None]  # (count, 1)
    return torch.lerp(stops[begin], stops[begin + 1], share)
