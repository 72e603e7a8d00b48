"""What every command that writes a file asks first, whether it would replace what is no derived file, and answers."""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vaecli.errors import VaeError
from vaecli.folders import SUFFIXES, image_roots
from vaecli.idx import is_idx
from vaecli.run import CONFIG, METRICS, is_run_file


@dataclass(frozen=True)
class Written:
    """Where a table or figure went: the path as it was typed, or `-`."""

    output: str

    @classmethod
    def to(cls, output: str | BinaryIO) -> "Written":
        """The result of a command that wrote there."""
        return cls(output if isinstance(output, str) else "-")


def guard_output(output: str | BinaryIO, *sources: str | BinaryIO) -> None:
    """Raise VaeError if `output` is one of the `sources`, would be an image in one, an IDX file, or a file of a run.

    A source is a path, or an open stream, which may come from a file.
    Derived files are replaced without asking, so what they may not replace is refused.
    """
    if not isinstance(output, str):
        return
    if is_run_file(output):  # also one that is not there yet: a false check99 would be taken for the last
        raise VaeError(f"The output {output} is a file of a training run. Choose another -o.")
    refuse_stray_link(output)
    folder = os.path.dirname(os.path.realpath(output))
    # Pictures beside a run are derived, also where its data set, recorded as `.`, is another folder by now.
    beside_run = all(os.path.exists(os.path.join(folder, name)) for name in (CONFIG, METRICS))
    if output.lower().endswith(SUFFIXES) and not beside_run:
        refuse_inside(output, "output", *sources)
    if not os.path.exists(output):
        return
    for source in sources:
        if isinstance(source, str):
            if os.path.exists(source) and os.path.samefile(output, source):
                raise VaeError(f"The output {output} is also an input. Choose another -o.")
        elif _is_open(source, output):
            raise VaeError(f"The output {output} is also the standard input. Choose another -o.")
    if is_idx(output):  # maybe of a named set, wherever that lies; no command writes such files
        raise VaeError(f"The output {output} is a file of a data set. Choose another -o.")


def _is_open(stream: BinaryIO, path: str) -> bool:
    """Whether the stream comes from the regular file at `path`."""
    with contextlib.suppress(OSError):  # a stream in memory has no file
        opened = os.fstat(stream.fileno())
        return stat.S_ISREG(opened.st_mode) and os.path.samestat(opened, os.stat(path))
    return False


def refuse_stray_link(output: str) -> None:
    """Raise VaeError if a file to be written is a link to a file of another kind.

    Links are followed, and a run folder may come from a stranger: its `scatter.png` could be a link
    to one's `.bashrc`.
    """
    target = os.path.realpath(output)
    if not os.path.islink(output) or (os.path.exists(target) and not os.path.isfile(target)):
        return  # a link to a device or a pipe is as good as that
    if os.path.splitext(target)[1].lower() != os.path.splitext(output)[1].lower():
        raise VaeError(f"{output} is a link to {target}, a file of another kind. Remove it, or choose another -o.")


def guard_folder(output: str | BinaryIO, *sources: str | BinaryIO) -> None:
    """Raise VaeError if the folder `output` is a run's, or lies where its pictures would become data of `sources`."""
    if not isinstance(output, str):
        return
    if os.path.exists(os.path.join(output, CONFIG)):
        raise VaeError(f"{output} is a run folder. Name a file or a folder in it with -o.")
    refuse_inside(output, "output", *sources)


def refuse_inside(path: str, what: str, *sources: str | BinaryIO) -> None:
    """Raise VaeError if a picture or folder, `what` it is for people, lies where it would become data of `sources`."""
    place = Path(os.path.realpath(path))
    folders = [folder for folder in (place, *place.parents) if os.path.exists(folder)]
    for root in (root for source in sources if isinstance(source, str) for root in image_roots(source)):
        if any(folder.samefile(root) for folder in folders):  # which may have two names: in other case, on macOS
            raise VaeError(f"The {what} {path} lies inside the data set '{root}'. Choose another -o.")
