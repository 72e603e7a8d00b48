"""Data sets of every kind come out as uint8 (N, 28, 28)."""

import bz2
import gzip
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, FEW
from PIL import Image
from test_idx import idx_bytes

from vaecli import data
from vaecli.catalog import IDX_FILES, NAMED
from vaecli.errors import DataError

NAMES = {"train": 500, "test": 150}


def quiet(text: str) -> None:
    raise AssertionError(f"unexpected note: {text}")


def load(dataset: object, split: data.SplitName = "train", data_dir: object = None) -> data.Split:
    return data.load(str(dataset), split, None if data_dir is None else str(data_dir), quiet)


def test_idx_folder_gzipped_or_not_is_the_same_data(tmp_path: Path) -> None:
    for file in DIGITS.iterdir():
        (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    for split in ("train", "test"):
        packed, plain = load(DIGITS, split), load(tmp_path, split)
        assert packed.images.shape == (NAMES[split], 28, 28)
        assert packed.images.dtype == torch.uint8
        assert packed.labels is not None
        assert packed.labels.dtype == torch.int64
        assert packed.class_names == tuple("0123456789")
        assert packed.sha256() == plain.sha256()


def test_there_are_two_splits() -> None:
    for dataset in (DIGITS, FEW):
        with pytest.raises(DataError, match="no split 'valid'"):
            data.load(str(dataset), "valid", None, quiet)  # type: ignore[arg-type]


def test_digest_is_over_shape_pixels_and_labels(digits: data.Split) -> None:
    assert digits.labels is not None
    changed = digits.labels.clone()
    changed[0] += 1
    others = [
        data.Split(digits.images, changed, digits.class_names),
        data.Split(digits.images, None, ()),
        data.Split(digits.images.flip(0), digits.labels, digits.class_names),
        data.Split(digits.images.reshape(75, 56, 28), digits.labels, ()),
    ]
    assert len({split.sha256() for split in (digits, *others)}) == 5


def test_idx_folder_names_what_is_missing(tmp_path: Path) -> None:
    shutil.copy(DIGITS / "train-images-idx3-ubyte.gz", tmp_path)
    with pytest.raises(DataError, match="train-labels-idx1-ubyte"):
        load(tmp_path)


def test_idx_labels_must_fit_the_images(tmp_path: Path) -> None:
    for kind, count in (("images", (5, 28, 28)), ("labels", (4,))):
        name = IDX_FILES["train"][kind == "labels"]
        (tmp_path / name).write_bytes(idx_bytes(np.zeros(count, np.uint8)))
    with pytest.raises(DataError, match="labels for 5 images"):
        load(tmp_path)


def test_idx_of_another_size_is_converted_and_noted(tmp_path: Path) -> None:
    (tmp_path / IDX_FILES["train"][0]).write_bytes(idx_bytes(np.full((3, 14, 14), 200, np.uint8)))
    (tmp_path / IDX_FILES["train"][1]).write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    notes: list[str] = []
    split = data.load(str(tmp_path), "train", None, notes.append)
    assert split.images.shape == (3, 28, 28)
    assert (split.images == 200).all()
    assert len(notes) == 1


def make_folder(root: Path, digits: data.Split, layout: str, count: int = 40) -> None:
    assert digits.labels is not None
    for index in range(count):
        label = int(digits.labels[index])
        name = {
            "flat": f"{index:03}.png",
            "classes": f"{label}/{index:03}.png",
            "splits": f"{'train' if index < 30 else 'test'}/{label}/{index:03}.png",
        }[layout]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[index].numpy()).save(root / name)


def test_flat_image_folder_has_no_labels_and_every_tenth_is_test(tmp_path: Path, digits: data.Split) -> None:
    make_folder(tmp_path, digits, "flat")
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.labels is None
    assert train.class_names == ()
    assert torch.equal(test.images, digits.images[9:40:10])
    assert torch.equal(train.images, digits.images[[i for i in range(40) if i % 10 != 9]])


def test_class_folders_are_labels(tmp_path: Path, digits: data.Split) -> None:
    make_folder(tmp_path, digits, "classes")
    parts = [load(tmp_path, split) for split in ("train", "test")]
    assert parts[0].class_names == parts[1].class_names == tuple("012345679")  # there is no 8 among the 40
    assert [len(part.images) for part in parts] == [36, 4]
    by_pixels = {image.numpy().tobytes(): int(label) for image, label in zip(digits.images, digits.labels, strict=True)}  # type: ignore[arg-type]
    for part in parts:
        assert part.labels is not None
        named = [int(part.class_names[label]) for label in part.labels]
        assert [by_pixels[image.numpy().tobytes()] for image in part.images] == named


def test_train_and_test_folders_are_the_splits(tmp_path: Path, digits: data.Split) -> None:
    make_folder(tmp_path, digits, "splits")
    (tmp_path / "test").rename(tmp_path / "valid")
    notes: list[str] = []
    assert data.load(str(tmp_path), "test", None, notes.append).class_names == ("train", "valid")
    assert notes == [f"{tmp_path} has train/ and no test/, so its folders are taken for classes, not for splits."]
    (tmp_path / "valid").rename(tmp_path / "test")
    shutil.rmtree(tmp_path / "test" / str(int(digits.labels[30])))  # type: ignore[index]
    train, test = load(tmp_path), load(tmp_path, "test")
    assert len(train.images) == 30
    assert train.class_names == test.class_names  # a class that one split lacks keeps its number


def test_image_folders_that_make_no_data_set(tmp_path: Path, digits: data.Split) -> None:
    make_folder(tmp_path / "few", digits, "flat", 9)
    make_folder(tmp_path / "mixed", digits, "classes")
    shutil.copy(tmp_path / "few/000.png", tmp_path / "mixed/zzz.png")
    make_folder(tmp_path / "bad", digits, "flat", 12)
    (tmp_path / "bad/005.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    cases = {
        "few": "at least 10",
        "mixed": "folders of classes",
        "bad": r"005\.png",
        "empty": r"few images for one \(0\)",
    }
    for name, words in cases.items():
        with pytest.raises(DataError, match=words):
            load(tmp_path / name)


def test_picked_images_keep_their_labels(digits: data.Split) -> None:
    picked = data.Split(digits.images, torch.arange(150), ()).pick(20, 0)
    assert picked.labels is not None
    assert len(set(picked.labels.tolist())) == 20
    assert torch.equal(picked.images, digits.images[picked.labels])


def test_npz_in_fortran_order_is_the_same_data(tmp_path: Path, digits: data.Split) -> None:
    np.savez(tmp_path / "a.npz", images=np.asfortranarray(digits.images[:28].numpy()))
    assert torch.equal(load(tmp_path / "a.npz", "test").images, digits.images[9:28:10])


def test_npz_with_and_without_a_test_split(tmp_path: Path, digits: data.Split) -> None:
    images, labels = digits.images.numpy(), digits.labels.numpy()  # type: ignore[union-attr]
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    np.savez_compressed(tmp_path / "two.npz", images=images[:100], test_images=images[100:], test_labels=labels[100:])
    one = {split: load(tmp_path / "one.npz", split) for split in ("train", "test")}
    place = torch.arange(150) % 10
    for split, chosen in (("test", place == 9), ("train", place != 9)):
        assert torch.equal(one[split].images, digits.images[chosen])
        assert torch.equal(one[split].labels, digits.labels[chosen])  # type: ignore[arg-type,index]
    train, test = load(tmp_path / "two.npz"), load(tmp_path / "two.npz", "test")
    assert torch.equal(train.images, digits.images[:100])
    assert train.labels is None
    assert torch.equal(test.images, digits.images[100:])
    assert test.labels is not None
    assert torch.equal(test.labels, digits.labels[100:])  # type: ignore[index]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": np.zeros((20, 28, 28), np.uint8)}, "no array 'images'"),
        ({"images": np.zeros((20, 28, 28))}, "uint8"),
        ({"images": np.zeros((20, 784), np.uint8)}, "uint8"),
        ({"images": np.array([{}] * 20)}, "no plain array"),
        ({"images": np.zeros((20, 28, 28), np.uint8), "labels": np.zeros(20)}, "integer"),
        ({"images": np.zeros((20, 28, 28), np.uint8), "labels": np.zeros(19, int)}, "integer"),
        ({"images": np.zeros((20, 28, 28), np.uint8), "labels": np.full(20, -1)}, "run from -1"),
        ({"images": np.zeros((0, 28, 28), np.uint8)}, "at least 10"),
        ({"images": np.zeros((0, 28, 28), np.uint8), "test_images": np.zeros((0, 28, 28), np.uint8)}, "no images"),
    ],
)
def test_npz_of_other_things_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "set.npz", allow_pickle=True, **arrays)
    with pytest.raises(DataError, match=words):
        load(tmp_path / "set.npz")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"text", Path(DIGITS / "train-labels-idx1-ubyte.gz").read_bytes()]
)
def test_other_files_are_no_data_set(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match="is no data set"):
        load(tmp_path / "file")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"No data set 'mnits'.*mnist, fashion-mnist"):
        load("mnits")


def test_a_known_name_wins_over_a_path(tmp_path: Path) -> None:
    (tmp_path / "fashion-mnist").mkdir()
    split = load("fashion-mnist", "test", DIGITS)
    assert split.class_names[9] == "Ankle boot"


@pytest.mark.parametrize("layout", ["torchvision", "bare"])
def test_named_sets_are_found_in_both_layouts(tmp_path: Path, layout: str) -> None:
    shutil.copytree(DIGITS, tmp_path / ("KMNIST/raw" if layout == "torchvision" else "."), dirs_exist_ok=True)
    assert torch.equal(load("kmnist", "test", tmp_path).images, load(DIGITS, "test").images)


def test_environment_names_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAE_DATA_DIR", str(DIGITS))
    assert len(load("kmnist", "test").images) == 150


def write_set(folder: Path, name: str, images: np.ndarray, labels: np.ndarray, kind: int = 0x08) -> None:
    folder.mkdir(parents=True)
    for pair in NAMED[name].files.values():
        (folder / pair[0]).write_bytes(idx_bytes(images))
        (folder / pair[1]).write_bytes(idx_bytes(labels, kind))


def test_class_names_are_those_of_torchvision() -> None:
    from torchvision import datasets

    for name, known in NAMED.items():
        theirs = getattr(datasets, known.torchvision)
        if hasattr(theirs, "classes") and known.torchvision != "EMNIST":
            for ours, full in zip(known.class_names, theirs.classes, strict=True):
                assert full.startswith(ours), name  # `0 - zero`, `T-shirt/top`


@pytest.mark.parametrize(
    ("name", "first", "classes"),
    [("emnist-digits", 0, "0123456789"), ("emnist-letters", 1, "abcdefghijklmnopqrstuvwxyz")],
)
def test_emnist_stands_upright_and_begins_with_its_first_class(
    tmp_path: Path, digits: data.Split, name: str, first: int, classes: str
) -> None:
    """Its files hold every image transposed, and count letters from 1."""
    images = digits.images[: len(classes)].numpy()
    lying = np.ascontiguousarray(images.transpose(0, 2, 1))
    write_set(tmp_path / "EMNIST/raw", name, lying, np.arange(first, first + len(classes), dtype=np.uint8))
    split = load(name, "train", tmp_path)
    np.testing.assert_array_equal(split.images.numpy(), images)
    assert split.labels is not None
    assert [split.class_names[label] for label in split.labels] == list(classes)


def test_qmnist_labels_are_the_first_column(tmp_path: Path, digits: data.Split) -> None:
    labels = np.arange(32, dtype=">i4").reshape(4, 8) % 10
    write_set(tmp_path / "QMNIST/raw", "qmnist", digits.images[:4].numpy(), labels.astype(">i4"), 0x0C)
    split = load("qmnist", "test", tmp_path)
    assert split.labels is not None
    assert split.labels.tolist() == [0, 8, 6, 4]


def test_labels_of_another_set_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path / "raw", "kmnist", np.zeros((2, 28, 28), np.uint8), np.array([3, 10], np.uint8))
    with pytest.raises(DataError, match="are not those of kmnist"):
        load("kmnist", "train", tmp_path / "raw")


def test_usps_is_read_by_torchvision_and_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    grey = " ".join(f"{i}:{1.0 if i <= 128 else -1.0}" for i in range(1, 257))
    for name, labels in (("usps.bz2", range(10, 0, -1)), ("usps.t.bz2", range(1, 11))):  # in the files from 1
        (tmp_path / name).write_bytes(bz2.compress("\n".join(f"{label} {grey}" for label in labels).encode()))
    split_list = {name: [entry[0], entry[1], None] for name, entry in datasets.USPS.split_list.items()}
    monkeypatch.setattr(datasets.USPS, "split_list", split_list)  # our ten digits have another MD5
    notes: list[str] = []
    split = data.load("usps", "test", str(tmp_path), notes.append)
    assert split.images.shape == (10, 28, 28)
    assert split.images[:, :10].min() >= 250
    assert split.images[:, 18:].max() <= 5
    assert split.labels is not None
    assert split.labels.tolist() == list(range(10))
    train = data.load("usps", "train", str(tmp_path), lambda text: None)
    assert train.labels is not None
    assert train.labels.tolist() == list(range(9, -1, -1))
    assert len(notes) == 1
    assert notes[0].startswith("Converted 10 of 10 images of 16x16 to 28x28 grey")


def test_a_label_that_is_absent_keeps_the_others_numbers(tmp_path: Path, digits: data.Split) -> None:
    np.savez(tmp_path / "gap.npz", images=digits.images[:20].numpy(), labels=np.arange(20) % 2 * 4)
    assert load(tmp_path / "gap.npz").class_names == tuple("01234")


def test_more_classes_than_a_checkpoint_takes_are_refused(
    tmp_path: Path, digits: data.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MAX_LABEL", 4)
    make_folder(tmp_path / "folder", digits, "classes")
    np.savez(tmp_path / "a.npz", images=digits.images.numpy(), labels=np.arange(150) % 10)
    for name, words in (("folder", "has 9 classes"), ("a.npz", "run from 0 to 8")):
        with pytest.raises(DataError, match=words):
            load(tmp_path / name)


def test_each_split_speaks_of_its_own_files(tmp_path: Path, digits: data.Split) -> None:
    make_folder(tmp_path, digits, "splits")
    (tmp_path / "train/a.txt").touch()
    (tmp_path / "test/b.txt").touch()
    for split, name in (("train", "a.txt"), ("test", "b.txt")):
        notes: list[str] = []
        data.load(str(tmp_path), split, None, notes.append)  # type: ignore[arg-type]
        assert [name in note for note in notes] == [True]


def test_a_single_split_is_named_as_it_is(tmp_path: Path, digits: data.Split) -> None:
    make_folder(tmp_path, digits, "splits")
    shutil.rmtree(tmp_path / "train")
    notes: list[str] = []
    data.load(str(tmp_path), "test", None, notes.append)
    assert "has test/ and no train/" in notes[0]


def test_npz_of_a_newer_header_is_read(tmp_path: Path, digits: data.Split) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("images.npy", "w") as member:
        np.lib.format.write_array(member, digits.images.numpy(), version=(2, 0))
    assert torch.equal(load(tmp_path / "a.npz", "test").images, digits.images[9::10])


def test_idx_images_of_integers_are_refused(tmp_path: Path) -> None:
    images, labels = (tmp_path / name for name in IDX_FILES["train"])
    images.write_bytes(idx_bytes(np.zeros((3, 28, 28), ">i4"), 0x0C))
    labels.write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match="holds no images: int32"):
        load(tmp_path)
