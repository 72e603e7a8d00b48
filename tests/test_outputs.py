"""Derived files replace derived files, and nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS, Invoke, assert_one_line, mounted
from PIL import Image

from vaecli import data
from vaecli.errors import VaeError
from vaecli.services.curves import curves
from vaecli.services.encode import encode
from vaecli.services.outputs import guard_output
from vaecli.services.resume import Trained
from vaecli.services.sample import sample


def test_new_files_and_derived_ones_are_free(run_copy: Path) -> None:
    check = str(run_copy / "check2.safetensors")
    for name in ("scatter.png", "codes.csv"):
        guard_output(str(run_copy / name), check)
        (run_copy / name).touch()
        guard_output(str(run_copy / name), check)
    guard_output("-", "-")


def test_every_command_replaces_its_own_file(run_copy: Path, invoke: Invoke) -> None:
    codes = str(run_copy / "codes.csv")
    for command in (["sample"], ["scatter"], ["curves"], ["encode", "-o", codes]) * 2:
        result = invoke(command[0], run_copy, *command[1:], "-q")
        assert (result.exit_code, result.stderr) == (0, "")


# The last is a run's where upper and lower case are the same.
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "state.safetensors", "Check1.safetensors"])
def test_files_of_a_run_are_not_replaced(run_copy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(run_copy / name)
    for output in (run_copy / name, tmp_path / "link", run_copy / "check99.safetensors"):
        with pytest.raises(VaeError, match="file of a training run"):
            guard_output(str(output))


def test_a_data_set_of_two_names_is_one(tmp_path: Path) -> None:
    """As a folder has where upper and lower case are the same, or that is mounted twice."""
    (tmp_path / "pictures/7").mkdir(parents=True)
    with mounted(tmp_path / "other", "--bind", str(tmp_path / "pictures")) as other:
        for output in (other / "new.png", other / "7/new.png"):
            with pytest.raises(VaeError, match="lies inside the data set"):
                guard_output(str(output), str(tmp_path / "pictures"))


def test_inputs_are_not_replaced(tmp_path: Path) -> None:
    digits = shutil.copytree(DIGITS, tmp_path / "digits")
    (tmp_path / "a.png").touch()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "pictures/7").mkdir(parents=True)
    (tmp_path / "pictures/7/b.png").touch()
    idx = str(digits / "t10k-images-idx3-ubyte.gz")
    cases = [("link.png", "a.png"), (idx, idx)]
    for output, source in cases:
        with pytest.raises(VaeError, match="also an input"):
            guard_output(str(tmp_path / output), "elsewhere", str(tmp_path / source))
    for output in ("pictures/7/b.png", "pictures/new.png"):  # a new one would be data of the next command
        with pytest.raises(
            VaeError, match=r"pictures/.*\.png lies inside the data set '.*pictures'\. Choose another -o"
        ):
            guard_output(str(tmp_path / output), "elsewhere", str(tmp_path / "pictures"))
    guard_output(str(tmp_path / "pictures/codes.csv"), str(tmp_path / "pictures"))
    with pytest.raises(VaeError, match="a file of a data set"):
        guard_output(idx, "fashion-mnist")  # whose folder may be this one


def test_a_file_that_comes_through_stdin_is_not_replaced(ckpt: str, tmp_path: Path) -> None:
    paths, codes = tmp_path / "paths.csv", tmp_path / "codes.csv"
    paths.write_text("a.png\n")
    codes.write_text("z_0,z_1\n0,0\n")
    (tmp_path / "codes.png").hardlink_to(codes)
    with open(paths, "rb") as stream, pytest.raises(VaeError, match="also the standard input"):
        encode(ckpt, [stream], output=str(paths), form="csv")
    with open(codes, "rb") as stream, pytest.raises(VaeError, match="also the standard input"):
        sample(ckpt, source=stream, output=str(tmp_path / "codes.png"), form="png")
    assert paths.read_text() == "a.png\n"
    assert codes.read_text() == "z_0,z_1\n0,0\n"
    with open(codes, "rb") as stream:
        sample(ckpt, source=stream, output=str(tmp_path / "new.png"), form="png")


def test_a_notebook_may_name_one_input_alone(ckpt: str, tmp_path: Path) -> None:
    """Text is a sequence of letters, too, and "/" is a folder."""
    Image.new("L", (28, 28)).save(tmp_path / "one.png")
    for inputs, name in ((str(tmp_path / "one.png"), "a.csv"), ([str(tmp_path / "one.png")], "b.csv")):
        encode(ckpt, inputs, output=name, form="csv")
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    for paths, name in ((ckpt, "a.svg"), ([ckpt], "b.svg")):
        curves(paths, output=name, form="svg")
    assert Path("a.svg").read_bytes() == Path("b.svg").read_bytes()


def test_pictures_beside_the_data_are_free(tmp_path: Path) -> None:
    """Only what would be read as data is guarded: not beside IDX files, nor beside `train` and `test`."""
    shutil.copytree(DIGITS, tmp_path / "idx")
    for folder in ("idx/outputs", "pictures/outputs", "pictures/train", "pictures/test"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").touch()
    guard_output(str(tmp_path / "idx/outputs/a.png"), str(tmp_path / "idx"))
    guard_output(str(tmp_path / "pictures/outputs/a.png"), str(tmp_path / "pictures"))
    with pytest.raises(VaeError, match="inside the data set"):
        guard_output(str(tmp_path / "pictures/test/a.png"), str(tmp_path / "pictures"))


def test_a_runs_own_pictures_are_no_data(ckpt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set of a run may be recorded as `.`, and be another folder by now: here the one with the run in it."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(Path(ckpt).parent, "run")
    for folder in (run, tmp_path):
        Path(folder, "samples.png").touch()
    guard_output(f"{run}/samples.png", ".")
    with pytest.raises(VaeError, match="also an input"):
        guard_output(f"{run}/samples.png", f"{run}/samples.png")
    with pytest.raises(VaeError, match="inside the data set"):
        guard_output("samples.png", ".")
    Path("config.json").touch()  # of another program, beside its images
    with pytest.raises(VaeError, match="inside the data set"):
        guard_output("samples.png", ".")


def test_a_data_set_survives_the_commands_that_use_it(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    np.savez("set.npz", images=digits.images.numpy())
    before = Path("set.npz").read_bytes()
    for command in (["sample", "--from", "test", "-n", "5"], ["encode"]):
        result = invoke(command[0], ckpt, *command[1:], "-d", "set.npz", "-o", "set.npz")
        assert result.exit_code == 1
        assert "also an input" in assert_one_line(result.stderr)
    assert Path("set.npz").read_bytes() == before


@pytest.mark.parametrize("there", [True, False])
def test_a_strangers_run_folder_leads_nowhere(run_copy: Path, tmp_path: Path, invoke: Invoke, there: bool) -> None:
    """Links in it to files of another kind are not written through, whether these exist or not."""
    victim = tmp_path / ".bashrc"
    if there:
        victim.write_text("mine")
    (run_copy / "scatter.png").symlink_to(victim)
    (run_copy / "metrics.jsonl").unlink()
    (run_copy / "metrics.jsonl").symlink_to(victim)
    for command in (["scatter", run_copy], ["train", "--resume", "-e", "3", "-o", run_copy]):
        result = invoke(*command)
        assert result.exit_code == 1
        assert "a link to" in assert_one_line(result.stderr)
    assert victim.exists() == there
    assert not there or victim.read_text() == "mine"


def test_links_to_the_same_kind_of_file_are_followed(trained: Trained, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "link.png").symlink_to("figure.png")
    assert invoke("curves", trained.checkpoint, "-o", tmp_path / "link.png").exit_code == 0
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "figure.png").stat().st_size


def test_a_picture_among_the_data_is_refused_whatever_its_case(tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "1.png")
    with pytest.raises(VaeError, match="lies inside the data set"):
        guard_output(str(tmp_path / "NEW.PNG"), str(tmp_path))
