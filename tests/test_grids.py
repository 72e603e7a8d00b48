"""Grids of images."""

import io

import numpy as np
import pytest
from PIL import Image

from vaecli import data
from vaecli.grids import animation, grid


def test_grid_shows_every_image_in_order(digits: data.Split) -> None:
    tiles = digits.images[:7].numpy()
    picture = np.asarray(grid(tiles))
    scale = next(scale for scale in range(8, 0, -1) if (picture.shape[0] - scale) % (29 * scale) == 0)
    columns = (picture.shape[1] - scale) // (29 * scale)
    assert columns == 3
    for index, tile in enumerate(tiles):
        top, left = (scale + (place * 29 * scale) for place in divmod(index, columns))
        np.testing.assert_array_equal(picture[top : top + 28 * scale : scale, left : left + 28 * scale : scale], tile)


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (100, (10, 10)), (10_000, (100, 100))])
def test_grid_is_nearly_square(count: int, shape: tuple[int, int]) -> None:
    image = grid(np.zeros((count, 28, 28), np.uint8))
    assert abs(image.height / image.width - shape[0] / shape[1]) < 0.05
    assert max(image.size) <= 4000


def test_lines_are_seen_on_black_and_on_white() -> None:
    assert 30 < np.asarray(grid(np.zeros((4, 28, 28), np.uint8)))[0, 0] < 225


def test_frames_last_60_ms() -> None:
    tiles = np.zeros((4, 28, 28), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None]
    with Image.open(io.BytesIO(animation(tiles, 4, False))) as film:
        assert film.info["duration"] == 60
