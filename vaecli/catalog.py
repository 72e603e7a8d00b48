"""The named data sets: their files, their classes, and the digests of MNIST."""

import os
from dataclasses import dataclass, field

SplitFiles = dict[str, tuple[str, str]]  # split -> names of the images' and the labels' file

IDX_FILES: SplitFiles = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class NamedSet:
    """A set that torchvision knows: its class there, the folder it uses, its files, its labels."""

    torchvision: str
    class_names: tuple[str, ...]
    files: SplitFiles = field(default_factory=lambda: IDX_FILES)  # empty: not IDX
    arguments: tuple[dict[str, str | bool], ...] = ({},)  # of torchvision's class, one a download
    first_label: int = 0
    transposed: bool = False  # images stored column by column
    megabytes: int = 12  # to download, about

    @property
    def layout(self) -> str:
        """Where torchvision puts the files, below the data folder."""
        return os.path.join(self.torchvision, "raw") if self.files else ""

    @property
    def all_files(self) -> tuple[str, ...]:
        """The names of all the files that make the set."""
        return tuple(file for pair in self.files.values() for file in pair) or ("usps.bz2", "usps.t.bz2")


def _emnist(kind: str, class_names: tuple[str, ...], first_label: int) -> NamedSet:
    files = {
        split: (f"emnist-{kind}-{split}-images-idx3-ubyte", f"emnist-{kind}-{split}-labels-idx1-ubyte")
        for split in ("train", "test")
    }
    return NamedSet("EMNIST", class_names, files, ({"split": kind},), first_label, transposed=True, megabytes=562)


NAMED = {
    "mnist": NamedSet("MNIST", _DIGITS),
    "fashion-mnist": NamedSet(
        "FashionMNIST",
        ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        megabytes=31,
    ),
    "kmnist": NamedSet("KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"), megabytes=21),
    "qmnist": NamedSet(
        "QMNIST",
        _DIGITS,
        {
            split: (f"qmnist-{split}-images-idx3-ubyte", f"qmnist-{split}-labels-idx2-int")
            for split in ("train", "test")
        },
        ({"what": "train"}, {"what": "test"}),
        megabytes=21,
    ),
    "emnist-digits": _emnist("digits", _DIGITS, 0),
    "emnist-letters": _emnist("letters", tuple("abcdefghijklmnopqrstuvwxyz"), 1),
    "usps": NamedSet("USPS", _DIGITS, {}, ({"train": True}, {"train": False}), megabytes=9),
}
