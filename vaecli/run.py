"""A run folder: the settings of a training, and the names of the files that it writes.

outputs/mnist-z2/
  config.json            the settings, as the last command resolved them
  metrics.jsonl          one line an epoch
  check10.safetensors    weights after epoch 10, 20, ... and the last
  state.safetensors      what an exact resume needs
  .lock                  the training that writes here, while it does
"""

import contextlib
import dataclasses
import glob
import json
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from vaecli.errors import CheckpointError, UsageError, VaeError
from vaecli.files import LEFTOVER, read_regular, reason, write_whole
from vaecli.metrics import MAX_EPOCHS
from vaecli.text import parse_json, read_record

MAX_Z_DIM = 2**15  # the state of a larger model would not fit the size cap of a file, 4 GiB
MAX_FLOAT = 2.0**127  # of the settings, which are float32 in the step
FORMAT = 1  # of config.json, the weights and the state file
CONFIG, METRICS, STATE = "config.json", "metrics.jsonl", "state.safetensors"
ANEW = "begin anew with the run's options and --overwrite in place of --resume, or with another -o"
_CHECK = re.compile(r"check([1-9][0-9]*)\.safetensors")


@dataclass(frozen=True)
class Settings:
    """All that a training depends on; the defaults are the tutorial's recipe."""

    z_dim: int = 2
    epochs: int = 50  # in total, earlier parts of the run included
    batch_size: int = 100
    lr: float = 0.001
    beta: float = 1.0  # weight of the KL term in the objective; reported losses are unweighted
    lr_schedule: str = "constant"  # or cosine: down to 0 by the end of the last epoch
    kl_warmup: int = 0  # epochs over which the KL term's weight grows from 0 to beta
    seed: int = 0
    dataset: str = "mnist"  # as typed
    data_dir: str | None = None  # as typed
    precision: str = "auto"  # fp32 or bf16 once resolved
    device: str = "auto"
    checkpoint_every: int = 10  # epochs
    log_interval: int = 200  # batches; 0 = no lines within an epoch

    def __post_init__(self) -> None:
        """Raise UsageError for values that no training can have, such as a config.json may hold."""
        sound = {
            "z_dim": 1 <= self.z_dim <= MAX_Z_DIM,
            "epochs": 1 <= self.epochs <= MAX_EPOCHS,
            "batch_size": self.batch_size >= 1,
            "lr": 0 < self.lr <= MAX_FLOAT,
            "beta": 0 <= self.beta <= MAX_FLOAT,
            "lr_schedule": self.lr_schedule in ("constant", "cosine"),
            "kl_warmup": 0 <= self.kl_warmup <= MAX_EPOCHS,
            "seed": self.seed >= 0,
            "precision": self.precision in ("auto", "fp32", "bf16"),
            "device": re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?|mps", self.device) is not None,
            "checkpoint_every": self.checkpoint_every >= 1,
            "log_interval": self.log_interval >= 0,
        }
        for name, fine in sound.items():
            if not fine:
                raise UsageError(f"The setting {name} cannot be {getattr(self, name)}.")


def default_folder(dataset: str, z_dim: int) -> str:
    """`outputs/<dataset>-z<z_dim>`; of a data set given as a path, its name without `.npz`."""
    name = os.path.basename(os.path.abspath(dataset)).removesuffix(".npz") or "data"
    return os.path.join("outputs", f"{name}-z{z_dim}")


def read_config(folder: str) -> Settings:
    """The settings of the run in `folder`. Raises VaeError if the file is damaged or of a newer format."""
    path = os.path.join(folder, CONFIG)
    values = parse_json(read_regular(path, 2**20), path)
    version = values.pop("format", None) if isinstance(values, dict) else None
    if type(version) is int and version > FORMAT:
        raise VaeError(f"{path} was made by a newer vae (format {version}). Upgrade vaecli.")
    if type(version) is not int or version != FORMAT:
        raise VaeError(f"{path} is damaged: no format {FORMAT}. Restore it, or {ANEW}.")
    values = {"lr_schedule": "constant", "kl_warmup": 0} | values  # the first runs had neither of these
    for field in dataclasses.fields(Settings):
        if field.name not in values:
            raise VaeError(f"{path} is damaged: no field '{field.name}'. Restore it, or {ANEW}.")
    try:
        return read_record(Settings, values, path)
    except UsageError as error:
        raise VaeError(f"{path} cannot be used. {error} Put that right, or {ANEW}.") from error


def write_config(folder: str, settings: Settings) -> None:
    """Replace config.json whole."""
    values = {"format": FORMAT, **dataclasses.asdict(settings)}
    write_whole(os.path.join(folder, CONFIG), (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def resume_command(folder: str) -> str:
    """What goes on with the run in `folder`, for a shell."""
    return f"vae train --resume -o {shlex.quote(folder)}"


def check_path(folder: str, epoch: int) -> str:
    """Where the weights after `epoch` epochs lie."""
    return os.path.join(folder, f"check{epoch}.safetensors")


def is_run_file(path: str) -> bool:
    """Whether `path` has the name of one of a run's files, in any case, and lies in a run folder."""
    folder, name = os.path.split(os.path.realpath(path))
    return _is_own(name.lower()) and os.path.exists(os.path.join(folder, CONFIG))


def _is_own(name: str) -> bool:
    return name in (CONFIG, METRICS, STATE) or _CHECK.fullmatch(name) is not None


def run_files(folder: str) -> list[str]:
    """The files in `folder` that a training writes, by name; of other files there none."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise VaeError(f"Cannot use {folder} as a run folder: {reason(error)}. Choose another -o.") from error
    return [os.path.join(folder, name) for name in names if _is_own(name)]


def remove(files: Iterable[str]) -> None:
    """Remove files of a run. Raises VaeError where the system refuses."""
    for path in files:
        try:
            os.unlink(path)
        except OSError as error:
            raise VaeError(f"Cannot remove {path}: {reason(error)}. Choose another -o.") from error


def remove_leftovers(folder: str) -> None:
    """Remove what trainings that were killed in the middle of a file left; for the lock's owner alone.

    Files that others write here, such as figures, are not touched.
    """
    with contextlib.suppress(OSError):  # a folder that cannot be written: the next write says so
        for name in os.listdir(folder):
            if (match := LEFTOVER.fullmatch(name)) and _is_own(match[1]):
                os.unlink(os.path.join(folder, name))


def find_checkpoint(path: str | os.PathLike[str]) -> str:
    """A weights file as it is; of a run folder the `check<N>.safetensors` with the highest N.

    Raises CheckpointError if there is none.
    """
    path = os.fspath(path)
    try:
        if not os.path.isdir(path):
            return path
        epochs = [int(match[1]) for match in map(_CHECK.fullmatch, os.listdir(path)) if match]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {reason(error)}. Check the path.") from error
    if not epochs and os.path.exists(os.path.join(path, CONFIG)):
        raise CheckpointError(
            f"The run in {path} has no weights file yet. Wait for it, or go on with '{resume_command(path)}'."
        )
    if not epochs:
        runs = sorted(map(os.path.dirname, glob.glob(os.path.join(glob.escape(path), "*", "check*.safetensors"))))
        remedy = f"Name one of the runs in it, such as {runs[0]}." if runs else "Run 'vae train' first, or name a file."
        raise CheckpointError(f"{path} holds no check<N>.safetensors. {remedy}")
    return check_path(path, max(epochs))
