"""The run folder's settings, names and metrics."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from vaecli.errors import CheckpointError, VaeError
from vaecli.metrics import EpochRecord, read_metrics, with_speeds, write_metrics
from vaecli.run import (
    Settings,
    default_folder,
    find_checkpoint,
    read_config,
    remove_leftovers,
    run_files,
    write_config,
)


def record(epoch: int, seconds: float | None = 1.5) -> EpochRecord:
    return EpochRecord(epoch, 150.1, 145.0, 5.1, 151.0, 146.0, 5.0, seconds, seconds and 40_000.0)


def test_the_defaults_are_the_tutorials_recipe() -> None:
    recipe = Settings()
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.beta) == (50, 100, 0.001, 1.0)
    assert (recipe.lr_schedule, recipe.kl_warmup) == ("constant", 0)
    assert (recipe.dataset, recipe.z_dim, recipe.checkpoint_every, recipe.log_interval) == ("mnist", 2, 10, 200)


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [("mnist", "outputs/mnist-z4"), ("../my digits/", "outputs/my digits-z4"), ("a/set.npz", "outputs/set-z4")],
)
def test_the_default_folder_is_named_after_data_and_z_dim(dataset: str, folder: str) -> None:
    assert default_folder(dataset, 4) == folder


def test_config_round_trip(tmp_path: Path) -> None:
    settings = Settings(z_dim=7, lr=1e-4, data_dir="somewhere", seed=2**70)
    write_config(str(tmp_path), settings)
    assert read_config(str(tmp_path)) == settings


@pytest.mark.parametrize(
    "change",
    [
        {"z_dim": 0},
        {"z_dim": 10**30},
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"beta": -0.1},
        {"beta": 1e39},
        {"lr_schedule": "linear"},
        {"kl_warmup": -1},
        {"kl_warmup": 10**9},
        {"seed": -1},
        {"precision": "x"},
        {"device": "meta"},
        {"device": ""},
        {"checkpoint_every": 0},
        {"log_interval": -1},
    ],
)
def test_settings_that_no_training_can_have(change: dict[str, Any]) -> None:
    with pytest.raises(VaeError, match=rf"The setting {next(iter(change))} cannot be"):
        Settings(**change)


def test_a_config_that_no_training_can_have_is_named(tmp_path: Path) -> None:
    write_config(str(tmp_path), Settings())
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("0.001", "-1"))
    with pytest.raises(
        VaeError, match=r"config\.json cannot be used\. The setting lr cannot be -1\.0\. Put that right, or"
    ):
        read_config(str(tmp_path))


def test_a_config_without_a_field_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": 1}')
    with pytest.raises(VaeError, match="no field 'z_dim'"):
        read_config(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": True}, "no format 1"),
        ({"format": 2}, "newer vae"),
        ({"format": None}, "no format 1"),
        ({"lr": "x"}, "'lr'"),
        ({"more": 1}, "'more'"),
    ],
)
def test_a_damaged_config_is_an_expected_error(tmp_path: Path, change: dict[str, object], words: str) -> None:
    write_config(str(tmp_path), Settings())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VaeError, match=words):
        read_config(str(tmp_path))


def test_only_the_files_that_train_writes_are_the_runs(tmp_path: Path) -> None:
    own = ["check10.safetensors", "config.json", "metrics.jsonl", "state.safetensors"]
    for name in [*own, "scatter.png", "check.safetensors", "check10.safetensors.bak", "my-check10.safetensors"]:
        (tmp_path / name).touch()
    assert run_files(str(tmp_path)) == [str(tmp_path / name) for name in own]
    assert run_files(str(tmp_path / "none")) == []
    with pytest.raises(VaeError, match="as a run folder"):
        run_files(str(tmp_path / "config.json"))


def test_parts_of_the_runs_files_are_removed_and_no_others(tmp_path: Path) -> None:
    """Another command may be writing a figure here at this moment."""
    end = f".{'0' * 16}.tmp"
    for name in (
        ".check7.safetensors" + end,
        ".config.json" + end,
        ".scatter.png" + end,
        ".config.json.tmp",
        "x" + end,
    ):
        (tmp_path / name).touch()
    remove_leftovers(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([".scatter.png" + end, ".config.json.tmp", "x" + end])
    remove_leftovers(str(tmp_path / "none"))


def test_metrics_round_trip_to_the_last_digit(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.jsonl")
    records = [record(1), EpochRecord(2, 0.1 + 0.2, 1 / 3, 1e-17, 2 / 3, 1.0, 1e38)]
    write_metrics(path, records)
    assert read_metrics(path) == records
    assert len(Path(path).read_text().splitlines()) == 2
    assert "seconds" not in Path(path).read_text().splitlines()[1]


def test_empty_lines_among_metrics_are_none(tmp_path: Path) -> None:
    """As an editor may leave one at the end."""
    path = tmp_path / "metrics.jsonl"
    write_metrics(str(path), [record(1), record(2)])
    path.write_text(path.read_text().replace("\n", "\n\n"))
    assert read_metrics(str(path)) == [record(1), record(2)]


@pytest.mark.parametrize("text", ["{}", "[]", '{"epoch": 1', '{"epoch": NaN}', "null", "\xff"])
def test_damaged_metrics_are_an_expected_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(VaeError, match="damaged"):
        read_metrics(str(tmp_path / "metrics.jsonl"))


def test_losses_beyond_float32_are_damage(tmp_path: Path) -> None:
    write_metrics(str(tmp_path / "metrics.jsonl"), [dataclasses.replace(record(1), test_kl=-1.7e308)])
    with pytest.raises(VaeError, match="beyond float32"):
        read_metrics(str(tmp_path / "metrics.jsonl"))


def test_metrics_out_of_order_are_an_expected_error(tmp_path: Path) -> None:
    write_metrics(str(tmp_path / "metrics.jsonl"), [record(1), record(3)])
    with pytest.raises(VaeError, match="not 1, 2, 3 and so on"):
        read_metrics(str(tmp_path / "metrics.jsonl"))


def test_speeds_are_kept_only_for_epochs_that_are_the_same() -> None:
    history = [record(1).without_speed(), record(2).without_speed()]
    changed = EpochRecord(2, 149.0, 144.0, 5.0, 151.0, 146.0, 5.0, 9.0, 9.0)
    assert with_speeds(history, [record(1), changed, record(3)]) == [record(1), history[1]]


def test_a_run_without_weights_is_told_from_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Run 'vae train' first"):
        find_checkpoint(tmp_path)
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        write_config(str(tmp_path / name), Settings())
        (tmp_path / name / "check1.safetensors").touch()
    (tmp_path / "a").mkdir()
    write_config(str(tmp_path / "a"), Settings())  # a run without weights
    with pytest.raises(CheckpointError, match=r"Name one of the runs in it, such as .*/b\.$"):
        find_checkpoint(tmp_path)
    write_config(str(tmp_path), Settings())
    with pytest.raises(CheckpointError, match=r"no weights file yet.* 'vae train --resume -o .*'\.$"):
        find_checkpoint(tmp_path)
