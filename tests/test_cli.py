"""What the commands promise: answers on stdout, people on stderr, one line an error, exit codes."""

import csv
import gzip
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, FEW, Invoke, assert_one_line, process
from faults import SIGNALS, start, wait_for
from PIL import Image
from test_idx import idx_bytes
from warm import command_on_path

import vaecli
from vaecli import checkpoint, data, engine
from vaecli.cli import main
from vaecli.run import Settings
from vaecli.runtime import noise
from vaecli.services.epochs import Run
from vaecli.services.resume import Trained

linux = pytest.mark.skipif(sys.platform != "linux", reason="of Linux: /dev/full, and names that are no UTF-8")

COMMANDS = ["train", "test", "encode", "sample", "scatter", "curves"]
TRAIN = ["train", "-d", str(FEW), "-e", "1", "-b", "20", "--precision", "fp32", "--device", "cpu"]


def shell(script: str, *args: object, **env: str) -> "subprocess.CompletedProcess[bytes]":
    """A script in bash, where `vae` is the command and `$1` the first of the arguments."""
    script = 'vae() { "$PYTHON" -m vaecli "$@"; }\n' + script
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | env
    command = ["bash", "-c", script, "bash", *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)


# Help and usage


def test_help_lists_the_six_commands_in_order(invoke: Invoke) -> None:
    for option in ("-h", "--help"):
        result = invoke(option)
        assert result.exit_code == 0
        names = [line.split()[0] for line in result.stdout.partition("Commands:\n")[2].splitlines()]
        assert names == COMMANDS
    assert invoke().stdout == result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(invoke: Invoke, command: str) -> None:
    result = invoke(command, "-h")
    assert result.exit_code == 0
    assert f"  vae {command} " in result.stdout
    assert "--json" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def completions(words: str, shell: str) -> list[str]:
    """What a shell is offered for the last of the words, as typer's script for it asks."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_TYPER_COMPLETE_ARGS": words}
    done = process(env=asked | {"_VAE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"})
    return re.findall(r"[\w-]+", done.stdout.decode())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_in_every_shell(shell: str) -> None:
    assert "sample" in completions("vae sa", shell)
    offered = completions("vae sample run --from inter", shell)
    assert "interpolate" in offered
    assert "train" not in offered


def test_completion_installs_and_works_in_bash(tmp_path: Path) -> None:
    (tmp_path / "vae").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vaecli "$@"\n')
    (tmp_path / "vae").chmod(0o755)
    script = """
    set -eu
    vae --install-completion
    source ~/.bashrc
    complete -p vae
    COMP_WORDS=(vae sample run --from in) COMP_CWORD=4
    _vae_completion vae
    echo "offered ${COMPREPLY[*]}"
    """
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete -o default -F _vae_completion vae" in done.stdout
    assert done.stdout.endswith("offered interpolate\n")


def test_version(invoke: Invoke) -> None:
    from importlib.metadata import version

    assert invoke("--version").stdout == f"vae {version('vaecli')}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["test"],
        ["curves"],
        ["train", "--nonsense"],
        ["train", "--z-dim", "0"],
        ["train", "--z-dim", "two"],
        ["train", "--z-dim", "1000000000"],
        ["train", "--lr", "nan"],
        ["train", "--lr", "inf"],
        ["train", "--lr", "0"],
        ["train", "--beta", "-1"],
        ["train", "--beta", "nan"],
        ["train", "--beta", "1e39"],
        ["train", "-o", ""],
        ["train", "--data-dir", ""],
        ["train", "-d", ""],
        ["test", "ckpt", "-d", ""],
        ["sample", "ckpt", "--from", ""],
        ["sample", "ckpt", "--like", ""],
        ["test", ""],
        ["encode", "ckpt", ""],
        ["encode", "ckpt", "-o", ""],
        ["sample", "ckpt", "-o", ""],
        ["curves", "run", "-o", ""],
        ["train", "--lr-schedule", "linear"],
        ["train", "--kl-warmup", "-1"],
        ["train", "--epochs", "0"],
        ["train", "--batch-size", "0"],
        ["train", "--checkpoint-every", "0"],
        ["train", "--log-interval", "-1"],
        ["train", "--precision", "fp16"],
        ["train", "--seed", "-1"],
        ["train", "--device", "tpu"],
        ["train", "--device", "cuda:0300"],
        ["train", "--resume", "--overwrite"],
        ["train", "extra"],
        ["test", "ckpt", "--split", "validation"],
        ["test", "ckpt", "--samples", "1" + "0" * 20],
        ["test", "ckpt", "--importance-samples", "1" + "0" * 20],
        ["encode", "ckpt", "--json"],
        ["encode", "ckpt", "-o", "codes.xlsx"],
        ["encode", "ckpt", "--format", "parquet"],
        ["encode", "ckpt", "--format", "csv", "-o", "folder/"],
        ["sample", "ckpt", "-n", "0"],
        ["sample", "ckpt", "--pairs"],
        ["sample", "ckpt", "-n", "10001"],
        ["sample", "ckpt", "-o", "samples.bmp"],
        ["sample", "ckpt", "-o", "-", "--json"],
        ["scatter", "ckpt", "-o", "scatter"],
        ["curves", "run", "--metric", "accuracy"],
        ["curves", ""],
        ["encode", "ckpt", "a.png", "--split", "train"],
        ["encode", "ckpt", "a.png", "-d", "mnist"],
        ["sample", "ckpt", "-d", "mnist"],
        ["scatter", "ckpt", "--dims", "0"],
        ["scatter", "ckpt", "--dims", "0,-1"],
        ["scatter", "ckpt", "--dims", "0,00"],
        ["scatter", "ckpt", "--limit", "0"],
        ["scatter", "ckpt", "--dims", "0,1", "--pca"],
        ["curves", "run", "-o", "run.csv", "--metric", "kl"],
        ["curves", "run", "-o", "run.csv", "--log-scale"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = assert_one_line(captured.err)
    assert "Value error" not in line
    assert ("No such option" in line) == ("--nonsense" in args)  # else an option that is gone would do


def test_an_option_without_its_value_leads_to_its_commands_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--epochs"]) == 2
    assert "See 'vae train --help'" in assert_one_line(capsys.readouterr().err)


def test_signal_handlers_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    main(["nonsense"])
    assert [signal.getsignal(number) for number in SIGNALS] == before


# train


def test_what_to_type_next_is_no_option(invoke: Invoke) -> None:
    result = invoke(*TRAIN, "-o", "-dash")
    assert result.stdout == "-dash/check1.safetensors\n"
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("  vae test"))
    assert invoke(*line.split()[1:], "-q").exit_code == 0


def test_train_answers_with_the_checkpoint_and_tells_of_each_epoch(invoke: Invoke) -> None:
    result = invoke(*TRAIN, "-o", "./a run", "--log-interval", "2")
    assert result.exit_code == 0
    assert result.stdout == "./a run/check1.safetensors\n"
    assert Path("a run/check1.safetensors").is_file()
    lines = result.stderr.splitlines()
    assert [line.split("loss")[0] for line in lines if "%" in line] == ["epoch 1/1   40%  ", "epoch 1/1   80%  "]
    assert any("train loss" in line and "test loss" in line and "images/s" in line for line in lines)
    assert "  vae test './a run/check1.safetensors'" in lines


def test_train_quiet_and_json(invoke: Invoke) -> None:
    result = invoke(*TRAIN, "-o", "run", "-q", "--json")
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert list(answer) == ["checkpoint", "epochs", "train_losses", "test_losses"]
    assert answer["epochs"] == len(answer["train_losses"]) == len(answer["test_losses"]) == 1
    assert result.stdout.count("\n") == 1


def test_train_default_folder_and_dry_run(invoke: Invoke) -> None:
    result = invoke(*TRAIN, "-z", "3", "--dry-run", "--json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Dry run" in result.stderr.splitlines()[-1]
    assert os.listdir() == []
    assert invoke(*TRAIN, "-z", "3", "-q").stdout == "outputs/few-z3/check1.safetensors\n"


def test_train_guards_a_run_and_resumes_it(run_copy: Path, invoke: Invoke) -> None:
    result = invoke(*TRAIN, "-o", run_copy)
    assert result.exit_code == 1
    assert "--resume" in assert_one_line(result.stderr)
    result = invoke("train", "--resume", "-o", run_copy, "--epochs", "3", "-q")
    assert result.stdout == f"{run_copy}/check3.safetensors\n"
    assert invoke("train", "--resume", "-o", run_copy, "-q").stdout == result.stdout  # finished
    result = invoke("train", "--resume", "-o", run_copy, "--lr", "0.1")
    assert result.exit_code == 2
    assert "--lr" in assert_one_line(result.stderr)
    assert invoke("train", "--resume", "-o", run_copy, "--lr", "0.001", "-q").exit_code == 0  # typed, and the same


def test_train_diverged_is_exit_3(invoke: Invoke) -> None:
    result = invoke(*TRAIN, "-o", "run", "--lr", "1e30", "-q")
    assert result.exit_code == 3
    assert "epoch 1, step 2" in assert_one_line(result.stderr)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-d", "no-such-set"], "No data set"),
        (["-d", "/dev/null"], "neither a folder nor a regular file"),
        (["--device", "cuda:99"], "No CUDA device"),
        (["-o", "/dev/null"], "Cannot use /dev/null: "),
        (["-o", "/dev/null/run"], "Cannot"),
    ],
)
def test_train_expected_failures(invoke: Invoke, args: list[str], words: str) -> None:
    result = invoke(*TRAIN, *args, "-q")
    assert result.exit_code == 1
    assert words in assert_one_line(result.stderr)


# test


def test_test_prints_the_same_as_lines_and_json(ckpt: str, invoke: Invoke) -> None:
    lines = dict(line.split("\t") for line in invoke("test", ckpt).stdout.splitlines())
    answer = json.loads(invoke("test", ckpt, "--json").stdout)
    assert list(lines) == list(answer)
    assert list(answer) == [
        "loss", "reconstruction", "kl", "loss_se", "reconstruction_se", "kl_se", "bits_per_dim",
        "kl_per_dim", "active_units", "samples", "images", "split", "dataset", "checkpoint", "seed",
    ]  # fmt: skip
    for key, value in answer.items():
        values = value if isinstance(value, list) else [value]
        assert lines[key] == " ".join(f"{each:.6f}" if isinstance(each, float) else str(each) for each in values)
    assert (answer["images"], answer["split"], answer["checkpoint"]) == (150, "test", ckpt)


def test_test_takes_a_split_a_seed_and_other_data(ckpt: str, invoke: Invoke, tmp_path: Path) -> None:
    base = json.loads(invoke("test", ckpt, "--json").stdout)
    train_split = json.loads(invoke("test", ckpt, "--json", "--split", "train").stdout)
    seeded = json.loads(invoke("test", ckpt, "--json", "--seed", "7").stdout)
    assert train_split["images"] == 500
    assert seeded["seed"] == 7
    assert seeded["kl"] == base["kl"]  # in closed form, so no noise in it
    assert 0 < abs(seeded["loss"] - base["loss"]) < 5
    digits = shutil.copytree(DIGITS, tmp_path / "digits")
    assert json.loads(invoke("test", ckpt, "--json", "-d", digits).stdout)["loss"] == base["loss"]


def test_changed_data_is_said(run_copy: Path, tmp_path: Path, invoke: Invoke) -> None:
    digits = shutil.copytree(DIGITS, tmp_path / "digits")
    invoke(*TRAIN[:1], "-d", digits, *TRAIN[3:], "-o", "mine", "-q")
    assert "has changed" not in invoke("test", "mine").stderr
    shutil.copy(digits / "train-labels-idx1-ubyte.gz", digits / "x")
    labels = bytearray(gzip.decompress((digits / "t10k-labels-idx1-ubyte.gz").read_bytes()))
    labels[8] = 3
    (digits / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    assert "The test split" in invoke("test", "mine").stderr
    assert invoke("test", "mine", "-q").stderr == ""


def test_every_option_of_train_is_a_setting_of_the_run(invoke: Invoke) -> None:
    typed = {
        "z_dim": 3,
        "epochs": 2,
        "batch_size": 50,
        "lr": 0.002,
        "lr_schedule": "cosine",
        "beta": 2.0,
        "kl_warmup": 1,
        "seed": 5,
        "dataset": str(FEW),
        "data_dir": "data",
        "precision": "bf16",
        "device": "cpu",
        "checkpoint_every": 1,
        "log_interval": 3,
    }
    options = [word for name, value in typed.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert invoke("train", *options, "-o", "run", "-q").stdout == "run/check2.safetensors\n"
    assert json.loads(Path("run/config.json").read_text()) == typed | {"format": 1}
    assert all(value != getattr(Settings(), name) for name, value in typed.items())


def test_every_command_takes_a_data_folder(ckpt: str, invoke: Invoke) -> None:
    own = invoke("encode", ckpt).stdout
    place = ["-d", "fashion-mnist", "--data-dir", DIGITS]
    assert invoke("encode", ckpt, *place).stdout == own
    assert json.loads(invoke("test", ckpt, *place, "--json").stdout)["images"] == 150
    for source in (["--from", "test"], ["--from", "interpolate", "--indices", "0,149"]):
        assert invoke("sample", ckpt, *source, *place, "-o", "a.png").exit_code == 0
    assert invoke("scatter", ckpt, *place, "-o", "s.svg").exit_code == 0
    assert b"fashion-mnist, 150 test images" in Path("s.svg").read_bytes()


def test_blocks_of_images_go_on_where_the_last_one_ended(ckpt: str, invoke: Invoke, many: data.Split) -> None:
    """Rows, labels and noise of more images than one block holds."""
    table = rows(invoke("encode", ckpt, "-d", "many.npz", "--sample").stdout)[1:]
    assert [int(row[0]) for row in table] == list(range(1100))
    assert [int(row[1]) for row in table] == many.labels.tolist()  # type: ignore[union-attr]
    numbers = torch.tensor([[float(value) for value in row[2:]] for row in table])
    mean, logvar, z = numbers[:, :2], numbers[:, 2:4], numbers[:, 4:]
    eps = torch.cat([noise(0, "posterior", block, 2) for block in (0, 1)])[:1100]
    torch.testing.assert_close(z, mean + (logvar / 2).exp() * eps)


# encode


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_encode_a_split(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    table = rows(invoke("encode", ckpt).stdout)
    assert table[0] == ["index", "label", "mean_0", "mean_1", "logvar_0", "logvar_1"]
    assert [row[0] for row in table[1:]] == [str(index) for index in range(150)]
    assert [int(row[1]) for row in table[1:]] == digits.labels.tolist()  # type: ignore[union-attr]
    model = engine.prepare(vaecli.load_model(ckpt), torch.device("cpu"))
    posterior = engine.encode(model, digits.images, torch.device("cpu"))
    expected = torch.cat(posterior, dim=1).numpy()
    np.testing.assert_array_equal(np.array([row[2:] for row in table[1:]], np.float32), expected)


def test_encode_is_the_mean_and_sample_is_a_seeded_draw(ckpt: str, invoke: Invoke) -> None:
    assert invoke("encode", ckpt).stdout_bytes == invoke("encode", ckpt).stdout_bytes
    table = rows(invoke("encode", ckpt, "--sample").stdout)
    assert table[0][-2:] == ["z_0", "z_1"]
    values = np.array([row[2:] for row in table[1:]], np.float32)
    mean, logvar, z = values[:, :2], values[:, 2:4], values[:, 4:]
    eps = noise(0, "posterior", 0, 2)[:150].numpy()
    np.testing.assert_allclose(z, mean + np.exp(logvar / 2) * eps, rtol=1e-5, atol=1e-6)
    assert invoke("encode", ckpt, "--sample", "--seed", "1").stdout != invoke("encode", ckpt, "--sample").stdout


def test_encode_formats_by_suffix_or_option(ckpt: str, invoke: Invoke) -> None:
    csv_numbers = np.array([row[2:4] for row in rows(invoke("encode", ckpt).stdout)[1:]], np.float32)
    for name in ("codes.npz", "codes.safetensors", "codes.jsonl", "deep/codes.csv"):
        assert invoke("encode", ckpt, "-o", name, "-q").stdout == f"{name}\n"
    with np.load("codes.npz") as archive:
        np.testing.assert_array_equal(archive["mean"], csv_numbers)
        assert archive["class_names"].tolist() == list("0123456789")
    assert Path("deep/codes.csv").read_text() == invoke("encode", ckpt).stdout
    assert invoke("encode", ckpt, "-o", "codes", "--format", "jsonl").exit_code == 0
    assert Path("codes").read_text() == Path("codes.jsonl").read_text()
    assert json.loads(invoke("encode", ckpt, "-o", "codes.csv", "--json").stdout) == {"output": "codes.csv"}
    assert invoke("encode", ckpt, "--format", "npz").stdout_bytes == Path("codes.npz").read_bytes()


def test_encode_image_files_and_folders(ckpt: str, invoke: Invoke, digits: data.Split, tmp_path: Path) -> None:
    for name, index in (("in/7/b.png", 0), ("in/other/a.png", 1), ("in/c.png", 2), ("alone.png", 3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[index].numpy()).save(tmp_path / name)
    result = invoke("encode", ckpt, "alone.png", "in")
    table = rows(result.stdout)
    assert result.stderr == ""
    assert table[0][:3] == ["path", "label", "mean_0"]
    assert [row[:2] for row in table[1:]] == [
        ["alone.png", ""],
        ["in/7/b.png", "7"],
        ["in/c.png", ""],
        ["in/other/a.png", ""],
    ]
    by_index = rows(invoke("encode", ckpt).stdout)
    for row, index in zip(table[1:], (3, 0, 2, 1), strict=True):
        np.testing.assert_allclose(np.array(row[2:], float), np.array(by_index[1 + index][2:], float), atol=1e-5)


@pytest.mark.parametrize("folder", ["in", "mnist"])  # also one that is called as a named set
def test_encode_a_folder_with_splits_has_the_labels_of_its_classes(
    ckpt: str, invoke: Invoke, digits: data.Split, folder: str
) -> None:
    names = [f"{folder}/test/3/b.png", f"{folder}/train/7/a.png"]
    for name in names:
        Path(name).parent.mkdir(parents=True)
        Image.fromarray(digits.images[0].numpy()).save(name)
    table = rows(invoke("encode", ckpt, folder).stdout)
    assert [row[:2] for row in table[1:]] == [[names[0], "3"], [names[1], "7"]]


def test_classes_of_a_folder_have_the_models_numbers_in_a_data_set_too(
    ckpt: str, invoke: Invoke, digits: data.Split
) -> None:
    """With fewer classes than the model knows, of which each keeps its colour, too."""
    for index in range(20):
        path = Path(f"set/{'37'[index % 2]}/{index:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[index].numpy()).save(path)
    for images in (["-d", "set", "--split", "test"], ["-d", "set", "--split", "train"], ["set"]):
        labels = [row[1] for row in rows(invoke("encode", ckpt, *images).stdout)[1:]]
        assert set(labels) == {"3", "7"}, images
    Path("set/3").rename("set/three")  # a class of another model
    labels = [row[1] for row in rows(invoke("encode", ckpt, "-d", "set", "--split", "train").stdout)[1:]]
    assert set(labels) == {"0", "1"}


def test_arrays_of_greys_to_1_or_on_white_are_noted(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    images = digits.images[:20].numpy()
    np.savez("ones.npz", images=(images > 127).astype(np.uint8))
    np.savez("paper.npz", images=255 - images)
    np.savez("fine.npz", images=images)
    for command in (["encode", ckpt], ["test", ckpt], ["train", "--dry-run"]):
        assert "have greys of 0 to 1, not 255." in invoke(*command, "-d", "ones.npz").stderr
        assert "Images with a bright background" in invoke(*command, "-d", "paper.npz").stderr
        assert "Images" not in invoke(*command, "-d", "fine.npz").stderr
    assert "(255 - images)" in invoke("test", ckpt, "-d", "paper.npz").stderr


def test_files_that_are_no_images_are_passed_over_aloud(
    ckpt: str, invoke: Invoke, digits: data.Split, tmp_path: Path
) -> None:
    for index, image in enumerate(digits.images[:12]):
        (tmp_path / f"set/7/{index:02}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(tmp_path / f"set/7/{index:02}.png")
    Path("set/b.heic").touch()
    Path("set/a.jp2").touch()
    encoded = invoke("encode", ckpt, "set")
    assert len(rows(encoded.stdout)) == 13
    trained = invoke("train", "-d", "set", "--dry-run")
    measured = invoke("test", ckpt, "-d", "set", "--knn", "1")
    for result in (encoded, trained, measured):
        assert result.exit_code == 0
        assert result.stderr.count("Passed over 2 of 14 files in set, such as set/a.jp2: ") == 1  # not once a split
    assert "Passed over" not in invoke("encode", ckpt, "set/7/00.png").stderr


def test_encode_converts_pictures_and_says_so(ckpt: str, invoke: Invoke) -> None:
    Image.new("RGB", (300, 200), "navy").save("big.jpg")
    result = invoke("encode", ckpt, "big.jpg")
    assert len(rows(result.stdout)) == 2
    assert "Converted 1 of 1 images" in result.stderr
    many = np.zeros((1500, 32, 32), np.uint8)
    Path("large.idx").write_bytes(idx_bytes(many))
    result = invoke("encode", ckpt, "large.idx", "-o", "codes.npz")
    assert [line for line in result.stderr.splitlines() if "1,500 of 1,500" in line] == result.stderr.splitlines()


def test_encode_of_an_idx_file_without_images(ckpt: str, invoke: Invoke) -> None:
    Path("none.idx").write_bytes(b"\0\0\x08\x03" + bytes(4) + b"\0\0\0\x1c" * 2)
    result = invoke("encode", ckpt, "none.idx", "-o", "codes.npz")
    assert result.exit_code == 1
    assert "no images to encode" in assert_one_line(result.stderr)


def test_codes_that_are_not_finite_are_an_error(run_copy: Path, invoke: Invoke) -> None:
    weights, metadata = checkpoint.load(str(run_copy / "check2.safetensors"), torch.device("cpu"))
    with torch.no_grad():
        weights.linear1logvar.bias.fill_(300)
    checkpoint.save("wild.safetensors", dict(weights.named_parameters()), metadata)
    assert invoke("encode", "wild.safetensors", "-q").exit_code == 0
    for command in (["encode", "--sample"], ["test"]):
        result = invoke(command[0], "wild.safetensors", *command[1:], "-q")
        assert result.exit_code == 1
        assert "not finite" in assert_one_line(result.stderr)


def test_encode_idx_files_counts_on(ckpt: str, invoke: Invoke) -> None:
    paths = [DIGITS / f"{part}-images-idx3-ubyte.gz" for part in ("t10k", "train")]
    table = rows(invoke("encode", ckpt, *paths).stdout)
    assert [row[:2] for row in table[1:]] == [[str(index), ""] for index in range(650)]
    split = rows(invoke("encode", ckpt).stdout)
    assert [row[2:] for row in table[1:151]] == [row[2:] for row in split[1:]]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["missing.png"], "missing.png does not exist"),
        (["mnist"], "give a data set with --dataset"),
        (["empty.png"], "empty.png is no image"),
        (["folder"], "folder holds no image files"),
        ([DIGITS / "t10k-labels-idx1-ubyte.gz"], "holds no images"),
        ([DIGITS / "t10k-images-idx3-ubyte.gz", "empty.png"], "separately"),
    ],
)
def test_encode_names_what_it_cannot_read(ckpt: str, invoke: Invoke, inputs: list[object], words: str) -> None:
    Path("empty.png").touch()
    Path("folder").mkdir()
    result = invoke("encode", ckpt, *inputs, "-o", "codes.csv")
    assert result.exit_code == 1
    assert words in assert_one_line(result.stderr)
    assert not Path("codes.csv").exists()


# sample


def test_sample_prior_is_seeded_and_reads_back_as_data(ckpt: str, invoke: Invoke) -> None:
    assert invoke("sample", ckpt, "-n", "1030", "-o", "a.npz", "-q").stdout == "a.npz\n"
    invoke("sample", ckpt, "-n", "1030", "-o", "b.npz")
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    invoke("sample", ckpt, "-n", "1030", "-o", "c.npz", "--seed", "1")
    assert Path("c.npz").read_bytes() != Path("a.npz").read_bytes()
    with np.load("a.npz") as archive:
        assert archive.files == ["images"]
        images = archive["images"]
    assert (images.shape, images.dtype) == ((1030, 28, 28), np.uint8)
    split = data.load("a.npz", "test", None, print)
    np.testing.assert_array_equal(split.images.numpy(), images[9::10])
    model = engine.prepare(vaecli.load_model(ckpt), torch.device("cpu"))
    z = torch.cat([noise(0, "prior", block, 2) for block in (0, 1)])[:1030]
    with torch.inference_mode():
        probabilities = model.decode(z).sigmoid().squeeze(1).numpy()
    assert np.abs(images - 255 * probabilities).max() <= 0.5 + 1e-3  # rounded, not truncated


def test_sample_from_a_split_shows_its_images(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    invoke("sample", ckpt, "--from", "test", "--pairs", "-n", "150", "-o", "pairs.npz")
    with np.load("pairs.npz") as archive:
        originals, images = archive["originals"], archive["images"]
    assert sorted(map(bytes, originals)) == sorted(map(bytes, digits.images.numpy()))
    assert not np.array_equal(originals, digits.images.numpy())  # picked at random
    model = engine.prepare(vaecli.load_model(ckpt), torch.device("cpu"))
    posterior = engine.encode(model, torch.from_numpy(originals), torch.device("cpu"))
    expected = engine.decode(model, engine.sample_posterior(posterior, 0, 0))
    np.testing.assert_array_equal(images, expected.numpy())  # each beside its own original, from a sampled z


def test_sample_writes_a_grid_beside_the_checkpoint(run_copy: Path, invoke: Invoke) -> None:
    assert invoke("sample", run_copy, "-q").stdout == f"{run_copy}/samples.png\n"
    with Image.open(run_copy / "samples.png") as image:
        assert image.mode == "L"
        assert image.width == image.height > 10 * 28
    single = invoke("sample", run_copy, "-n", "6", "--from", "train", "-o", "-").stdout_bytes
    pairs = invoke("sample", run_copy, "-n", "6", "--from", "train", "--pairs", "-o", "-").stdout_bytes
    assert single.startswith(b"\x89PNG")
    assert Image.open(io.BytesIO(pairs)).width > 28 * 4


def test_sample_takes_what_a_small_split_has(ckpt: str, invoke: Invoke, digits: data.Split) -> None:
    np.savez("small.npz", images=digits.images[:40].numpy())
    assert invoke("sample", ckpt, "--from", "test", "-d", "small.npz", "-o", "s.npz").exit_code == 0
    assert len(np.load("s.npz")["images"]) == 4
    invoke("sample", ckpt, "-o", "s.npz")
    assert len(np.load("s.npz")["images"]) == 100


def test_sample_cannot_take_more_than_the_split_has(ckpt: str, invoke: Invoke) -> None:
    result = invoke("sample", ckpt, "--from", "test", "-n", "151", "-o", "a.png")
    assert result.exit_code == 1
    assert "-n 151 is more than there are images in the test split (150)." in assert_one_line(result.stderr)


# scatter and curves


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("command", ["scatter", "curves"])
def test_figures_are_of_their_format_and_the_same_bytes_each_time(
    ckpt: str, invoke: Invoke, command: str, suffix: str
) -> None:
    drawn = []
    for name in (f"a.{suffix}", f"b.{suffix}"):
        assert invoke(command, ckpt, "-q", "-o", name).stdout == f"{name}\n"
        drawn.append(Path(name).read_bytes())
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])


def test_scatter_dims_and_limit(run_copy: Path, invoke: Invoke) -> None:
    outputs = []
    for options in ([], ["--dims", "1,0"], ["--limit", "20"], ["--limit", "20", "--seed", "1"], ["--limit", "150"]):
        assert invoke("scatter", run_copy, "-o", "s.svg", *options).exit_code == 0
        outputs.append(Path("s.svg").read_bytes())
    assert outputs[4] == outputs[0]
    assert len(set(outputs)) == 4
    assert b"20 test images" in outputs[2]
    for dims, code, words in (("0,9", 1, "no dimension 9. Choose --dims from 0 to 1."), ("1,1", 2, "--dims 1,1")):
        result = invoke("scatter", run_copy, "--dims", dims)
        assert result.exit_code == code
        assert words in assert_one_line(result.stderr)


def test_scatter_shows_the_split_and_its_classes(run_copy: Path, invoke: Invoke) -> None:
    assert invoke("scatter", run_copy, "-o", "s.svg", "--split", "train").exit_code == 0
    drawn = re.findall(r"<!-- (.*?) -->", Path("s.svg").read_text())
    assert any("500 training images" in text for text in drawn)
    assert set("0123456789") <= set(drawn)


def test_scatter_pca_of_more_than_two_dimensions(invoke: Invoke, tmp_path: Path) -> None:
    ckpt = invoke(*TRAIN, "-z", "3", "-o", tmp_path / "z3", "-q").stdout.strip()
    for dims in ("0,9", "3,0"):
        line = assert_one_line(invoke("scatter", ckpt, "--dims", dims).stderr)
        assert "Choose --dims from 0 to 2." in line
    result = invoke("scatter", ckpt, "--manifold")
    assert result.exit_code == 1
    assert "--manifold needs a model of 2 dimensions, and this one has 3" in assert_one_line(result.stderr)
    assert invoke("scatter", ckpt, "--pca", "-o", "pca.svg").exit_code == 0
    shares = re.findall(r"<!-- principal component \d \((\d+)% of the variance\) -->", Path("pca.svg").read_text())
    assert 100 >= int(shares[0]) >= int(shares[1]) > 0


def test_scatter_pca_of_two_dimensions_leaves_them_as_they_are(run_copy: Path, invoke: Invoke) -> None:
    result = invoke("scatter", run_copy, "--pca", "-o", "pca.svg")
    assert (result.exit_code, "nothing for --pca to reduce" in result.stderr) == (0, True)
    invoke("scatter", run_copy, "-o", "plain.svg")
    assert Path("pca.svg").read_bytes() == Path("plain.svg").read_bytes()


def test_scatter_manifold(run_copy: Path, invoke: Invoke) -> None:
    drawn = []
    for options in ([], ["--manifold"], ["--manifold"], ["--manifold", "--dims", "1,0"]):
        assert invoke("scatter", run_copy, "-o", "m.svg", "--limit", "50", *options).exit_code == 0
        drawn.append(Path("m.svg").read_bytes())
    assert drawn[1] == drawn[2]
    assert len(set(drawn)) == 3
    assert [text.count(b"<image") for text in drawn] == [1, 2, 2, 2]


def test_figures_lie_beside_the_checkpoint(run_copy: Path, invoke: Invoke) -> None:
    file = run_copy / "check1.safetensors"
    assert invoke("scatter", file, "-q").stdout == f"{run_copy}/scatter.png\n"
    assert invoke("curves", run_copy, "-q").stdout == f"{run_copy}/curves.png\n"
    assert invoke("curves", run_copy, file, "-q").stdout == "curves.png\n"
    assert invoke("curves", file, "--json").stdout == f'{{"output": "{run_copy}/curves.png"}}\n'


def test_curves_leave_out_what_is_no_run(run_copy: Path, invoke: Invoke) -> None:
    Path("gallery").mkdir()
    Path("table.md").write_text("| loss |")
    Path("damaged.safetensors").touch()
    Path("lost").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    strange = ["gallery", "table.md", "lost", "loop", "pipe"]
    result = invoke("curves", run_copy, *strange, "-o", "runs.csv")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [f"Left out {path}: it is no run." for path in strange]
    assert {line.split(",")[0] for line in Path("runs.csv").read_text().splitlines()[1:]} == {run_copy.name}
    for others, words in (
        (["gallery"], "gallery holds no check<N>.safetensors"),
        (["table.md", "gallery"], "table.md is not a safetensors file"),
        ([run_copy, "nowhere"], "nowhere does not exist"),
        ([run_copy, "damaged.safetensors"], "damaged.safetensors is empty"),
    ):
        assert words in assert_one_line(invoke("curves", *others, "-o", "others.csv").stderr)
    assert not Path("others.csv").exists()


def test_curves_of_a_sweep_that_has_just_begun(run_copy: Path, invoke: Invoke) -> None:
    """Runs without an epoch are left out, and the names of the others stay the same when they have one."""
    for name in ("a/run", "b/run"):
        Path(name).parent.mkdir()
        shutil.copytree(run_copy, name)
    Path("c/run").mkdir(parents=True)
    Path("c/run/.lock").touch()  # it is reading its data
    for _ in range(2):
        result = invoke("curves", "a/run", "c/run", "-o", "runs.csv")
        assert result.exit_code == 0
        assert result.stderr == "Left out c/run: it has no finished epoch yet.\n"
        assert {line.split(",")[0] for line in Path("runs.csv").read_text().splitlines()[1:]} == {"a/run"}
        shutil.copy(run_copy / "config.json", "c/run")
    assert "c/run has no finished epoch yet." in assert_one_line(invoke("curves", "c/run", "-o", "c.csv").stderr)
    Path("c/run/config.json").write_text('{"name": "app"}')  # another program's
    assert "c/run/config.json is damaged" in assert_one_line(invoke("curves", "a/run", "c/run", "-o", "c.csv").stderr)
    assert not Path("c.csv").exists()


def test_curves_say_where_a_log_scale_helps(run_copy: Path, invoke: Invoke) -> None:
    lines = (run_copy / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"train_loss": 1e6}
    (run_copy / "metrics.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]))
    assert "--log-scale keeps both apart" in invoke("curves", run_copy, "-o", "a.svg").stderr
    for options in (["--log-scale"], ["--metric", "kl"]):
        assert invoke("curves", run_copy, "-o", "a.svg", *options).stderr == ""
    assert invoke("curves", run_copy, "-o", "a.csv").stderr == ""


def test_curves_of_unfinished_and_resumed_runs_and_of_histories(run_copy: Path, invoke: Invoke) -> None:
    (run_copy / "check2.safetensors").unlink()
    assert invoke("curves", run_copy, "-o", "a.svg").exit_code == 0
    metrics = (run_copy / "metrics.jsonl").read_bytes()
    (run_copy / "metrics.jsonl").write_bytes(b"")  # as on a disk that was full
    assert invoke("curves", run_copy, "-o", "state.svg").exit_code == 0
    assert Path("a.svg").read_bytes() == Path("state.svg").read_bytes()
    (run_copy / "metrics.jsonl").write_bytes(metrics)
    (run_copy / "state.safetensors").unlink()
    (run_copy / "metrics.jsonl").unlink()  # what is left is the history in check1
    assert invoke("curves", run_copy, "-o", "b.svg").exit_code == 0
    assert Path("a.svg").read_bytes() != Path("b.svg").read_bytes()
    (run_copy / "check1.safetensors").unlink()
    for _ in range(2):  # first with no metrics at all
        result = invoke("curves", run_copy, "-o", "c.svg")
        assert result.exit_code == 1
        assert "no finished epoch yet" in assert_one_line(result.stderr)
        (run_copy / "metrics.jsonl").touch()
    (run_copy / "metrics.jsonl").unlink()
    (run_copy / "config.json").unlink()
    assert "holds no check<N>.safetensors" in assert_one_line(invoke("curves", run_copy, "-o", "c.svg").stderr)


@pytest.mark.parametrize(
    "name", ["ru$a_$", r"$\frac$", pytest.param("r\udcff", marks=linux), "数字", "a" * 200, "tab\tand\x1b[31m"]
)
def test_runs_of_any_name_are_drawn(run_copy: Path, invoke: Invoke, name: str) -> None:
    shutil.copytree(run_copy, name)
    result = invoke("curves", name, run_copy, "-o", "c.svg")
    assert (result.exit_code, result.stderr) == (0, "")
    assert invoke("scatter", name, "-o", "s.svg", "-q").exit_code == 0


def test_runs_of_the_same_name_are_told_apart(run_copy: Path, invoke: Invoke) -> None:
    shutil.copytree(run_copy, "b/run")
    shutil.copytree(run_copy, "a/run")
    invoke("curves", "a/run", "b/run", "a/run", "./a/run/", "-o", "both.svg")
    assert Path("both.svg").read_text().count("<!-- a/run: ") == 1
    assert Path("both.svg").read_text().count("<!-- b/run: ") == 1


def test_runs_that_differ_in_a_folder_are_told_apart(run_copy: Path, invoke: Invoke) -> None:
    for name in ("sweep/a/run/last", "sweep/b/run/last"):
        shutil.copytree(run_copy, name)
    invoke("curves", "sweep/a/run/last", "sweep/b/run/last", "-o", "runs.csv")
    assert {row["run"] for row in csv.DictReader(Path("runs.csv").read_text().splitlines())} == {
        "a/run/last",
        "b/run/last",
    }


def test_curves_as_csv_are_the_metrics(run_copy: Path, invoke: Invoke) -> None:
    check = run_copy / "check1.safetensors"
    invoke("curves", run_copy, check, "-o", "runs.csv")
    assert Path("runs.csv").read_bytes().startswith(b"run,epoch,train_loss,")
    rows = list(csv.DictReader(Path("runs.csv").read_text().splitlines()))
    lines = (run_copy / "metrics.jsonl").read_text().splitlines()
    assert [row["run"] for row in rows] == ["run", "run", "run/check1"]
    speeds = {"seconds", "images_per_second"}
    for row, line in zip(rows, [*lines, lines[0]], strict=True):
        metrics = json.loads(line)
        measured = {name for name in metrics if row[name]}
        assert measured == (metrics.keys() - speeds if row["run"] == "run/check1" else metrics.keys())
        assert {name: float(row[name]) for name in measured} == {name: metrics[name] for name in measured}


def test_curves_on_a_log_scale(run_copy: Path, invoke: Invoke) -> None:
    for options in ([], ["--log-scale"]):
        assert invoke("curves", run_copy, "-o", f"{len(options)}.svg", *options).exit_code == 0
    assert Path("0.svg").read_bytes() != Path("1.svg").read_bytes()
    metrics = run_copy / "metrics.jsonl"
    dead = [json.loads(line) | {"train_kl": 0.0, "test_kl": 0.0} for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in dead))
    assert invoke("curves", run_copy, "--metric", "kl", "-o", "kl.svg").exit_code == 0
    result = invoke("curves", run_copy, "--metric", "kl", "--log-scale", "-o", "kl.svg")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Leave out --log-scale" in assert_one_line(result.stderr)


# Outputs


@pytest.mark.parametrize("command", ["encode", "sample", "scatter", "curves"])
def test_outputs_that_cannot_be_written(run_copy: Path, invoke: Invoke, command: str) -> None:
    suffix = "csv" if command == "encode" else "png"
    Path(f"folder.{suffix}").mkdir()
    Path("link.png").symlink_to(run_copy / "check2.safetensors")
    before = (run_copy / "check2.safetensors").read_bytes()
    Path(f"file.{suffix}").touch()
    places = (f"folder.{suffix}", f"file.{suffix}/x.{suffix}", f"/proc/none/x.{suffix}", f"{'x' * 300}.{suffix}")
    for output in places:
        result = invoke(command, run_copy, "-o", output)
        assert result.exit_code == 1
        assert output in assert_one_line(result.stderr)
    if command != "encode":
        result = invoke(command, run_copy / "check2.safetensors", "-o", "link.png")
        assert "link.png is a file of a training run" in assert_one_line(result.stderr)
    assert (run_copy / "check2.safetensors").read_bytes() == before


def test_outputs_may_be_devices(ckpt: str, invoke: Invoke) -> None:
    for command in ("encode", "sample", "scatter", "curves"):
        assert invoke(command, ckpt, "-o", "/dev/null", "-q").stdout == "/dev/null\n"


@linux
@pytest.mark.parametrize("args", ["--help", "--version", "train --help", ""])
def test_help_to_a_full_device_is_one_line(args: str) -> None:
    done = shell(f"vae {args} >/dev/full")
    assert done.returncode == 1
    assert "Cannot write to standard output" in assert_one_line(done.stderr)


def test_a_folder_called_as_stdout_is_not_meant(ckpt: str, invoke: Invoke) -> None:
    Path("-").mkdir()
    for command in ("encode", "sample", "scatter", "curves"):
        result = invoke(command, ckpt, "-o", "-", "-q")
        assert result.exit_code == 0
        assert result.stdout_bytes
    assert not os.listdir("-")


def test_outputs_may_be_pipes_of_the_shell(ckpt: str, invoke: Invoke) -> None:
    done = shell('vae curves "$1" -o >(head -c 4 >&2); wait $!', ckpt)
    assert done.returncode == 0
    assert done.stderr == b"\x89PNG"
    expected = invoke("curves", ckpt, "-o", "-").stdout_bytes
    assert expected.startswith(b"\x89PNG")
    for place in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):  # no path follows the figure there
        assert shell(f'vae curves "$1" -q -o {place} | cat', ckpt).stdout == expected


# As processes


def test_a_reader_that_leaves_early_is_no_failure(ckpt: str) -> None:
    # More than the 64 KiB that a pipe holds, so some of it is written when head has gone.
    train = DIGITS / "train-images-idx3-ubyte.gz"
    done = shell('set -euo pipefail; vae encode "$1" "$2" "$2" "$2" --format jsonl | head -3', ckpt, train)
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 3
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("redirect", "code", "words"),
    [
        pytest.param(">/dev/full", 1, b"Cannot write to standard output: No space left", marks=linux),
        (">&-", 0, b""),
    ],
)
def test_a_stdout_that_is_full_or_closed(ckpt: str, redirect: str, code: int, words: bytes) -> None:
    done = shell(f'vae curves "$1" -o /dev/null {redirect}', ckpt)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count(b"\n") == (1 if words else 0)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stdout_that_fills_up(ckpt: str, unbuffered: str) -> None:
    """Unbuffered, a write that is cut short raises nothing."""
    done = shell('ulimit -f 1; vae encode "$1" --format npz -q > codes.npz', ckpt, PYTHONUNBUFFERED=unbuffered)
    assert Path("codes.npz").stat().st_size <= 1024
    assert "Cannot write to standard output: File too large" in assert_one_line(done.stderr)
    assert done.returncode == 1


def test_help_beyond_a_limit_on_file_sizes_is_one_line() -> None:
    done = shell("ulimit -f 0; vae --help > help.txt")
    assert "File too large" in assert_one_line(done.stderr)
    assert done.returncode == 1


def test_the_version_for_nobody() -> None:
    done = shell("vae --version >&-")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_stderr_stops_nothing(ckpt: str) -> None:
    done = shell('vae curves "$1" -o /dev/null 2>&-', ckpt)
    assert (done.returncode, done.stdout) == (0, b"/dev/null\n")


def test_a_closed_stderr_is_no_other_file(ckpt: str) -> None:
    """Else the picture is file 2, and to silence libtiff, which prints there, would close it."""
    Image.new("L", (28, 28)).save("a.tif", compression="tiff_lzw")
    done = shell('vae encode "$1" a.tif 2>&-', ckpt)
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 2)


def test_figures_without_a_folder_to_write_are_one_line(ckpt: str) -> None:
    """A container of which all is read-only: matplotlib wants a folder for its font list."""
    code = (
        "import sys, tempfile, vaecli.cli\n"
        "def mkdtemp(**options): raise FileNotFoundError(2, 'No usable temporary directory')\n"
        "tempfile.mkdtemp = mkdtemp\n"
        "sys.exit(vaecli.cli.main(['curves', sys.argv[1], '-o', '-']))"
    )
    env = os.environ | {"MPLCONFIGDIR": "/dev/null/none"}
    done = subprocess.run([sys.executable, "-c", code, ckpt], env=env, capture_output=True, timeout=60, check=False)
    assert "Set MPLCONFIGDIR or TMPDIR to one." in assert_one_line(done.stderr)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("command", ["test", "encode", "sample", "scatter"])
def test_a_device_without_room_for_the_model_is_one_line(
    ckpt: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    result = invoke(command, ckpt)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Out of memory on cpu." in assert_one_line(result.stderr)


def test_a_matplotlibrc_in_another_encoding_is_one_line(ckpt: str, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes("font.family: Größe".encode("latin-1"))
    done = process("curves", ckpt, "-o", "-")
    assert "a matplotlibrc that is no text in UTF-8" in assert_one_line(done.stderr)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup, when the terminal closes."""
    script = f"trap '' HUP; exec {shlex.join([sys.executable, '-m', 'vaecli', *TRAIN])} -e 3 -o run -q"
    child = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGHUP)
    assert child.communicate(timeout=60) == (b"run/check3.safetensors\n", b"")
    assert child.returncode == 0


def test_a_signal_while_torch_is_imported_just_ends_it(tmp_path: Path) -> None:
    """Caught inside numpy's own import, an exception would be lost or garbled."""
    for delay in (0.35, 0.6, 0.85):
        command = [sys.executable, "-m", "vaecli", *TRAIN, "-e", "1000", "-o", str(tmp_path / f"run{delay}"), "-q"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        time.sleep(delay)
        child.send_signal(signal.SIGTERM)
        try:
            _, err = child.communicate(timeout=60)
        finally:
            child.kill()
        assert (child.returncode, err) == (-signal.SIGTERM, b"")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise ImportError('libtorch.so:\\n failed to map segment.')",
            "libtorch.so: failed to map segment. Free memory,",
        ),
        ("raise ImportError('no such symbol')", "no such symbol. Install"),
        ("import ctypes; ctypes.CDLL('./libcudart.so')", "No such file or directory. Install"),
        ("raise ImportError('a page of advice') from ImportError('no such symbol')", "load: no such symbol. Install"),
        ("raise MemoryError", "Out of memory. Free some."),
        ("raise RuntimeError('std::bad_alloc')", "Out of memory. Free some."),
    ],
)
def test_a_library_that_does_not_load_is_one_line(ckpt: str, tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "torch.py").write_text(code)
    done = process("test", ckpt, env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (1, b"")
    assert words in assert_one_line(done.stderr)


def test_what_has_no_number_later_is_no_library(monkeypatch: pytest.MonkeyPatch, ckpt: str) -> None:
    def fail(*args: object, **options: object) -> None:
        raise io.UnsupportedOperation("a bug")

    monkeypatch.setattr(engine, "evaluate", fail)
    with pytest.raises(io.UnsupportedOperation, match="a bug"):
        main(["test", ckpt])


def test_a_folder_that_is_gone_is_one_line(ckpt: str, invoke: Invoke) -> None:
    gone = Path("gone").absolute()
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    result = invoke("curves", ckpt, "-o", gone.with_name("a.png"))
    os.chdir(gone.parent)
    assert (result.exit_code, os.listdir()) == (1, [])
    assert assert_one_line(result.stderr) == "Error: The current folder has been removed. Change to another one (cd).\n"


def test_what_train_advises_names_the_data_folder(invoke: Invoke) -> None:
    shutil.copytree(DIGITS, "my files")
    first = invoke(*TRAIN, "-d", "fashion-mnist", "--data-dir", "my files", "-o", "run")
    resumed = invoke("train", "--resume", "-e", "1", "-o", "run")
    for result in (first, resumed):
        advice = result.stderr[result.stderr.index("Next:\n") :].splitlines()[1:]
        assert [shlex.split(line)[3:] for line in advice] == [["--data-dir", "my files"]] * 3 + [[]]
        assert invoke(*shlex.split(advice[0])[1:]).exit_code == 0


def test_an_answer_needs_no_config(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be lost, or half written, when the training ends."""
    train = Run.train

    def losing(run: Run) -> Trained:
        trained = train(run)
        Path(run.folder, "config.json").unlink()
        return trained

    monkeypatch.setattr(Run, "train", losing)
    result = invoke(*TRAIN, "-o", "run")
    assert (result.exit_code, result.stdout) == (0, "run/check1.safetensors\n")


@linux
def test_names_are_utf8_in_every_locale(ckpt: str, invoke: Invoke) -> None:
    """Where the locale has no UTF-8, a name comes as escaped bytes."""
    os.mkdir("dé")
    Image.new("L", (28, 28)).save("dé/a.png")
    for form in ("csv", "jsonl", "npz", "safetensors"):
        plain, escaped = (
            invoke("encode", ckpt, folder, "-q", "-o", "-", "--format", form).stdout_bytes
            for folder in ("dé", "dé".encode().decode("ascii", "surrogateescape"))
        )
        assert plain == escaped != b""


def test_the_environment_of_libraries_changes_no_figure(ckpt: str, invoke: Invoke) -> None:
    """A backend that is not installed, a date that is none, and logs of what torch does not know."""
    env = {"MPLBACKEND": "none such", "SOURCE_DATE_EPOCH": "none", "TORCH_LOGS": ""}
    for command, form in (("scatter", "svg"), ("curves", "pdf")):  # curves without torch
        done = process(command, ckpt, "-q", "-o", f"a.{form}", env=env)
        assert (done.returncode, done.stderr) == (0, b"")
        invoke(command, ckpt, "-q", "-o", f"b.{form}")
        assert Path(f"a.{form}").read_bytes() == Path(f"b.{form}").read_bytes()


@linux
def test_a_pipe_that_does_not_block_is_read_to_its_end(ckpt: str) -> None:
    """Another process that holds the pipe may have set it so; then it seems to end where it is empty."""
    Image.new("L", (28, 28)).save("a.png")
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    command = [sys.executable, "-m", "vaecli", "encode", ckpt, "-", "-q"]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE) as encoding, open(writing, "wb") as listing:
        while encoding.poll() is None and not os.get_blocking(reading):
            time.sleep(0.01)
        os.close(reading)
        listing.write(b"a.png\n")
        listing.close()
        out, _ = encoding.communicate(timeout=60)
    assert (encoding.returncode, out.count(b"\n")) == (0, 2)


def test_figures_in_a_notebook_leave_its_backend() -> None:
    code = (
        "import vaecli.services.curves, matplotlib, os\n"
        "assert os.environ['MPLBACKEND'] == matplotlib.get_backend() == 'svg'"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"MPLBACKEND": "svg"}, timeout=60, check=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_training_by_itself_and_leaves_a_run_that_resumes(
    number: int, tmp_path: Path, invoke: Invoke
) -> None:
    training = start(tmp_path / "log", *TRAIN, "-o", "run", "-e", "1000")
    wait_for((tmp_path / "run/state.safetensors").exists, "epoch")
    training.send(number)
    code, out, err = training.end()
    assert (code, out) == (-number, "")  # killed by the signal, so a shell loop stops too
    assert "Traceback" not in err
    assert "Go on with: vae train --resume -o run" in err
    kept = sorted(path.name for path in (tmp_path / "run").iterdir())
    epoch = len((tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert f"check{epoch}.safetensors" in kept
    assert not [name for name in kept if name.endswith(".tmp")]
    again = invoke("train", "--resume", "-o", "run", "-e", epoch + 1, "-q")
    assert again.stdout == f"run/check{epoch + 1}.safetensors\n"
    assert len(os.listdir(tmp_path / "run")) == len(kept) + 1


def test_the_pipelines_of_the_contract(tmp_path: Path) -> None:
    script = """
    set -euo pipefail
    ckpt=$(vae train -d "$FEW" -e 1 --seed 3)
    vae test "$ckpt" --json | "$PYTHON" -m json.tool
    vae encode "$ckpt" | head -3
    vae scatter "$ckpt"
    vae curves "$ckpt"
    """
    with command_on_path({}) as path:
        env = os.environ | {"PATH": path, "PYTHON": sys.executable, "FEW": str(FEW)}
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "{"
    assert lines[-2:] == ["outputs/few-z2/scatter.png", "outputs/few-z2/curves.png"]
    answer = json.loads("\n".join(lines[: lines.index("}") + 1]))
    metrics = [json.loads(line) for line in (tmp_path / "outputs/few-z2/metrics.jsonl").read_text().splitlines()]
    assert answer["loss"] == pytest.approx(metrics[-1]["test_loss"], abs=1e-3)


def test_encode_of_idx_files_of_other_kinds(ckpt: str, invoke: Invoke) -> None:
    Path("small").write_bytes(idx_bytes(np.zeros((3, 14, 14), np.uint8)))
    assert "Converted 3 of 3 images to 28x28" in invoke("encode", ckpt, "small").stderr
    Path("wide").write_bytes(idx_bytes(np.zeros((2, 28, 28), ">i4"), 0x0C))
    result = invoke("encode", ckpt, "wide")
    assert result.exit_code == 1
    assert "holds int32 values" in assert_one_line(result.stderr)


def test_a_run_under_two_names_is_one_curve(run_copy: Path, invoke: Invoke) -> None:
    Path("link").symlink_to(run_copy)
    invoke("curves", run_copy, f"{run_copy}/", "link", "-o", "one.csv")
    assert {row["run"] for row in csv.DictReader(Path("one.csv").read_text().splitlines())} == {"run"}


def test_a_damaged_line_of_metrics_is_counted_from_1(run_copy: Path, invoke: Invoke) -> None:
    with (run_copy / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    assert "metrics.jsonl, line 3 is damaged" in assert_one_line(invoke("curves", run_copy).stderr)


def test_a_figure_may_go_through_a_link_to_a_device(run_copy: Path, invoke: Invoke) -> None:
    Path("s.png").symlink_to("/dev/null")
    assert invoke("scatter", run_copy, "-q", "-o", "s.png").stdout == "s.png\n"
