"""The images of a folder are listed, with their classes, the same everywhere."""

import os
import subprocess
import sys
from pathlib import Path

from vaecli.folders import list_images


def test_folders_are_listed_as_imagefolder_does(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/deep/1.JPG", "top.png", "a/.hidden.png", "a/notes.txt", ".git/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/circle").symlink_to(tmp_path)
    root = str(tmp_path)
    notes: list[str] = []
    assert list_images(root, notes.append) == [
        (os.path.join(root, "a/deep/1.JPG"), "a"),
        (os.path.join(root, "b/2.png"), "b"),
        (os.path.join(root, "top.png"), None),
    ]
    (note,) = notes
    assert f"1 of 4 files in {root}, such as {root}/a/notes.txt" in note


def test_classes_are_the_same_text_in_every_locale(tmp_path: Path) -> None:
    (tmp_path / "ß").mkdir()
    (tmp_path / "ß/1.png").touch()
    code = f"from vaecli.folders import list_images; print(ascii(list_images({str(tmp_path)!r}, print)[0][1]))"
    for settings in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, check=True)
        assert done.stdout == rb"'\xdf'" + b"\n"


def test_a_class_has_one_name_in_both_forms_of_unicode(tmp_path: Path) -> None:
    """As a letter and an accent, as macOS writes names, or as one character; the order is that of the latter."""
    for name in ("e\u0301", "\xe9", "f"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    assert [name for _, name in list_images(str(tmp_path), print)] == ["f", "\xe9", "\xe9"]


def test_folders_may_be_nested_deeply(tmp_path: Path) -> None:
    deep = tmp_path / "class" / "/".join("abcdefghijklmnopqrst")
    deep.mkdir(parents=True)
    (deep / "1.png").touch()
    assert list_images(str(tmp_path), print) == [(str(deep / "1.png"), "class")]


def test_every_kind_of_picture_is_listed(tmp_path: Path) -> None:
    names = [f"1.{kind}" for kind in ["bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"]]
    for name in names:
        (tmp_path / name).touch()
    assert [os.path.basename(path) for path, _ in list_images(str(tmp_path), print)] == names
