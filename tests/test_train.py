"""Training runs: what is on disk, and that nothing but the settings decides it."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEVICES, DIGITS, FEW, TINY, Notes
from PIL import Image
from test_checkpoint import join, split

from vaecli import checkpoint, data, engine
from vaecli.errors import DivergedError, Interrupted, UsageError, VaeError
from vaecli.metrics import EpochRecord, read_metrics, write_metrics
from vaecli.run import Settings
from vaecli.services import Observer
from vaecli.services import epochs as service
from vaecli.services.evaluate import evaluate
from vaecli.services.inputs import find_split, open_checkpoint
from vaecli.services.resume import Trained
from vaecli.services.train import train
from vaecli.training import Trainer

SETTINGS = Settings(z_dim=2, epochs=2, **TINY | {"dataset": str(FEW), "batch_size": 10})


def run(folder: Path, epochs: int = 2, **options: Any) -> Trained:
    settings = dataclasses.replace(SETTINGS, epochs=epochs, **options.pop("settings", {}))
    result = train(settings, str(folder), **options)
    assert result is not None
    return result


def change_config(folder: Path, encoding: str = "utf-8", **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes), encoding=encoding)


def weights(result: Trained) -> bytes:
    return Path(result.checkpoint).read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What the others' is, of fewer digits. Do not write into it."""
    return run(tmp_path_factory.mktemp("trained") / "run", settings={"checkpoint_every": 1})


@pytest.fixture(scope="module")
def few() -> data.Split:
    """The test digits that it is measured on."""
    return data.load(str(FEW), "test", None, lambda text: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Four epochs in one go, each with its weights file."""
    return run(tmp_path_factory.mktemp("whole") / "run", 4, settings={"checkpoint_every": 1})


def check(result: Trained, epoch: int) -> bytes:
    return Path(result.checkpoint).with_name(f"check{epoch}.safetensors").read_bytes()


class Stop(Notes):
    """Interrupts in the middle of an epoch, as a signal would."""

    def __init__(self, epoch: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.epoch, self.error = epoch, error or Interrupted(15)

    def begin(self, what: str, images: int, *, long: bool = False) -> None:
        self.now = what

    def advance(self, images: int, loss: float | None = None) -> None:
        if self.now == f"epoch {self.epoch}/4":
            raise self.error


def test_equal_settings_give_equal_bytes(trained: Trained, tmp_path: Path) -> None:
    again = run(tmp_path / "elsewhere")
    assert weights(again) == weights(trained)
    for part in ("train_losses", "test_losses"):
        assert getattr(again, part) == getattr(trained, part)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"lr": 0.002},
        {"beta": 0.5},
        {"batch_size": 9},
        {"precision": "bf16"},
        {"lr_schedule": "cosine"},
        {"kl_warmup": 1},
    ],
)
def test_every_setting_matters(trained: Trained, tmp_path: Path, other: dict[str, object]) -> None:
    """Already in the first epoch. (The files differ in any case: they name their settings.)"""
    result = run(tmp_path / "run", epochs=1, settings=other)
    assert result.test_losses[0] != trained.test_losses[0]
    assert result.train_losses[0] != trained.train_losses[0]


def test_checkpoints_and_intervals_do_not_matter(trained: Trained, tmp_path: Path) -> None:
    result = run(tmp_path / "run", settings={"checkpoint_every": 2, "log_interval": 1})
    assert weights(result) == weights(trained)


@pytest.mark.parametrize("device", DEVICES)
def test_two_halves_are_the_whole_to_the_byte(tmp_path: Path, device: str) -> None:
    whole = run(tmp_path / "whole", 4, settings={"device": device, "precision": "auto"})
    first = run(tmp_path / "halves", 2, settings={"device": device, "precision": "auto"})
    second = run(tmp_path / "halves", 4, resume=True, typed={"epochs"})
    assert weights(second) == weights(whole)
    assert weights(first) != weights(second)
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "halves")]
    assert states[0] == states[1]
    assert [r.without_speed() for r in read_metrics(f"{tmp_path}/halves/metrics.jsonl")] == [
        r.without_speed() for r in read_metrics(f"{tmp_path}/whole/metrics.jsonl")
    ]
    assert json.loads((tmp_path / "halves/config.json").read_text())["epochs"] == 4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("schedule", [{}, {"lr_schedule": "cosine", "kl_warmup": 3}], ids=["recipe", "changing"])
def test_an_interrupted_epoch_is_discarded_and_the_resumed_run_is_exact(
    whole: Trained, tmp_path: Path, schedule: dict[str, object], device: str
) -> None:
    recipe = not schedule and device == "cpu"
    schedule = schedule | {"device": device}
    if not recipe:
        whole = run(tmp_path / "whole", 4, settings={"checkpoint_every": 1} | schedule)
    stop = Stop(epoch=3)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", 4, settings=schedule, observer=stop)
    assert sorted(os.listdir(tmp_path / "run")) == [
        "check2.safetensors", "config.json", "metrics.jsonl", "state.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "run/check2.safetensors").read_bytes() == check(whole, 2)
    assert f"Go on with: vae train --resume -o {tmp_path / 'run'}" in stop.heard
    assert weights(run(tmp_path / "run", 4, resume=True)) == weights(whole)


def test_an_interrupted_notebook_keeps_the_last_epoch(whole: Trained, tmp_path: Path) -> None:
    """Without the command's handlers Ctrl-C is a KeyboardInterrupt."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", 4, observer=Stop(epoch=3, error=KeyboardInterrupt()))
    assert (tmp_path / "run/check2.safetensors").read_bytes() == check(whole, 2)


def test_interrupted_before_the_first_epoch_leaves_a_run_that_resumes(whole: Trained, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path / "run", 4, observer=Stop(epoch=1))
    assert os.listdir(tmp_path / "run") == ["config.json"]
    assert weights(run(tmp_path / "run", 4, resume=True)) == weights(whole)


def test_the_order_of_writing_makes_the_state_the_commit_point(tmp_path: Path) -> None:
    """Killed after the last checkpoint but before its state: the epoch is trained again, to the same bytes."""
    shutil.copytree(Path(run(tmp_path / "run", 2).checkpoint).parent, tmp_path / "killed")
    run(tmp_path / "killed", 3, resume=True, typed={"epochs"})
    shutil.copy(tmp_path / "run/state.safetensors", tmp_path / "killed/state.safetensors")
    before = (tmp_path / "killed/check3.safetensors").read_bytes()
    result = run(tmp_path / "killed", 3, resume=True)
    assert weights(result) == before
    assert [record.epoch for record in read_metrics(f"{tmp_path}/killed/metrics.jsonl")] == [1, 2, 3]


def test_resume_starts_a_run_if_there_is_none(trained: Trained, tmp_path: Path) -> None:
    assert weights(run(tmp_path / "new", resume=True)) == weights(trained)


def test_a_finished_run_answers_at_once(trained: Trained, run_copy: Path) -> None:
    (run_copy / "check2.safetensors").unlink()
    change_config(run_copy, dataset="/gone")  # no data is needed
    result = run(run_copy, resume=True)
    assert weights(result) == weights(trained)
    assert result.test_losses == trained.test_losses
    with pytest.raises(VaeError, match="has 2 epochs already"):
        run(run_copy, 1, resume=True, typed={"epochs"})


def test_lost_metrics_come_back_without_their_speeds(trained: Trained, run_copy: Path) -> None:
    (run_copy / "metrics.jsonl").write_text("rubbish")
    run(run_copy, 3, resume=True, typed={"epochs"})
    records = read_metrics(str(run_copy / "metrics.jsonl"))
    assert [record.seconds is None for record in records] == [True, True, False]
    assert [record.test_loss for record in records[:2]] == trained.test_losses


@pytest.mark.parametrize(
    "other",
    [
        {"z_dim": 3},
        {"lr": 0.5},
        {"batch_size": 20},
        {"beta": 2.0},
        {"lr_schedule": "cosine"},
        {"kl_warmup": 1},
        {"seed": 5},
        {"dataset": "mnist"},
        {"precision": "bf16"},
        {"data_dir": "x"},
    ],
)
def test_a_typed_option_that_differs_is_wrong_usage(run_copy: Path, other: dict[str, object]) -> None:
    name = next(iter(other))
    used = {"kl_warmup": "0", "data_dir": "the default"}.get(name, str(getattr(SETTINGS, name)))
    with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')} .*\({re.escape(used)}\)"):
        run(run_copy, 3, settings=other, resume=True, typed={name, "epochs"})
    run(run_copy, 2, settings=other, resume=True, typed={"epochs"})  # not typed, so the run's own holds


def test_the_end_of_a_cosine_cannot_be_moved(tmp_path: Path) -> None:
    """Its learning rate depends on the total; that of a warm-up does not."""
    cosine, folder = {"lr_schedule": "cosine"}, tmp_path / "cosine"
    first = run(folder, settings=cosine)
    for epochs in (1, 3):
        with pytest.raises(UsageError, match=rf"--epochs {epochs} is not the run's \(2\), at which"):
            run(folder, epochs, resume=True, typed={"epochs"})
    assert weights(run(folder, 2, resume=True, typed={"epochs"})) == weights(first)
    change_config(folder, epochs=3)
    with pytest.raises(VaeError, match=r"says epochs 3, but state\.safetensors was made with 2\."):
        run(folder, resume=True)

    warm = run(tmp_path / "warm", settings={"kl_warmup": 2})
    assert weights(run(tmp_path / "warm", 3, resume=True, typed={"epochs"})) != weights(warm)


def test_a_warm_up_past_the_end_is_said(tmp_path: Path) -> None:
    for epochs, said in ((1, True), (2, False)):
        heard = Notes()
        train(dataclasses.replace(SETTINGS, epochs=epochs, kl_warmup=1), str(tmp_path), dry_run=True, observer=heard)
        assert any("full weight only after epoch 1" in note for note in heard.heard) == said


@pytest.mark.parametrize(("precision", "emulated"), [("bf16", True), ("bf16", False), ("fp32", True)])
def test_bf16_without_hardware_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, emulated: bool
) -> None:
    monkeypatch.setattr(service, "emulates_bf16", lambda device: emulated)
    heard = Notes()
    settings = dataclasses.replace(SETTINGS, precision=precision, batch_size=2)
    train(settings, str(tmp_path), dry_run=True, observer=heard)
    assert any("no instructions for bf16" in note for note in heard.heard) == (precision == "bf16" and emulated)


def test_a_run_from_before_schedules_goes_on(run_copy: Path, tmp_path: Path) -> None:
    config = json.loads((run_copy / "config.json").read_text())
    del config["lr_schedule"], config["kl_warmup"]
    (run_copy / "config.json").write_text(json.dumps(config))
    later = {"lr_schedule", "kl_warmup"}
    for name in ("check2.safetensors", "state.safetensors"):
        header, values = split((run_copy / name).read_bytes())
        metadata = json.loads(header["__metadata__"]["vae"])
        metadata["training"] = {key: value for key, value in metadata["training"].items() if key not in later}
        header["__metadata__"]["vae"] = json.dumps(metadata)
        (run_copy / name).write_bytes(join(header, values))
    assert checkpoint.read_metadata(str(run_copy / "check2.safetensors")).training.lr_schedule == "constant"
    assert weights(run(run_copy, 3, resume=True, typed={"epochs"})) == weights(run(tmp_path / "whole", 3))


def test_a_typed_option_that_is_the_same_is_fine(run_copy: Path) -> None:
    change_config(run_copy, device="cuda")
    settings = {"dataset": os.path.join(FEW.parent, ".", FEW.name), "precision": "auto", "device": "cpu"}
    run(run_copy, 2, settings=settings, resume=True, typed=set(settings))


def test_a_run_is_never_in_the_way_silently(run_copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in run_copy.iterdir()}
    with pytest.raises(VaeError, match="holds a run"):
        run(run_copy)
    assert {path.name: path.read_bytes() for path in run_copy.iterdir()} == before


def test_overwrite_removes_the_runs_files_alone_and_only_once_all_is_ready(run_copy: Path) -> None:
    (run_copy / "notes.txt").write_text("mine")
    with pytest.raises(VaeError, match="No data set"):
        run(run_copy, 1, settings={"dataset": "/gone"}, overwrite=True)
    assert (run_copy / "check2.safetensors").exists()
    run(run_copy, 1, overwrite=True)
    assert sorted(os.listdir(run_copy)) == [
        "check1.safetensors", "config.json", "metrics.jsonl", "notes.txt", "state.safetensors",
    ]  # fmt: skip


def test_a_dry_run_refuses_what_the_run_would(run_copy: Path) -> None:
    Path(run_copy, "check2.safetensors").unlink()
    with pytest.raises(VaeError, match="has 2 epochs already"):
        run(run_copy, 1, resume=True, typed={"epochs"}, dry_run=True)
    finished = Notes()
    assert train(SETTINGS, str(run_copy), resume=True, dry_run=True, observer=finished) is None
    assert finished.heard == ["The run is finished already; a higher --epochs goes on."]
    assert not Path(run_copy, "check2.safetensors").exists()
    with pytest.raises(UsageError, match="exclude each other"):
        run(run_copy, 3, resume=True, overwrite=True)
    assert Path(run_copy, "state.safetensors").exists()


@pytest.mark.parametrize(
    ("there", "remedy"), [(True, "Use another -o."), (False, r"Set dataset in .*config\.json to the new place\.")]
)
def test_another_data_set_of_the_same_name(run_copy: Path, tmp_path: Path, there: bool, remedy: str) -> None:
    change_config(run_copy, dataset=str(tmp_path / "digits.npz"))
    if there:
        shutil.copy(FEW, tmp_path / "digits.npz")
    with pytest.raises(UsageError, match=rf"digits\.npz\)\. {remedy}$"):
        run(run_copy, 3, resume=True, typed={"dataset"}, settings={"dataset": str(FEW)})


def test_resume_refuses_other_data_and_another_state(run_copy: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros((20, 28, 28), np.uint8))
    change_config(run_copy, dataset=str(tmp_path / "other.npz"))
    with pytest.raises(VaeError, match="has changed since the run began"):
        run(run_copy, 3, resume=True, typed={"epochs"})
    change_config(run_copy, dataset=str(FEW), lr=0.5)
    with pytest.raises(VaeError, match=r"config\.json says lr 0\.5, but state\.safetensors was made with 0\.001\."):
        run(run_copy, 3, resume=True, typed={"epochs"})
    (run_copy / "config.json").unlink()
    with pytest.raises(VaeError, match=r"no config\.json"):
        run(run_copy, 3, resume=True, typed={"epochs"})


def test_a_run_whose_data_moved_goes_on_once_its_config_says_so(run_copy: Path, tmp_path: Path) -> None:
    moved = str(shutil.copy(FEW, tmp_path / "moved.npz"))
    change_config(run_copy, encoding="utf-8-sig", dataset=moved)  # as Notepad saves it
    went_on = run(run_copy, 3, resume=True, typed={"epochs"})
    assert weights(went_on) == weights(run(tmp_path / "unbroken", 3, settings={"dataset": moved}))


def test_a_folder_called_as_a_named_set_is_another_set(run_copy: Path) -> None:
    change_config(run_copy, dataset="kmnist")
    Path("kmnist").mkdir()
    with pytest.raises(UsageError, match=r"--dataset \./kmnist is not the run's \(kmnist\)"):
        run(run_copy, 3, resume=True, typed={"dataset"}, settings={"dataset": "./kmnist"})


def test_a_run_that_lost_its_state_is_not_silently_begun_again(trained: Trained, run_copy: Path) -> None:
    (run_copy / "state.safetensors").unlink()
    with pytest.raises(VaeError, match=r"lost its state\.safetensors"):
        run(run_copy, 2, resume=True)
    (run_copy / "check2.safetensors").unlink()  # as if killed between the first check and its state
    assert weights(run(run_copy, 2, resume=True)) == weights(trained)


def test_a_damaged_state_says_what_to_do(run_copy: Path) -> None:
    os.truncate(run_copy / "state.safetensors", 1000)
    with pytest.raises(VaeError, match=r"cut short\. Restore it, or begin anew .* --overwrite in place of --resume"):
        run(run_copy, 3, resume=True)


def test_a_run_says_that_its_data_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DIGITS, "digits")
    result = run(Path("run"), 1, settings={"dataset": "digits"})
    monkeypatch.chdir("run")
    assert run(Path("../run"), 1, resume=True).checkpoint == "../run/check1.safetensors"  # finished: it needs no data
    with pytest.raises(VaeError, match=r"The run's data set 'digits' is not here\. Go on from the folder"):
        run(Path("../run"), 2, resume=True, typed={"epochs"})
    with pytest.raises(VaeError, match=r"check1\.safetensors is not here: 'digits'\. Name it with --dataset\."):
        evaluate("check1.safetensors")
    assert evaluate("check1.safetensors", dataset="../digits").loss == pytest.approx(result.test_losses[-1], abs=1e-3)


def test_a_run_says_that_its_data_folder_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DIGITS, "files")
    run(Path("run"), 1, settings={"dataset": "fashion-mnist", "data_dir": "files"})
    monkeypatch.chdir("run")
    with pytest.raises(VaeError, match=r"The run's data folder 'files' is not here\. Go on from the folder"):
        run(Path("../run"), 2, resume=True, typed={"epochs"})
    assert not Path("files").exists()  # nor anything fetched into it


def test_a_data_folder_is_the_runs_own_under_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DIGITS, "files")
    monkeypatch.setenv("HOME", os.getcwd())
    run(Path("run"), 1, settings={"dataset": "fashion-mnist", "data_dir": "~/files"})
    for name in ("files", os.path.abspath("files"), "./files/"):
        run(Path("run"), 1, resume=True, typed={"data_dir"}, settings={"data_dir": name})
    monkeypatch.setenv("VAE_DATA_DIR", "files")
    run(Path("default"), 1, settings={"dataset": "fashion-mnist"})
    run(Path("default"), 1, resume=True, typed={"data_dir"}, settings={"data_dir": "files"})
    Path("others").mkdir()
    with pytest.raises(UsageError, match=r"--data-dir others is not the run's \(the default\)"):
        run(Path("default"), 1, resume=True, typed={"data_dir"}, settings={"data_dir": "others"})


def test_class_names_are_those_of_today_and_of_all_classes(few: data.Split) -> None:
    for i, picture in enumerate(few.images):
        folder = Path("pictures", ("cat", "dog")[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.numpy()).save(folder / f"{i}.png")
    labels = torch.arange(30) % 10
    np.savez("a.npz", images=few.images, labels=labels, test_images=few.images, test_labels=labels * 0)
    found = []
    for dataset in ("pictures", "a.npz"):
        opened = open_checkpoint(run(Path(f"run of {dataset}"), 1, settings={"dataset": dataset}).checkpoint, "cpu")
        if dataset == "pictures":
            Path("pictures/dog").rename("pictures/dingo")
        found.append(find_split(opened, None, "test", None, Observer()).class_names)
    assert found == [("cat", "dingo"), tuple("0123456789")]
    np.savez("b.npz", images=few.images, labels=labels * 0, test_images=few.images, test_labels=labels)
    result = run(Path("run of b.npz"), 1, settings={"dataset": "b.npz"})
    assert open_checkpoint(result.checkpoint, "cpu").metadata.class_names == tuple("0123456789")


def test_a_damaged_last_checkpoint_is_made_again(trained: Trained, run_copy: Path) -> None:
    (run_copy / "check2.safetensors").write_bytes(b"xx")
    assert weights(run(run_copy, resume=True)) == weights(trained)


def test_a_finished_run_answers_with_its_own_weights(trained: Trained, run_copy: Path, tmp_path: Path) -> None:
    other = Path(run(tmp_path / "other", settings={"seed": 1}).checkpoint)
    shutil.copy(other, run_copy / "check2.safetensors")
    assert weights(run(run_copy, resume=True)) == weights(trained)
    shutil.copy(other.with_name("state.safetensors"), run_copy)
    with pytest.raises(VaeError, match=r"says seed 0, but .* was made with 1"):
        run(run_copy, resume=True)


def test_metrics_are_exact_and_sum_up(trained: Trained) -> None:
    records = read_metrics(str(Path(trained.checkpoint).with_name("metrics.jsonl")))
    assert [record.epoch for record in records] == [1, 2]
    assert [record.train_loss for record in records] == trained.train_losses
    for record in records:
        assert record.train_loss == pytest.approx(record.train_reconstruction + record.train_kl, abs=1e-9)
        assert record.test_loss == pytest.approx(record.test_reconstruction + record.test_kl, abs=1e-9)
        assert record.seconds is not None
        assert record.images_per_second is not None
        assert record.images_per_second * record.seconds == pytest.approx(100, rel=0.1)
    history = checkpoint.read_metadata(trained.checkpoint).history
    assert list(history) == [record.without_speed() for record in records]


def test_beta_enters_the_objective_and_not_the_report(tmp_path: Path) -> None:
    result = run(tmp_path / "run", 1, settings={"beta": 50.0})
    record = read_metrics(str(tmp_path / "run/metrics.jsonl"))[0]
    assert result.train_losses[0] == pytest.approx(record.train_reconstruction + record.train_kl, abs=1e-9)


def test_the_last_epochs_test_loss_is_what_test_says(trained: Trained) -> None:
    """The whole split, a sample each, the same noise as in training: not one batch, not the mean."""
    result = evaluate(trained.checkpoint)
    assert result.loss == pytest.approx(trained.test_losses[-1], abs=1e-3)
    assert result.images == 30


def test_standard_errors_are_over_images(trained: Trained, few: data.Split) -> None:
    result = evaluate(trained.checkpoint, seed=3)
    model, _ = checkpoint.load(trained.checkpoint, torch.device("cpu"))
    terms = engine.evaluate(model, few.images, seed=3, device=torch.device("cpu"))
    values = terms.loss().double().numpy()
    assert result.loss == pytest.approx(values.mean(), abs=1e-4)
    for value, error in (
        (values, result.loss_se),
        (terms.reconstruction.double().numpy(), result.reconstruction_se),
        (terms.kl.double().numpy(), result.kl_se),
    ):
        assert error == pytest.approx(value.std(ddof=1) / np.sqrt(30), rel=1e-4)
    assert result.bits_per_dim == pytest.approx(result.loss / 784 / np.log(2), rel=1e-12)
    assert result.loss == pytest.approx(result.reconstruction + result.kl, abs=1e-9)


def test_a_seed_of_0_is_a_seed(trained: Trained, tmp_path: Path) -> None:
    model, metadata = checkpoint.load(trained.checkpoint, torch.device("cpu"))
    seeded = dataclasses.replace(metadata, training=dataclasses.replace(metadata.training, seed=1))
    checkpoint.save(str(tmp_path / "one.safetensors"), dict(model.named_parameters()), seeded)
    results = [evaluate(str(tmp_path / "one.safetensors"), seed=seed) for seed in (None, 1, 0)]
    assert [result.seed for result in results] == [1, 1, 0]
    assert results[0].loss == results[1].loss != results[2].loss
    assert results[2].loss == evaluate(trained.checkpoint).loss


def test_a_single_image_has_no_spread(trained: Trained, digits: data.Split, tmp_path: Path) -> None:
    """No standard error, and no word of a collapse: nothing differs between images."""
    np.savez(tmp_path / "one.npz", images=digits.images[:10].numpy())  # of ten, the last is the test split
    notes = Notes()
    result = evaluate(trained.checkpoint, dataset=str(tmp_path / "one.npz"), importance_samples=2, observer=notes)
    assert result.images == 1
    errors = (result.loss_se, result.reconstruction_se, result.kl_se, result.log_likelihood_se)
    assert errors == (None,) * 4
    assert result.active_units is None
    assert not any("collapsed" in text for text in notes.heard)


def test_divergence_keeps_the_last_finished_epoch(
    whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.epoch

    def poisoned(self: Trainer, epoch: int, seed: int, **options: Any) -> engine.Losses:
        if epoch == 2:
            with torch.no_grad():
                self.model.conv1.weight.fill_(float("nan"))
        return real(self, epoch, seed, **options)

    monkeypatch.setattr(Trainer, "epoch", poisoned)
    with pytest.raises(DivergedError, match="epoch 2, step 1"):
        run(tmp_path / "run", 4)
    monkeypatch.undo()
    assert (tmp_path / "run/check1.safetensors").read_bytes() == check(whole, 1)
    assert weights(run(tmp_path / "run", 4, resume=True)) == weights(whole)


@pytest.mark.parametrize("place", ["write_metrics", "checkpoint.save_state"])
def test_a_signal_during_the_commit_completes_it(
    whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The last weights, the metrics and the state agree, wherever the signal came."""
    module = "vaecli.services.epochs"
    real = write_metrics if place == "write_metrics" else checkpoint.save_state
    calls: list[int] = []

    def interrupted(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:  # in the second epoch's commit, the first time
            raise Interrupted(15)
        real(*args)

    monkeypatch.setattr(f"{module}.{place}", interrupted)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", 4)
    monkeypatch.undo()
    assert (tmp_path / "run/check2.safetensors").exists()
    assert len(read_metrics(f"{tmp_path}/run/metrics.jsonl")) == 2
    assert checkpoint.read_state_metadata(f"{tmp_path}/run/state.safetensors").epoch == 2
    assert weights(run(tmp_path / "run", 4, resume=True)) == weights(whole)


def test_a_run_does_not_lie_inside_the_images_it_learns_from(tmp_path: Path, digits: Any) -> None:
    for index in range(20):
        Image.fromarray(digits.images[index].numpy()).save(tmp_path / f"{index}.png")
    with pytest.raises(VaeError, match="lies inside the data set"):
        run(tmp_path / "run", 1, settings={"dataset": str(tmp_path)})


def test_observers_hear_every_epoch(tmp_path: Path) -> None:
    heard: list[tuple[int, int, float]] = []

    class Ear(Observer):
        def finish_epoch(self, record: EpochRecord, epochs: int, seconds_left: float) -> None:
            heard.append((record.epoch, epochs, seconds_left))

    run(tmp_path / "run", 3, observer=Ear())
    assert [(epoch, epochs) for epoch, epochs, _ in heard] == [(1, 3), (2, 3), (3, 3)]
    assert heard[0][2] > heard[2][2] == 0


def test_what_is_advised_can_be_pasted_and_comes_once_the_bars_are_gone(tmp_path: Path) -> None:
    class Ear(Stop):
        def close(self) -> None:
            self.heard.append("closed")

    ear = Ear(epoch=3)
    with pytest.raises(Interrupted):
        run(tmp_path / "my run", 4, observer=ear)
    assert ear.heard[-1] == f"Go on with: vae train --resume -o '{tmp_path / 'my run'}'"
    assert "closed" in ear.heard[:-1]


@pytest.mark.parametrize(("schedule", "words"), [("cosine", "."), ("constant", "; a higher --epochs goes on.")])
def test_a_finished_cosine_is_not_told_to_go_on(tmp_path: Path, schedule: str, words: str) -> None:
    run(tmp_path / "run", 1, settings={"lr_schedule": schedule})
    heard = Notes()
    run(tmp_path / "run", 1, resume=True, observer=heard)
    assert heard.heard[-1] == f"The run is finished already{words}"
