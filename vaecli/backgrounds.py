"""What images are drawn on: black as in MNIST, bright as paper, or nothing but a ground."""

import numpy as np
import numpy.typing as npt

from vaecli.images import Pixels


def background_note(bright: int, count: int, remedy: str) -> str:
    """What people should know of images that are dark on light, as MNIST is not."""
    return f"{bright:,} of {count:,} images have a bright background, as paper has. {remedy}"


def empty_note(empty: int, count: int) -> str:
    """What people should know of images with nothing on them."""
    return (
        f"{empty:,} of {count:,} images show next to nothing, as blank pages do, and dark ink on a transparent ground, "
        "which becomes black; lay such on white first."
    )


def _empty(images: Pixels) -> npt.NDArray[np.bool_]:
    """Whether an image's pixels are much the same, an eighth of all greys apart at most: (N, 28, 28) -> (N,)."""
    apart: npt.NDArray[np.uint8] = np.ptp(images, axis=(1, 2))
    return apart <= 32


def empties(images: Pixels) -> int:
    """How many of the images (N, 28, 28) show nothing."""
    return int(_empty(images).sum())


def _backgrounds(images: Pixels) -> npt.NDArray[np.float64]:
    """The median of each image's border: (N, 28, 28) -> (N,)."""
    border = np.ones(images.shape[1:], bool)
    border[1:-1, 1:-1] = False
    level: npt.NDArray[np.float64] = np.median(images[:, border], axis=1)
    return level


def bright_backgrounds(images: Pixels) -> int:
    """How many of the images (N, 28, 28) show something on a background that is nearer to white than to black."""
    return int(((_backgrounds(images) > 127) & ~_empty(images)).sum())


def inverted(images: Pixels) -> Pixels:
    """Images (N, 28, 28) with black and white swapped, and a bright background, however tinted, wholly black.

    Paper is seldom quite white, and a model that has only seen black around its digits takes what
    is left of it for ink.
    """
    level = _backgrounds(images)
    white = np.where(level > 127, level, 255.0)[:, None, None]
    return np.rint((white - images).clip(0) * (255 / white)).astype(np.uint8)
