"""`vae sample` and `vae encode` as pipelines: codes out, codes in, every source and every kind of output."""

import errno
import functools
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import DIGITS, TINY, Invoke, assert_one_line
from PIL import Image
from typer.testing import Result

import vaecli
from vaecli import data, engine, latent
from vaecli.backgrounds import inverted
from vaecli.cli import main
from vaecli.errors import DataError, UsageError, VaeError
from vaecli.grids import grid
from vaecli.images import read_images
from vaecli.run import Settings
from vaecli.runtime import noise
from vaecli.services import inputs
from vaecli.services.inputs import open_checkpoint
from vaecli.services.pictures import write_pictures
from vaecli.services.sample import _walk, sample
from vaecli.services.train import train

CPU = torch.device("cpu")
Pixels = npt.NDArray[np.uint8]


def decoded(ckpt: str, z: torch.Tensor) -> Pixels:
    """What decoding these codes directly gives."""
    pixels: Pixels = engine.decode(engine.prepare(vaecli.load_model(ckpt), CPU), z).numpy()
    return pixels


def images_of(path: str = "a.npz") -> Pixels:
    with np.load(path) as archive:
        pixels: Pixels = archive["images"]
        return pixels


def failure(result: Result, code: int = 1) -> str:
    assert (result.exit_code, result.stdout) == (code, "")
    return assert_one_line(result.stderr)


# Codes through the shell


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_encode_into_sample_gives_exactly_the_images_of_those_codes(
    ckpt: str, invoke: Invoke, digits: data.Split, form: str
) -> None:
    table = invoke("encode", ckpt, "--split", "train", "--sample", "--format", form).stdout_bytes
    assert invoke("sample", ckpt, "--from", "-", "-o", "a.npz", "-q", stdin=table).stdout == "a.npz\n"
    model = engine.prepare(vaecli.load_model(ckpt), CPU)
    images = data.load(str(DIGITS), "train", None, print).images
    z = engine.sample_posterior(engine.encode(model, images, CPU), 0, 0)
    np.testing.assert_array_equal(images_of(), engine.decode(model, z).numpy())


def test_without_draws_the_means_are_decoded_from_a_file_or_a_pipe(
    ckpt: str, invoke: Invoke, digits: data.Split
) -> None:
    invoke("encode", ckpt, "-o", "codes.csv", "-q")
    model = engine.prepare(vaecli.load_model(ckpt), CPU)
    expected = engine.decode(model, engine.encode(model, digits.images, CPU).mean).numpy()
    invoke("sample", ckpt, "--from", "codes.csv", "-o", "a.npz")
    np.testing.assert_array_equal(images_of(), expected)
    invoke("sample", ckpt, "--from", "codes.csv", "-o", "a.npz", "-n", "20")
    np.testing.assert_array_equal(images_of(), expected[:20])
    reader, writer = os.pipe()
    os.write(writer, Path("codes.csv").read_bytes())
    os.close(writer)
    invoke("sample", ckpt, "--from", f"/dev/fd/{reader}", "-o", "b.npz", "-n", "20")
    assert os.read(reader, 1) == b""  # read to its end, or a writer under pipefail would fail
    os.close(reader)
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


def test_many_codes_are_decoded_in_blocks(ckpt: str, invoke: Invoke) -> None:
    z = torch.cat([noise(0, "prior", block, 2) for block in range(2)])[:1_030]
    table = "z_0,z_1\n" + "".join(f"{a:.9g},{b:.9g}\n" for a, b in z.tolist())
    invoke("sample", ckpt, "--from", "-", "-o", "a.npz", stdin=table.encode())
    invoke("sample", ckpt, "-n", "1030", "-o", "b.npz")
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"", "There are no codes in standard input"),
        (b"z_0\n1\n", "codes of z_dim 1, but the model's is 2"),
        (b"z_0,z_1\n1,2\nnan,2\n", "standard input, line 3"),
    ],
)
def test_codes_that_do_not_fit_are_one_line(ckpt: str, invoke: Invoke, table: bytes, words: str) -> None:
    assert words in failure(invoke("sample", ckpt, "--from", "-", "-o", "a.png", stdin=table))
    assert os.listdir() == []


def test_too_many_codes_for_one_output_are_refused(ckpt: str, invoke: Invoke) -> None:
    table = b"z_0,z_1\n" + b"1,2\n" * 1_001
    line = failure(invoke("sample", ckpt, "--from", "-", "-o", "a.gif", stdin=table))
    assert "standard input has more codes than one output takes. A .gif takes at most 1,000 images" in line
    assert os.listdir() == []


def test_what_is_no_file_of_codes_is_named(ckpt: str, invoke: Invoke) -> None:
    Path("folder").mkdir()
    for name, words in (("gird", "There is no file 'gird'"), ("folder", "Is a directory")):
        assert words in failure(invoke("sample", ckpt, "--from", name, "-o", "a.png"))
    Path("codes.csv").write_text("z_0,z_1\n1,2\n")
    assert "fewer than -n 2" in failure(invoke("sample", ckpt, "--from", "codes.csv", "-n", "2", "-o", "a.npz"))
    Path("codes.csv").rename("codes.png")
    assert "also an input" in failure(invoke("sample", ckpt, "--from", "codes.png", "-o", "codes.png"))


# Sources


def test_grid_and_traverse_decode_their_walks(ckpt: str, invoke: Invoke) -> None:
    invoke("sample", ckpt, "--from", "grid", "-o", "a.npz")
    np.testing.assert_array_equal(images_of(), decoded(ckpt, latent.manifold(100, 2, (0, 1))))
    invoke("sample", ckpt, "--from", "grid", "-o", "a.npz", "--dims", "1,0", "-n", "9", "--temperature", "2")
    np.testing.assert_array_equal(images_of(), decoded(ckpt, 2 * latent.manifold(9, 2, (1, 0))))
    invoke("sample", ckpt, "--from", "traverse", "-o", "a.npz")
    np.testing.assert_array_equal(images_of(), decoded(ckpt, latent.traversal(20, 2, (0, 1))))
    invoke("sample", ckpt, "--from", "traverse", "-o", "a.npz", "--dims", "1", "-n", "7")
    np.testing.assert_array_equal(images_of(), decoded(ckpt, latent.traversal(7, 2, (1,))))


def test_walks_of_a_model_with_one_dimension(invoke: Invoke) -> None:
    trained = train(Settings(z_dim=1, epochs=1, **TINY), "run")
    assert trained is not None
    invoke("sample", "run", "--from", "grid", "-n", "7", "-o", "a.npz")
    np.testing.assert_array_equal(images_of(), decoded("run", latent.quantiles(7)[:, None]))
    assert invoke("sample", "run", "--from", "traverse", "-o", "a.gif", "-q").exit_code == 0
    assert "no dimension 1. Choose --dims from 0 to 0." in failure(
        invoke("sample", "run", "--from", "grid", "--dims", "0,1")
    )


def test_noise_goes_on_from_block_to_block(ckpt: str, invoke: Invoke, many: data.Split) -> None:
    invoke("sample", ckpt, "--from", "test", "-d", "many.npz", "-n", "1100", "--pairs", "-o", "a.npz")
    picked = many.pick(1100, 0).images
    with np.load("a.npz") as archive:
        np.testing.assert_array_equal(archive["originals"], picked.numpy())
    posterior = engine.encode(engine.prepare(vaecli.load_model(ckpt), CPU), picked[1000:], CPU)
    z = posterior.sample(noise(0, "posterior", 1, 2)[:100])
    np.testing.assert_allclose(images_of()[1000:].astype(int), decoded(ckpt, z), atol=1)


def test_pairs_stay_pairs_from_block_to_block(digits: data.Split) -> None:
    originals, images = digits.images[:5].numpy(), digits.images[5:10].numpy()
    whole, parts = io.BytesIO(), io.BytesIO()
    write_pictures(whole, "png", iter([images]), count=5, originals=originals)
    write_pictures(parts, "png", iter([images[:2], images[2:4], images[4:]]), count=5, originals=originals)
    assert parts.getvalue() == whole.getvalue()


def test_interpolate_needs_a_picture_for_each_image(ckpt: str, invoke: Invoke) -> None:
    line = failure(invoke("sample", ckpt, "--from", "interpolate", "--indices", "0,5,7", "-n", "2"), 2)
    assert "--indices names 3 images, more than -n 2." in line
    assert invoke("sample", ckpt, "--from", "interpolate", "--indices", "0,5,7", "-n", "3", "-q").exit_code == 0


def test_interpolate_goes_straight_between_test_images(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    invoke("sample", ckpt, "--from", "interpolate", "--indices", "3,8,149", "-n", "11", "-o", "a.npz")
    model = engine.prepare(vaecli.load_model(ckpt), CPU)
    stops = engine.encode(model, digits.images[[3, 8, 149]], CPU).mean
    np.testing.assert_array_equal(images_of(), engine.decode(model, latent.interpolation(11, stops)).numpy())
    np.testing.assert_array_equal(images_of()[[0, 5, 10]], engine.decode(model, stops).numpy())


def test_temperature_scales_the_deviation(ckpt: str, invoke: Invoke) -> None:
    invoke("sample", ckpt, "-n", "8", "--temperature", "0.5", "-o", "a.npz")
    np.testing.assert_array_equal(images_of(), decoded(ckpt, noise(0, "prior", 0, 2)[:8] * 0.5))
    invoke("sample", ckpt, "--from", "test", "-n", "8", "--temperature", "0", "--pairs", "-o", "a.npz")
    with np.load("a.npz") as archive:
        images, originals = archive["images"], torch.from_numpy(archive["originals"])
    model = engine.prepare(vaecli.load_model(ckpt), CPU)
    np.testing.assert_array_equal(images, engine.decode(model, engine.encode(model, originals, CPU).mean).numpy())
    invoke("sample", ckpt, "--temperature", "1", "-o", "b.npz")
    invoke("sample", ckpt, "-o", "c.npz")
    assert Path("b.npz").read_bytes() == Path("c.npz").read_bytes()


def test_like_takes_one_class(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    assert digits.labels is not None
    sevens = digits.images[digits.labels == 7].numpy()
    invoke("sample", ckpt, "--from", "test", "--like", "7", "--pairs", "-n", str(len(sevens)), "-o", "a.npz")
    with np.load("a.npz") as archive:
        assert sorted(map(bytes, archive["originals"])) == sorted(map(bytes, sevens))
    invoke("sample", ckpt, "--like", "7", "-o", "a.npz")  # alone it means train
    invoke("sample", ckpt, "--like", "7", "--from", "train", "-o", "b.npz")
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    for label in ("10", "seven", "9" * 5_000):
        assert "have the label" in failure(invoke("sample", ckpt, "--like", label, "-o", "a.png"))
    too_many = str(len(sevens) + 1)
    line = failure(invoke("sample", ckpt, "--from", "test", "--like", "7", "-n", too_many, "-o", "a.png"))
    assert f"images in the test split with the label '7' ({len(sevens)})" in line


def test_like_knows_names_and_says_if_there_are_none(digits: data.Split) -> None:
    named = data.Split(digits.images, digits.labels, ("Zero", "One", "1"))
    assert torch.equal(named.only("one", "x").images, named.only("1", "x").images) is False  # a name wins
    assert torch.equal(named.only("ZERO", "x").images, named.only("0", "x").images)
    cases = data.Split(digits.images, digits.labels, ("A", "a"))
    assert torch.equal(cases.only("a", "x").images, cases.only("1", "x").images)
    accents = data.Split(digits.images, digits.labels, ("e", "\xe9"))
    assert torch.equal(accents.only("e\u0301", "x").images, accents.only("1", "x").images)
    two = data.Split(digits.images[:2], torch.tensor([3, 1]), tuple("0123"))
    with pytest.raises(DataError, match=r"Choose one of 1, 3\."):
        two.only("2", "x")
    many = data.Split(digits.images[:40], torch.arange(40), tuple(map(str, range(40))))
    with pytest.raises(DataError, match=r"Choose one of 0, 1, .*, 28, 29, \.\.\.\.$"):
        many.only("40", "x")
    with pytest.raises(DataError, match="no labels"):
        data.Split(digits.images, None, ()).only("1", "x")


@pytest.mark.parametrize("count", [0, -5])
def test_a_notebooks_count_is_at_least_1(ckpt: str, count: int) -> None:
    with pytest.raises(UsageError, match="Use at least 1"):
        sample(ckpt, output="a.npz", form="npz", count=count)
    assert not Path("a.npz").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--from", "grid", "--dims", "0,9"], "no dimension 9"),
        (["--from", "traverse", "--dims", "2"], "Choose --dims from 0 to 1"),
        (["--from", "grid", "-n", "50"], "Use 49 or 64"),
        (["--from", "traverse", "-n", "7"], "Use 6 or 8."),
        (["--from", "traverse", "-n", "1"], "Use 2."),
        (["--from", "interpolate", "--indices", "0,150"], "no test image 150"),
    ],
)
def test_walks_that_the_model_has_not(ckpt: str, invoke: Invoke, args: list[str], words: str) -> None:
    assert words in failure(invoke("sample", ckpt, *args, "-o", "a.png"))


@pytest.mark.parametrize(
    "args",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--temperature", "inf"],
        ["--from", "-", "--temperature", "1"],
        ["--from", "interpolate", "--indices", "0,1", "--temperature", "0"],
        ["--from", "interpolate"],
        ["--from", "interpolate", "--indices", "1,"],
        ["--from", "grid", "--indices", "0,1"],
        ["--from", "grid", "--dims", "0,1,2"],
        ["--from", "grid", "--dims", "0,1", "-n", "7"],
        ["--from", "traverse", "--dims", "0,1", "-n", "7"],
        ["--from", "interpolate", "--indices", "3"],
        ["--from", "grid", "--dims", "0,-1"],
        ["--from", "grid", "--like", "7"],
        ["--from", "prior", "--like", "7"],
        ["--from", "traverse", "--pairs"],
        ["--from", "codes.csv", "-d", "mnist"],
        ["--dims", "0,1"],
        ["-o", "a.gif"],
        ["--from", "grid", "-o", "a.gif"],
        ["--from", "traverse", "-n", "1001", "-o", "a.gif"],
        ["-n", "100001", "-o", "folder/"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(["sample", "no-such-checkpoint", *args]) == 2
    assert "No such option" not in assert_one_line(capsys.readouterr().err)


def test_a_walk_names_each_dimension_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "no-such-checkpoint", "--from", "grid", "--dims", "1,1"]) == 2
    assert "each once" in assert_one_line(capsys.readouterr().err)


# Outputs


def test_a_gif_goes_there_and_back(ckpt: str, invoke: Invoke) -> None:
    for name in ("a.gif", "b.gif"):
        invoke("sample", ckpt, "--from", "traverse", "-n", "12", "-o", name)
    assert Path("a.gif").read_bytes() == Path("b.gif").read_bytes()
    expected = decoded(ckpt, latent.traversal(12, 2, (0, 1))).reshape(2, 6, 28, 28)
    with Image.open("a.gif") as animation:
        assert (animation.n_frames, animation.info["loop"]) == (10, 0)  # type: ignore[attr-defined]
        for frame, step in enumerate([0, 1, 2, 3, 4, 5, 4, 3, 2, 1]):
            animation.seek(frame)
            np.testing.assert_array_equal(np.asarray(animation.convert("L")), np.asarray(grid(expected[:, step])))


def test_a_gif_of_codes_runs_as_they_stand(ckpt: str, invoke: Invoke) -> None:
    table = b"z_0,z_1\n-2,0\n0,2\n2,0\n"
    assert invoke("sample", ckpt, "--from", "-", "-o", "a.gif", "-q", stdin=table).stdout == "a.gif\n"
    with Image.open("a.gif") as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]


def test_traverse_has_a_row_a_dimension(ckpt: str, invoke: Invoke) -> None:
    invoke("sample", ckpt, "--from", "traverse", "-n", "12", "-o", "a.png")
    expected = decoded(ckpt, latent.traversal(12, 2, (0, 1)))
    np.testing.assert_array_equal(np.asarray(Image.open("a.png")), np.asarray(grid(expected, columns=6)))


def test_a_folder_gets_a_picture_each_and_reads_back(ckpt: str, invoke: Invoke) -> None:
    assert invoke("sample", ckpt, "-n", "12", "-o", "new/pictures/", "-q").stdout == "new/pictures/\n"
    names = [f"{index:05}.png" for index in range(12)]
    assert sorted(os.listdir("new/pictures")) == names
    invoke("sample", ckpt, "-n", "12", "-o", "a.npz")
    for name, image in zip(names, images_of(), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(f"new/pictures/{name}")), image)
    result = invoke("encode", ckpt, "new/pictures")
    assert result.stderr == ""  # 28x28 grey on black: nothing to convert, nothing to say
    assert [line.split(",")[0] for line in result.stdout.splitlines()[1:]] == [f"new/pictures/{n}" for n in names]


def test_a_folder_keeps_what_is_not_ours(ckpt: str, invoke: Invoke, run_copy: Path) -> None:
    invoke("sample", ckpt, "-n", "12", "-o", "folder/")
    Path("folder/notes.txt").write_text("mine")
    before = Path("folder/00000.png").read_bytes()
    invoke("sample", ckpt, "-n", "3", "--seed", "5", "-o", "folder")  # there, so no slash is needed
    assert sorted(os.listdir("folder")) == ["00000.png", "00001.png", "00002.png", "notes.txt"]
    assert Path("folder/00000.png").read_bytes() != before
    before = Path("folder/00000.png").read_bytes()
    Image.new("L", (28, 28)).save("folder/00002.png")
    assert "folder/00002.png is there" in failure(invoke("sample", ckpt, "-n", "4", "-o", "folder"))
    assert sorted(os.listdir("folder")) == ["00000.png", "00001.png", "00002.png", "notes.txt"]
    assert Path("folder/00000.png").read_bytes() == before
    assert invoke("sample", ckpt, "-n", "2", "-o", "folder").exit_code == 0  # nobody's name is taken
    assert sorted(os.listdir("folder")) == ["00000.png", "00001.png", "00002.png", "notes.txt"]
    os.remove("folder/00001.png")
    os.mkfifo("folder/00001.png")
    assert "folder/00001.png is there" in failure(invoke("sample", ckpt, "-n", "2", "-o", "folder"))
    assert "is a run folder" in failure(invoke("sample", ckpt, "-o", run_copy))
    assert "Cannot write into" in failure(invoke("sample", ckpt, "-o", "folder/notes.txt/"))


def test_a_folder_of_data_gets_no_pictures(invoke: Invoke, ckpt: str) -> None:
    for index in range(10):
        Path("mine").mkdir(exist_ok=True)
        Image.new("L", (28, 28), index).save(f"mine/{index}.png")
    for folder in ("mine", "mine/decoded/"):
        line = failure(invoke("sample", ckpt, "--from", "test", "-d", "mine", "-o", folder))
        assert "inside the data set 'mine'" in line
    assert len(os.listdir("mine")) == 10


# encode: lists of paths, paper, and what cannot be read


@pytest.fixture
def pictures(digits: data.Split) -> list[str]:
    """Five digits as files whose names try a list's patience."""
    names = ["b.png", "a b.png", "ü.png", "q'.png", "line\nbreak.png"]
    for name, image in zip(names, digits.images.numpy(), strict=False):
        Image.fromarray(image).save(name)
    return names


@pytest.mark.parametrize("end", ["\0", "\n", "\r\n"])
def test_encode_takes_a_list_of_paths_in_its_order(ckpt: str, invoke: Invoke, pictures: list[str], end: str) -> None:
    listed = [name for name in pictures if end[-1] not in name]
    expected = invoke("encode", ckpt, "a b.png", *listed, "b.png")
    got = invoke("encode", ckpt, "a b.png", "-", "b.png", stdin="".join(name + end for name in listed).encode())
    assert (got.stderr, got.stdout_bytes) == ("", expected.stdout_bytes)
    without_end = invoke("encode", ckpt, "a b.png", "-", "b.png", stdin=end.join(listed).encode())
    assert without_end.stdout_bytes == expected.stdout_bytes


def test_encode_takes_folders_and_idx_files_from_a_list(ckpt: str, invoke: Invoke, pictures: list[str]) -> None:
    Path("folder").mkdir()
    Path("b.png").rename("folder/b.png")
    assert invoke("encode", ckpt, "-", stdin=b"folder\n").stdout == invoke("encode", ckpt, "folder").stdout
    idx = DIGITS / "t10k-images-idx3-ubyte.gz"
    assert invoke("encode", ckpt, "-", stdin=f"{idx}\n".encode()).stdout == invoke("encode", ckpt, idx).stdout


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        (b"", "list of paths on standard input is empty"),
        (b"\n\n", "list of paths on standard input is empty"),
        (b"\0", "list of paths on standard input is empty"),
        (b"b.png\nmissing.png\n", "missing.png does not exist"),
        (b"zero.png\n", "zero.png is no image"),
        (b"bare\n", "bare holds no image files"),
    ],
)
def test_encode_names_what_it_cannot_read_in_a_list(
    ckpt: str, invoke: Invoke, pictures: list[str], listing: bytes, words: str
) -> None:
    Path("zero.png").touch()
    Path("bare").mkdir()
    assert words in failure(invoke("encode", ckpt, "-", "-o", "codes.csv", stdin=listing))
    assert not Path("codes.csv").exists()


def test_encode_reads_stdin_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "no-such-checkpoint", "-", "-"]) == 2
    assert "read once" in assert_one_line(capsys.readouterr().err)


def test_paper_is_noted_and_only_invert_changes_it(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    for index, image in enumerate(digits.images[:6].numpy()):
        Path("paper" if index < 4 else "ink").mkdir(exist_ok=True)
        Image.fromarray(255 - image if index < 4 else image).save(f"{'paper' if index < 4 else 'ink'}/{index}.png")
    dark = invoke("encode", ckpt, "ink")
    assert dark.stderr == ""
    mixed = invoke("encode", ckpt, "paper", "ink")
    assert mixed.stderr.count("\n") == 1
    assert mixed.stderr.startswith(
        "Images with a bright background, as paper has: 4 of 6 (paper/0.png, paper/1.png, paper/2.png, ...)."
    )
    assert mixed.stderr.endswith("use --invert.\n")
    assert mixed.stdout.endswith(dark.stdout.partition("\n")[2])  # nothing was changed
    inverted = invoke("encode", ckpt, "paper", "--invert")
    assert inverted.stderr == ""
    split = invoke("encode", ckpt).stdout.splitlines()
    codes = [line.split(",", 2)[2] for line in inverted.stdout.splitlines()[1:]]
    assert codes == [line.split(",", 2)[2] for line in split[1:5]]
    assert invoke("encode", ckpt, "ink", "--invert").stderr.startswith(
        "Images with a bright background, as paper has: 2 of 2."
    )
    assert invoke("encode", ckpt, "paper", "-q").stderr == ""


def test_ink_that_is_lost_on_black_is_noted(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    Path("drawings").mkdir()
    for index, image in enumerate(digits.images[:12].numpy()):
        ink = ((0, 0, 0), (10, 10, 60), (20, 20, 20))[index % 3]
        drawing = Image.new("RGBA", (28, 28), ink)
        drawing.putalpha(Image.fromarray(image))
        drawing.save(f"drawings/{index:02}.png")
    Image.new("L", (28, 28), "white").save("blank.png")
    Image.fromarray(digits.images[0].numpy()).save("ink.png")
    for options in ([], ["--invert"]):
        lost = invoke("encode", ckpt, "drawings", "blank.png", *options)
        assert "Images that show next to nothing: 13 of 13." in lost.stderr
        one = invoke("encode", ckpt, "ink.png", "blank.png", *options).stderr
        assert one.startswith("Images that show next to nothing: 1 of 2 (blank.png).")
        assert "bright" not in lost.stderr  # what else there is to say of them would mislead
    result = invoke("train", "-d", "drawings", "-e", "1", "-o", "run", "--device", "cpu")
    assert result.stderr.count("Images that show next to nothing: 12 of 12.") == 1
    for path in Path("drawings").iterdir():  # as the note says
        white = Image.new("RGBA", (28, 28), "white")
        Image.alpha_composite(white, Image.open(path)).save(path)
    found = invoke("encode", ckpt, "drawings", "--invert")
    assert "next to nothing" not in found.stderr
    assert "bright" not in found.stderr


def test_paper_is_noted_in_data_sets_too(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    Path("scans").mkdir()
    for index, image in enumerate(digits.images[:20].numpy()):
        Image.fromarray(255 - image).resize((40, 40)).save(f"scans/{index:02}.png")
    result = invoke("train", "-d", "scans", "-e", "1", "-o", "run", "--device", "cpu")
    notes = [line for line in result.stderr.splitlines() if "bright" in line]
    assert len(notes) == 1
    assert notes[0].startswith("Images with a bright background, as paper has: 20 of 20.")
    assert "--invert" not in notes[0]  # which train has not
    assert any("Converted 18 of 18 training images" in line for line in result.stderr.splitlines())
    assert "bright" not in invoke("encode", "run").stderr  # the model knows them so
    assert "use --invert" in invoke("encode", ckpt, "-d", "scans").stderr
    Image.new("L", (40, 40)).save("scans/03.png")  # is read as the third training image
    assert (
        "Images that show next to nothing: 1 of 18 (3)."
        in invoke("encode", ckpt, "-d", "scans", "--split", "train").stderr
    )
    for command in (["test"], ["scatter", "-o", "a.png"], ["sample", "--from", "test", "-n", "1", "-o", "a.png"]):
        assert invoke(*command, ckpt, "-d", "scans").stderr.count("Images with a bright background") == 1, command
        assert "bright" not in invoke(*command, "run").stderr


def test_a_table_of_paths_goes_through_jsonl_too(ckpt: str, invoke: Invoke, pictures: list[str]) -> None:
    table = invoke("encode", ckpt, *pictures, "--format", "jsonl").stdout_bytes
    assert [json.loads(line)["path"] for line in table.splitlines()] == pictures
    result = invoke("sample", ckpt, "--from", "-", "-o", "-", stdin=table)
    assert Image.open(io.BytesIO(result.stdout_bytes)).width > 3 * 28


# Pictures that are not MNIST's


def correlation(a: Pixels, b: Pixels) -> npt.NDArray[np.float64]:
    """Pearson's r of each picture of `a` (N, 28, 28) with each of `b` (M, 28, 28): (N, M)."""
    a_rows, b_rows = (x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(1, keepdims=True) for x in (a, b))
    scale = np.linalg.norm(a_rows, axis=1)[:, None] * np.linalg.norm(b_rows, axis=1)
    r: npt.NDArray[np.float64] = a_rows @ b_rows.T / scale
    return r


def test_scans_become_digits_like_those_of_the_data(scans: list[str]) -> None:
    split = data.load(str(DIGITS), "train", None, print)
    means = np.stack([split.images[split.labels == digit].double().mean(0).numpy() for digit in range(10)])
    pictures, converted = read_images(scans)
    assert converted == 10
    white_on_black = inverted(pictures)
    assert white_on_black[:, 0].max() < 8  # tinted paper is black, as it is around MNIST's digits
    assert white_on_black.max(axis=(1, 2)).min() > 150
    nearest = correlation(white_on_black, means).argmax(1)
    assert (nearest == np.arange(10)).sum() >= 7  # the means of 50 digits each take 5 for 8
    assert (correlation(pictures, means).argmax(1) == np.arange(10)).sum() <= 2


def test_scans_come_back_from_their_codes(learned: str, invoke: Invoke, scans: list[str]) -> None:
    white_on_black = inverted(read_images(scans)[0])
    likeness = []
    for options in (["--invert"], []):
        result = invoke("encode", learned, *scans, *options)
        assert ("bright background" in result.stderr) == (not options)
        invoke("sample", learned, "--from", "-", "-o", "a.npz", stdin=result.stdout_bytes)
        likeness.append(np.diag(correlation(images_of(), white_on_black)).mean())
    assert likeness[0] > 0.6
    assert likeness[1] < 0.45


def refuse(**options: object) -> None:
    raise FileNotFoundError(errno.ENOENT, "No usable one")


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux: /dev/full")
def test_a_full_temporary_folder_is_not_blamed_on_the_output(
    ckpt: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(open, "/dev/full", "r+b"))
    result = invoke("sample", ckpt, "--from", "-", "-o", "a.npz", "-q", stdin=b"z_0,z_1\n0,0\n")
    assert f"Cannot keep the images in {tempfile.gettempdir()}: No space left" in failure(result)
    assert invoke("sample", ckpt, "--from", "-", "-o", "a.npz", "-q", "-n", "1", stdin=b"z_0,z_1\n0,0\n").exit_code == 0
    monkeypatch.setattr(tempfile, "tempdir", None)  # as of a system on which no folder can be written
    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    result = invoke("sample", ckpt, "--from", "-", "-o", "a.npz", "-q", stdin=b"z_0,z_1\n0,0\n")
    assert "Cannot keep the images in a temporary folder: No usable one. Set TMPDIR" in failure(result)


def test_a_table_is_read_to_its_end_whatever_is_taken(ckpt: str) -> None:
    """Or its writer would fail."""
    stream = io.BytesIO(b"z_0,z_1\n" + b"1,2\n" * 50_000)
    sample(ckpt, output="a.npz", form="npz", source=stream, count=3, device="cpu")
    assert (len(images_of()), stream.read()) == (3, b"")


def test_walks_of_too_many_dimensions_are_refused(ckpt: str) -> None:
    with pytest.raises(VaeError, match="2 dimensions make 20 images"):
        _walk(open_checkpoint(ckpt, "cpu"), "traverse", None, None, 1.0, 19)


def test_a_grid_is_a_square_over_the_first_two_dimensions(learned: str, invoke: Invoke) -> None:
    invoke("sample", learned, "--from", "grid", "-n", "9", "-o", "a.png")
    expected = grid(decoded(learned, latent.manifold(9, 4, (0, 1))))
    np.testing.assert_array_equal(np.asarray(Image.open("a.png")), np.asarray(expected))


def test_a_list_of_paths_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_LISTING", 5)
    assert inputs.read_paths(io.BytesIO(b"a\nb\n")) == ["a", "b"]
    with pytest.raises(DataError, match="more than 5 bytes"):
        inputs.read_paths(io.BytesIO(b"a\nb\nc\n"))
