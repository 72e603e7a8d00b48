"""What images are drawn on: black as in MNIST, bright as paper, or nothing but a ground."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vaecli.images import Pixels

_NAMED = 3  # images of a kind


@dataclass
class _Found:
    """Images of one kind among those seen: how many, and the first of them by name or number."""

    count: int = 0
    first: list[int | str] = field(default_factory=list)

    def add(self, which: npt.NDArray[np.bool_], keys: Sequence[int | str]) -> None:
        """Count those of more images that are of this kind, as `which` (N,) says; `keys` (N,) are their names."""
        self.count += int(which.sum())
        if keys:
            self.first += [keys[place] for place in np.flatnonzero(which)[: _NAMED - len(self.first)]]

    def of(self, count: int) -> str:
        """How many of `count` they are, and which, unless all are."""
        more = ", ..." if self.count > len(self.first) else ""
        names = f" ({', '.join(map(str, self.first))}{more})" if self.first and self.count < count else ""
        return f"{self.count:,} of {count:,}{names}"


class Backgrounds:
    """What people should know of images that may not be white on black, as MNIST is."""

    def __init__(self) -> None:
        self._empty, self._bright, self._count = _Found(), _Found(), 0

    def add(self, images: Pixels, keys: Sequence[int | str] = ()) -> None:
        """Look at more images (N, 28, 28); `keys` (N,) are their names, if they have any."""
        self._empty.add(empties(images), keys)
        self._bright.add(bright_backgrounds(images), keys)
        self._count += len(images)

    def notes(self, remedy: str) -> Iterator[str]:
        """A line on those that show nothing, and one on those that are dark on light, which ends in `remedy`."""
        if self._empty.count:
            yield (
                f"Images that show next to nothing: {self._empty.of(self._count)}. They are blank, or dark ink on "
                "transparent ground, which becomes black (lay such on white first), or have greys of 0 to 1, not 255."
            )
        if self._bright.count:
            yield f"Images with a bright background, as paper has: {self._bright.of(self._count)}. {remedy}"


def empties(images: Pixels) -> npt.NDArray[np.bool_]:
    """Whether an image's pixels are much the same, an eighth of all greys apart at most: (N, 28, 28) -> (N,)."""
    apart: npt.NDArray[np.uint8] = np.ptp(images, axis=(1, 2))
    return apart <= 32


def _backgrounds(images: Pixels) -> npt.NDArray[np.float64]:
    """The median of each image's border: (N, 28, 28) -> (N,)."""
    border = np.ones(images.shape[1:], bool)
    border[1:-1, 1:-1] = False
    level: npt.NDArray[np.float64] = np.median(images[:, border], axis=1)
    return level


def bright_backgrounds(images: Pixels) -> npt.NDArray[np.bool_]:
    """Whether an image shows something on a background nearer to white than to black: (N, 28, 28) -> (N,)."""
    return (_backgrounds(images) > 127) & ~empties(images)


def inverted(images: Pixels) -> Pixels:
    """Images (N, 28, 28) with black and white swapped, and a bright background, however tinted, wholly black.

    Paper is seldom quite white, and a model that has only seen black around its digits takes what
    is left of it for ink.
    """
    level = _backgrounds(images)
    white = np.where(level > 127, level, 255.0)[:, None, None]
    return np.rint((white - images).clip(0) * (255 / white)).astype(np.uint8)
