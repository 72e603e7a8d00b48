"""Weights and training state in safetensors files, checked to the last tensor before use.

A file may come from a stranger, so nothing in it is trusted: its header is parsed strictly, and
names, shapes, types and values must be those of the model it claims to be. The values are read only
once the file has the very size that they take.

torch is imported where tensors are needed, because `vae curves` reads histories without it.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from vaecli.errors import CheckpointError
from vaecli.files import open_regular, write_whole
from vaecli.metadata import Metadata
from vaecli.metrics import MAX_BYTES as MAX_HEADER
from vaecli.run import ANEW
from vaecli.text import parse_json

if TYPE_CHECKING:
    from torch import Tensor, device
    from torch.optim import Adam

    from vaecli.model import ConvVAE

MAX_BYTES = 2**32  # of a file: z_dim 32,768 with Adam's moments takes 3.7 GB
_ANOTHER, _RESTORE = "Use a checkpoint made by 'vae train'.", f"Restore it, or {ANEW}."


def save(path: str, weights: Mapping[str, "Tensor"], metadata: Metadata) -> None:
    """Write a weights file: the model's parameters in float32 and the metadata, whole or not at all."""
    write_whole(path, _to_bytes(weights, metadata.to_json()))


def load(path: str, device: "device") -> tuple["ConvVAE", Metadata]:
    """The model, in eval mode on `device`, and what is known of it. Raises CheckpointError."""
    import torch

    from vaecli.model import ConvVAE

    with torch.inference_mode(False), _opened(path) as file:  # also where it is on, the weights can be trained later
        metadata = Metadata.from_json(file.value, path, file.remedy)
        with torch.device("meta"):  # no weights are drawn, so no global generator moves
            model = ConvVAE(metadata.z_dim)
        model.load_state_dict(_tensors(file, _shapes(model)), assign=True)
        return model.to(device).eval(), metadata


def read_metadata(path: str) -> Metadata:
    """What a weights file says of itself, without torch. Raises CheckpointError."""
    with _opened(path) as file:
        return Metadata.from_json(file.value, path, file.remedy)


def save_state(path: str, model: "ConvVAE", optimizer: "Adam", metadata: Metadata) -> None:
    """Write all that an exact resume needs: weights, Adam's moments and step, and the metadata."""
    tensors = {}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        tensors[f"model.{name}"] = parameter.detach()
        tensors[f"exp_avg.{name}"] = moments["exp_avg"]
        tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
    step = int(moments["step"])  # the same for all
    write_whole(path, _to_bytes(tensors, metadata.to_json() | {"step": step}))


def load_state(path: str, model: "ConvVAE", optimizer: "Adam") -> Metadata:
    """Put a run's state back into a model and its optimizer. Raises CheckpointError.

    Tensors are copied into the layout (memory format) that the model has: other strides would run
    other kernels, and the resume would not be exact.
    """
    import torch

    with _opened(path, _RESTORE) as file:
        metadata, step = _state_metadata(file)
        if metadata.z_dim != model.z_dim:
            raise CheckpointError(f"{path} is the state of another run. {file.remedy}")
        shapes, parts = _shapes(model), ("model", "exp_avg", "exp_avg_sq")
        tensors = _tensors(file, {f"{part}.{name}": shape for part in parts for name, shape in shapes.items()})
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
    with _opened(path, _RESTORE) as file:
        return _state_metadata(file)[0]


def _state_metadata(file: "_Opened") -> tuple[Metadata, int]:
    """The metadata of a state file and Adam's step."""
    step = file.value.pop("step", None) if isinstance(file.value, dict) else None
    metadata = Metadata.from_json(file.value, file.path, file.remedy)
    if type(step) is not int or not 0 <= step < 2**53:
        raise CheckpointError(f"{file.path} is no state of a run. {file.remedy}")
    return metadata, step


def _to_bytes(tensors: Mapping[str, "Tensor"], value: dict[str, Any]) -> bytes:
    from safetensors.torch import save as to_bytes

    # One metadata key, with sorted keys inside: the library writes several in random order.
    metadata = {"vae": json.dumps(value, sort_keys=True, allow_nan=False)}
    data: bytes = to_bytes({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata)
    if int.from_bytes(data[:8], "little") > MAX_HEADER:  # what could not be read back is not written
        raise CheckpointError("The classes' names are too long for a checkpoint. Use fewer or shorter ones.")
    return data


@dataclass(frozen=True)
class _Opened:
    """A safetensors file of which the header has been read, and nothing else yet."""

    path: str
    size: int  # bytes
    head: bytes  # the first bytes, up to the values
    entries: dict[str, Any]  # what the header says of each tensor
    value: Any  # of the metadata key `vae`
    rest: BinaryIO  # the values
    remedy: str  # for whoever cannot use it


@contextlib.contextmanager
def _opened(path: str, remedy: str = _ANOTHER) -> Iterator[_Opened]:
    """Raises CheckpointError, also for duplicate keys and for a header that no file of ours has."""
    with open_regular(path, CheckpointError) as (stream, size):
        if not size:
            raise CheckpointError(f"{path} is empty. {remedy}")
        if size > MAX_BYTES:
            raise CheckpointError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}. {remedy}")
        head = stream.read(9)
        length = int.from_bytes(head[:8], "little")
        if not 0 < length <= size - 8 or head[8:] != b"{":
            raise CheckpointError(f"{path} is not a safetensors file, or it is cut short. {remedy}")
        if length > MAX_HEADER:
            raise CheckpointError(f"{path} has a header of {length:,} bytes. {remedy}")
        head += stream.read(length - 1)
        entries = parse_json(head[8:], path, CheckpointError)
        metadata = entries.pop("__metadata__", None)
        if not isinstance(metadata, dict) or metadata.keys() != {"vae"} or not isinstance(metadata["vae"], str):
            raise CheckpointError(f"{path} has no metadata of vae. {remedy}")
        yield _Opened(path, size, head, entries, parse_json(metadata["vae"], path, CheckpointError), stream, remedy)


def _shapes(model: "ConvVAE") -> dict[str, list[int]]:
    """The names and shapes of the model's parameters."""
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def _tensors(file: _Opened, shapes: Mapping[str, list[int]]) -> dict[str, "Tensor"]:
    """The tensors of a file, which must be exactly these names and shapes, float32 and finite."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    def bad(words: str) -> CheckpointError:
        return CheckpointError(f"{file.path} {words}. {file.remedy}")

    if missing := sorted(shapes.keys() - file.entries.keys()):
        raise bad(f"has no tensor '{missing[0]}'")
    if extra := sorted(file.entries.keys() - shapes.keys()):
        raise bad(f"has a tensor too many, '{extra[0]}'")
    for name, shape in shapes.items():
        entry = file.entries[name] if isinstance(file.entries[name], dict) else {}
        if entry.get("dtype") != "F32":
            raise bad(f"is not float32 throughout: '{name}' is {entry.get('dtype')}")
        if entry.get("shape") != shape:
            raise bad(f"does not fit the model: '{name}' is {entry.get('shape')}, not {shape}")
    expected = len(file.head) + sum(4 * math.prod(shape) for shape in shapes.values())
    if file.size != expected:
        raise bad(f"is damaged: it has {file.size:,} bytes, not {expected:,}")
    try:
        # With the header that was checked, whatever happened to the file since.
        tensors = from_bytes(file.head + file.rest.read(expected - len(file.head)))
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise bad(f"is damaged ({error})") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise bad(f"holds values that are not finite, in '{name}'")
    return tensors
