"""What a checkpoint says of itself: the model, how it was trained and on what, and how that went."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from vaecli.errors import CheckpointError
from vaecli.metrics import EpochRecord, read_history
from vaecli.run import FORMAT, MAX_Z_DIM
from vaecli.text import read_record

MAX_CLASSES, MAX_NAME = 10_000, 255  # class names, and the characters of one: names of folders
_MODEL = "ConvVAE"


@dataclass(frozen=True)
class Training:
    """The settings that shaped the weights. `epochs` is the total that the run was to reach."""

    batch_size: int
    beta: float
    epochs: int
    lr: float
    precision: str
    seed: int
    lr_schedule: str = "constant"  # the first weights files had neither of these
    kl_warmup: int = 0


@dataclass(frozen=True)
class DataSource:
    """The data set as typed, and a SHA-256 over shape, pixels and labels of each split."""

    dataset: str
    train_sha256: str
    test_sha256: str


@dataclass(frozen=True)
class Metadata:
    """All that travels with the weights: no times, hosts or paths, so equal models are equal files."""

    z_dim: int
    training: Training
    data: DataSource
    class_names: tuple[str, ...]
    epoch: int
    history: tuple[EpochRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """The value of the file's one metadata key, `vae`."""
        return {
            "format": FORMAT,
            "model": {"name": _MODEL, "z_dim": self.z_dim},
            "training": dataclasses.asdict(self.training),
            "data": dataclasses.asdict(self.data),
            "class_names": list(self.class_names),
            "epoch": self.epoch,
            "history": [record.without_speed().to_json() for record in self.history],
        }

    @classmethod
    def from_json(cls, value: Any, what: str, remedy: str) -> "Metadata":
        """Raises CheckpointError if the value is of another model, of a newer format or damaged."""

        def damaged(words: str) -> CheckpointError:
            return CheckpointError(f"{what} is damaged: {words}. {remedy}")

        if not isinstance(value, dict) or type(value.get("format")) is not int:
            raise damaged("no format in its metadata")
        if value["format"] > FORMAT:
            raise CheckpointError(f"{what} was made by a newer vae (format {value['format']}). Upgrade vaecli.")
        wanted = {"format", "model", "training", "data", "class_names", "epoch", "history"}
        if value.keys() == wanted | {"step"}:
            raise CheckpointError(f"{what} is the state of a run and no weights file. Name the run folder.")
        if more := sorted(value.keys() - wanted):
            raise CheckpointError(f"{what} has an unknown field '{more[0]}', maybe a newer vae's. Upgrade vaecli.")
        if value["format"] != FORMAT or value.keys() != wanted:
            raise damaged("its metadata has other fields than format 1")
        model, names, epoch = value["model"], value["class_names"], value["epoch"]
        if not isinstance(model, dict) or model.keys() != {"name", "z_dim"} or model["name"] != _MODEL:
            raise CheckpointError(f"{what} holds another model. {remedy}")
        if type(model["z_dim"]) is not int or not 1 <= model["z_dim"] <= MAX_Z_DIM:
            raise damaged(f"its z_dim is no integer from 1 to {MAX_Z_DIM:,}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise damaged("its class names are no list of strings")
        if len(names) > MAX_CLASSES or len(max(names, key=len, default="")) > MAX_NAME:
            raise damaged("its class names are too many or too long")
        if not isinstance(value["history"], list):
            raise damaged("its history is no list")
        history = read_history(value["history"], what, CheckpointError)
        if type(epoch) is not int or epoch != len(history):
            raise damaged("its epoch and its history differ")
        return cls(
            z_dim=model["z_dim"],
            training=read_record(Training, value["training"], what, CheckpointError),
            data=read_record(DataSource, value["data"], what, CheckpointError),
            class_names=tuple(names),
            epoch=epoch,
            history=tuple(history),
        )
