"""Weights and training state in safetensors files, checked to the last tensor before use.

A file may come from a stranger, so nothing in it is trusted: it is read as bytes, its header is
parsed strictly, and names, shapes, types and values must be those of the model it claims to be.

torch is imported where tensors are needed, because `vae curves` reads histories without it.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaecli.errors import CheckpointError
from vaecli.files import parse_json, read_record, read_regular, write_whole
from vaecli.metrics import EpochRecord, read_history
from vaecli.run import FORMAT

if TYPE_CHECKING:
    from torch import Tensor, device
    from torch.optim import Adam

    from vaecli.model import ConvVAE

MAX_BYTES = 2**32  # of a file: z_dim 32,768 with Adam's moments takes 3.7 GB
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
    def from_json(cls, value: Any, what: str) -> "Metadata":
        """Raises CheckpointError if the value is of another model, of a newer format or damaged."""

        def damaged(words: str) -> CheckpointError:
            return CheckpointError(f"{what} is damaged: {words}. Use another checkpoint.")

        if not isinstance(value, dict) or type(value.get("format")) is not int:
            raise damaged("no format in its metadata")
        if value["format"] > FORMAT:
            raise CheckpointError(f"{what} was made by a newer vae (format {value['format']}). Upgrade vaecli.")
        wanted = {"format", "model", "training", "data", "class_names", "epoch", "history"}
        if value["format"] != FORMAT or value.keys() != wanted:
            raise damaged("its metadata has other fields than format 1")
        model, names, epoch = value["model"], value["class_names"], value["epoch"]
        if not isinstance(model, dict) or model.keys() != {"name", "z_dim"} or model["name"] != _MODEL:
            raise CheckpointError(f"{what} holds another model. Use a checkpoint made by 'vae train'.")
        if type(model["z_dim"]) is not int or model["z_dim"] < 1:
            raise damaged("its z_dim is no positive integer")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise damaged("its class names are no list of strings")
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


def save(path: str, weights: Mapping[str, "Tensor"], metadata: Metadata) -> None:
    """Write a weights file: the model's parameters in float32 and the metadata, whole or not at all."""
    write_whole(path, _to_bytes(weights, metadata.to_json()))


def load(path: str, device: "device") -> tuple["ConvVAE", Metadata]:
    """The model, in eval mode on `device`, and what is known of it. Raises CheckpointError."""
    import torch

    from vaecli.model import ConvVAE

    data = _read(path)
    header, value = _header(data, path)
    metadata = Metadata.from_json(value, path)
    weights = _tensors(data, header, _shapes(metadata.z_dim), path)
    with torch.device("meta"):  # no weights are drawn, so no global generator moves
        model = ConvVAE(metadata.z_dim)
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval(), metadata


def read_metadata(path: str) -> Metadata:
    """What a weights file says of itself, without torch. Raises CheckpointError."""
    return Metadata.from_json(_header(_read(path), path)[1], path)


def save_state(path: str, model: "ConvVAE", optimizer: "Adam", metadata: Metadata) -> None:
    """Write all that an exact resume needs: weights, Adam's moments and step, and the metadata."""
    tensors, step = {}, 0
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        step = int(moments["step"])
        tensors[f"model.{name}"] = parameter.detach()
        tensors[f"exp_avg.{name}"] = moments["exp_avg"]
        tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
    write_whole(path, _to_bytes(tensors, metadata.to_json() | {"step": step}))


def load_state(path: str, model: "ConvVAE", optimizer: "Adam") -> Metadata:
    """Put a run's state back into a model and its optimizer. Raises CheckpointError.

    Tensors are copied into the layout (memory format) that the model has: other strides would run
    other kernels, and the resume would not be exact.
    """
    import torch

    data = _read(path)
    header, value = _header(data, path)
    metadata, step = _state_metadata(value, path)
    if metadata.z_dim != model.z_dim:
        raise CheckpointError(f"{path} is the state of another run. Begin anew with --overwrite.")
    shapes = _shapes(metadata.z_dim)
    parts = ("model", "exp_avg", "exp_avg_sq")
    tensors = _tensors(data, header, {f"{part}.{n}": s for part in parts for n, s in shapes.items()}, path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": torch.empty_like(parameter).copy_(tensors[f"exp_avg.{name}"]),
                "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"exp_avg_sq.{name}"]),
            }
    return metadata


def read_state_metadata(path: str) -> Metadata:
    """What a state file says of itself, without torch. Raises CheckpointError."""
    return _state_metadata(_header(_read(path), path)[1], path)[0]


def _state_metadata(value: Any, path: str) -> tuple[Metadata, int]:
    """The metadata of a state file and Adam's step."""
    step = value.pop("step", None) if isinstance(value, dict) else None
    metadata = Metadata.from_json(value, path)
    if type(step) is not int or not 0 <= step < 2**53:
        raise CheckpointError(f"{path} is no state of a run. Begin anew with --overwrite.")
    return metadata, step


def _to_bytes(tensors: Mapping[str, "Tensor"], value: dict[str, Any]) -> bytes:
    from safetensors.torch import save as to_bytes

    # One metadata key, with sorted keys inside: the library writes several in random order.
    metadata = {"vae": json.dumps(value, sort_keys=True, allow_nan=False)}
    return to_bytes({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def _read(path: str) -> bytes:
    data = read_regular(path, MAX_BYTES, CheckpointError)
    if not data:
        raise CheckpointError(f"{path} is empty. Restore it, or use another one.")
    return data


def _header(data: bytes, path: str) -> tuple[dict[str, Any], Any]:
    """The tensors' entries and the value of the metadata key `vae`; duplicate keys are refused."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8 or data[8:9] != b"{":
        raise CheckpointError(
            f"{path} is not a safetensors file, or it is cut short. Use a checkpoint made by 'vae train'."
        )
    header = parse_json(data[8 : 8 + length], path, CheckpointError)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {"vae"} or not isinstance(metadata["vae"], str):
        raise CheckpointError(f"{path} has no metadata of vae. Use a checkpoint made by 'vae train'.")
    return header, parse_json(metadata["vae"], path, CheckpointError)


def _shapes(z_dim: int) -> dict[str, list[int]]:
    """The names and shapes of the model's parameters."""
    import torch

    from vaecli.model import ConvVAE

    try:
        with torch.device("meta"):
            parameters = ConvVAE(z_dim).named_parameters()
    except (RuntimeError, TypeError):  # a z_dim beyond what the size of a tensor can be
        return {}
    return {name: list(parameter.shape) for name, parameter in parameters}


def _tensors(data: bytes, header: dict[str, Any], shapes: Mapping[str, list[int]], path: str) -> dict[str, "Tensor"]:
    """The tensors of a file, which must be exactly these names and shapes, float32 and finite."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    def bad(words: str) -> CheckpointError:
        return CheckpointError(f"{path} {words}. Use a checkpoint made by 'vae train'.")

    if missing := sorted(shapes.keys() - header.keys()):
        raise bad(f"has no tensor '{missing[0]}'")
    if extra := sorted(header.keys() - shapes.keys()):
        raise bad(f"has a tensor too many, '{extra[0]}'")
    for name, shape in shapes.items():
        entry = header[name] if isinstance(header[name], dict) else {}
        if entry.get("dtype") != "F32":
            raise bad(f"is not float32 throughout: '{name}' is {entry.get('dtype')}")
        if entry.get("shape") != shape:
            raise bad(f"does not fit the model: '{name}' is {entry.get('shape')}, not {shape}")
    try:
        tensors = from_bytes(data)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise bad(f"is damaged ({error})") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise bad(f"holds values that are not finite, in '{name}'")
    return tensors
