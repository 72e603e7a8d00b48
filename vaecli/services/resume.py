"""Going on with a run: what its folder says, and what a resumed command may change of it."""

import dataclasses
import os
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from vaecli import checkpoint, engine
from vaecli.adam import Adam
from vaecli.catalog import NAMED
from vaecli.data import is_missing
from vaecli.errors import CheckpointError, UsageError, VaeError
from vaecli.metadata import Metadata, Training
from vaecli.metrics import EpochRecord
from vaecli.run import ANEW, CONFIG, STATE, Settings, check_path, read_config
from vaecli.runtime import choose_device, choose_precision
from vaecli.sources import data_folder

# What a resumed run may change: how far it goes, what it keeps and says, and where it computes.
CHANGEABLE = frozenset({"epochs", "checkpoint_every", "log_interval", "device"})


@dataclass(frozen=True)
class Trained:
    """A finished training: its last weights file and the mean losses of each epoch, in nats per image."""

    checkpoint: str
    epochs: int
    train_losses: list[float]
    test_losses: list[float]


def settings_of_run(folder: str, settings: Settings, typed: Set[str]) -> Settings:
    """The run's own settings, with those changed that may be. Raises UsageError for any other."""
    if not os.path.exists(os.path.join(folder, CONFIG)):
        raise VaeError(f"{folder} holds parts of a run but no {CONFIG}. Restore it, or {ANEW}.")
    saved, config = read_config(folder), os.path.join(folder, CONFIG)
    for name in sorted(typed - CHANGEABLE):
        chosen, used = getattr(settings, name), getattr(saved, name)
        if name == "precision" and chosen == "auto":
            device = settings.device if "device" in typed else saved.device
            chosen = choose_precision(chosen, choose_device(device))
        if name == "data_dir":
            same = _same_path(data_folder(chosen), data_folder(used))
        else:
            same = name == "dataset" and NAMED.keys().isdisjoint((chosen, used)) and _same_path(chosen, used)
        if chosen != used and not same:
            option = "--" + name.replace("_", "-")
            remedy = "Leave it out, or use another -o."
            if name == "data_dir":
                remedy = f"Leave it out, or set {name} in {config} to the new place."
            elif name == "dataset":  # without it the folder may be another, too
                remedy = f"Set {name} in {config} to the new place." if is_missing(used) else "Use another -o."
            raise UsageError(
                f"{option} {chosen} is not the run's ({'the default' if used is None else used}). {remedy}"
            )
    if saved.lr_schedule == "cosine" and "epochs" in typed and settings.epochs != saved.epochs:
        raise UsageError(
            f"--epochs {settings.epochs} is not the run's ({saved.epochs}), at which its learning rate reaches 0. "
            "Leave it out, or use another -o."
        )
    return dataclasses.replace(saved, **{name: getattr(settings, name) for name in typed & CHANGEABLE})


def refuse_moved_data(folder: str, settings: Settings) -> None:
    """Raise VaeError if the run's data were at a path that leads nowhere from here."""
    place = data_folder(settings.data_dir)
    if is_missing(settings.dataset):
        key, what = "dataset", f"data set '{settings.dataset}'"
    elif settings.dataset in NAMED and not place.is_absolute() and not place.exists():
        key, what = "data_dir", f"data folder '{place}'"
    else:
        return
    raise VaeError(
        f"The run's {what} is not here. Go on from the folder where the run began, put the data there, "
        f"or set {key} in {os.path.join(folder, CONFIG)} to their full path."
    )


def _same_path(one: str | Path, other: str | Path) -> bool:
    """Whether two names, such as `data` and `./data`, are the same file or folder."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def require_settings(folder: str, settings: Settings, metadata: Metadata) -> None:
    """Raise VaeError if a state with this metadata is of a run with other settings."""
    before = metadata.training
    if before.lr_schedule == "constant":  # else the total is part of the schedule
        before = dataclasses.replace(before, epochs=settings.epochs)
    made = {"z_dim": metadata.z_dim, **dataclasses.asdict(before)}
    wanted = {"z_dim": settings.z_dim, **dataclasses.asdict(training_of(settings))}
    for name, value in wanted.items():
        if made[name] != value:
            raise VaeError(
                f"{os.path.join(folder, CONFIG)} says {name} {value}, but {STATE} was made with {made[name]}. "
                f"Put that back, or {ANEW}."
            )


def training_of(settings: Settings) -> Training:
    """Those of the settings that are kept with the weights."""
    names = (field.name for field in dataclasses.fields(Training))
    return Training(**{name: getattr(settings, name) for name in names})


def already_finished(folder: str, settings: Settings, *, repair: bool) -> Trained | None:
    """The result of a run that has all its epochs; to `repair` is to make its last weights file again if it is gone."""
    metadata = checkpoint.read_state_metadata(os.path.join(folder, STATE))
    if metadata.epoch < settings.epochs:
        return None
    if metadata.epoch > settings.epochs:
        raise VaeError(
            f"The run in {folder} has {metadata.epoch} epochs already, more than --epochs {settings.epochs}. "
            f"Use check{settings.epochs}.safetensors if it was kept, or another -o."
        )
    require_settings(folder, settings, metadata)
    path = check_path(folder, metadata.epoch)
    if repair and not _is_sound(path, metadata):  # lost, damaged or another run's, and the state has all that it held
        model = engine.new_model(settings.z_dim, settings.seed)
        checkpoint.load_state(os.path.join(folder, STATE), model, Adam(model.parameters()))
        checkpoint.save(path, dict(model.named_parameters()), metadata)
    return trained(path, metadata.history)


def _is_sound(path: str, metadata: Metadata) -> bool:
    try:
        return checkpoint.load(path, torch.device("cpu"))[1] == metadata
    except CheckpointError:
        return False


def trained(path: str, history: Sequence[EpochRecord]) -> Trained:
    """The result of a run with this last weights file and history."""
    return Trained(
        checkpoint=path,
        epochs=len(history),
        train_losses=[record.train_loss for record in history],
        test_losses=[record.test_loss for record in history],
    )
