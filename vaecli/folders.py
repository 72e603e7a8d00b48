"""Folders of data: of IDX files, or of image files, whose own folders are splits and classes."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

from vaecli.catalog import IDX_FILES, NAMED
from vaecli.errors import DataError
from vaecli.text import utf8_name

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
MAX_DEPTH = 100  # of folders in one another


def find_file(folder: Path, name: str) -> Path | None:
    """The file in `folder`, plain or gzipped; None if neither is there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if os.path.isfile(path)), None)


def image_roots(dataset: str) -> list[str]:
    """The folders all of whose image files are the data: `train` and `test` if both exist, else the one named.

    Empty for a data set that is no folder of images.
    """
    if dataset in NAMED or not os.path.isdir(dataset):
        return []
    if any(find_file(Path(dataset), name) for pair in IDX_FILES.values() for name in pair):
        return []
    splits = [os.path.join(dataset, name) for name in ("train", "test")]
    return splits if all(map(os.path.isdir, splits)) else [dataset]


def list_images(folder: str, note: Callable[[str], None]) -> list[tuple[str, str | None]]:
    """The image files below `folder` in sorted order, each with its class.

    As in torchvision's ImageFolder, the class is the first subfolder's name; a file that lies in
    `folder` itself has none. Links are followed, circles of links only once. Hidden files are
    passed over, and those of other suffixes, of which `note` hears. Raises DataError if a folder
    cannot be read.
    """
    found: list[tuple[list[str], str]] = []
    others: list[str] = []
    visited: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check its permissions.") from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        try:
            status = os.stat(parent)
        except OSError as error:
            refuse(error)
        if parent.count(os.sep) > folder.count(os.sep) + MAX_DEPTH:
            raise DataError(f"{folder} is nested more than {MAX_DEPTH} folders deep. Name a folder in it.")
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            path = os.path.join(parent, name)
            if name.lower().endswith(SUFFIXES):
                # One name may come in two forms of Unicode, of which macOS gives the other.
                parts = Path(path).relative_to(folder).parts
                found.append(([unicodedata.normalize("NFC", utf8_name(part)) for part in parts], path))
            else:
                others.append(path)
    if others:
        count = len(found) + len(others)
        note(
            f"Passed over {len(others):,} of {count:,} files in {folder}, such as {min(others)}: "
            f"images are those that end in {', '.join(SUFFIXES)}."
        )
    return [(path, parts[0] if len(parts) > 1 else None) for parts, path in sorted(found)]
