"""Weights files: exact bytes out, and in only what is sound to the last tensor."""

import dataclasses
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Invoke, Tutorial, assert_one_line
from safetensors import safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

import vaecli
from vaecli import checkpoint, data, engine
from vaecli.errors import CheckpointError
from vaecli.run import find_checkpoint
from vaecli.services.resume import Trained

CPU = torch.device("cpu")


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the values of a safetensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: dict[str, Any] | bytes, values: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def test_file_holds_the_parameters_and_one_metadata_key(ckpt: str) -> None:
    model = engine.new_model(2, 0)
    with safe_open(ckpt, framework="pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}
        assert len(file.keys()) == 16
        assert file.metadata().keys() == {"vae"}
        text = file.metadata()["vae"]
    value = json.loads(text)
    assert json.dumps(value, sort_keys=True) == text
    assert value["format"] == 1
    assert value["model"] == {"name": "ConvVAE", "z_dim": 2}
    assert value["epoch"] == len(value["history"]) == 2
    assert value["training"]["precision"] == "fp32"
    assert set(value["history"][0]) == {
        f"{part}_{name}" for part in ("train", "test") for name in ("loss", "reconstruction", "kl")
    } | {"epoch"}
    tensors = load_file(ckpt)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert tensors["conv1.weight"].shape == (32, 1, 3, 3)
    assert tensors["conv3.bias"].shape == (1,)


def test_a_plain_torch_class_loads_it_strictly_and_agrees(ckpt: str, digits: data.Split) -> None:
    plain = Tutorial(2)
    plain.load_state_dict(load_file(ckpt), strict=True)
    x = engine.to_unit(digits.images, CPU)
    eps = torch.randn(len(x), 2)
    with torch.inference_mode():
        logits, posterior = vaecli.load_model(ckpt)(x, eps)
        for ours, theirs in zip((logits, *posterior), plain(x, eps), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_model_that_was_loaded_in_inference_mode_can_be_trained(ckpt: str) -> None:
    with torch.inference_mode():
        model = vaecli.load_model(ckpt)
    model.decode(torch.zeros(1, 2)).sum().backward()  # type: ignore[no-untyped-call]
    assert model.conv3.weight.grad is not None


def test_load_model_takes_a_run_folder_and_leaves_the_generator_alone(ckpt: str) -> None:
    before = torch.get_rng_state()
    model = vaecli.load_model(Path(ckpt).parent)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert model.z_dim == 2
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in model.parameters())


def test_the_highest_number_is_the_last_checkpoint(tmp_path: Path) -> None:
    for name in ("check9.safetensors", "check10.safetensors", "check11.safetensors.tmp", "check012.safetensors"):
        (tmp_path / name).touch()
    assert find_checkpoint(tmp_path) == str(tmp_path / "check10.safetensors")
    assert find_checkpoint(f"{tmp_path}/.") == f"{tmp_path}/./check10.safetensors"  # as typed


def test_saving_what_was_loaded_gives_the_same_bytes(ckpt: str, tmp_path: Path) -> None:
    model, metadata = checkpoint.load(ckpt, CPU)
    again = str(tmp_path / "again.safetensors")
    checkpoint.save(again, dict(model.named_parameters()), metadata)
    assert Path(again).read_bytes() == Path(ckpt).read_bytes()


def test_metadata_is_read_without_torch(ckpt: str) -> None:
    assert checkpoint.read_metadata(ckpt) == checkpoint.load(ckpt, CPU)[1]


Doctor = Callable[[bytes], bytes]


def with_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Doctor:
    def doctor(content: bytes) -> bytes:
        tensors = from_bytes(content)
        change(tensors)
        return to_bytes(tensors, split(content)[0]["__metadata__"])

    return doctor


def with_metadata(change: Callable[[dict[str, Any]], object]) -> Doctor:
    def doctor(content: bytes) -> bytes:
        header, values = split(content)
        value = json.loads(header["__metadata__"]["vae"])
        change(value)
        header["__metadata__"]["vae"] = json.dumps(value)
        return join(header, values)

    return doctor


def with_header(change: Callable[[dict[str, Any]], object]) -> Doctor:
    def doctor(content: bytes) -> bytes:
        header, values = split(content)
        change(header)
        return join(header, values)

    return doctor


def without_tensors(content: bytes) -> bytes:
    return join({"__metadata__": split(content)[0]["__metadata__"]}, b"")


def duplicate_key(content: bytes) -> bytes:
    header, values = split(content)
    text = json.dumps(header).encode()
    entry = json.dumps(header["conv1.bias"]).encode()
    return join(text[:-1] + b', "conv1.bias": ' + entry + b"}", values)


def duplicate_metadata_key(content: bytes) -> bytes:
    header, values = split(content)
    text = header["__metadata__"]["vae"]
    header["__metadata__"]["vae"] = text[:-1] + ', "epoch": 2}'
    return join(header, values)


def set_value(tensors: dict[str, torch.Tensor], value: float) -> None:
    tensors["conv2.weight"][0, 0, 0, 0] = value


BAD: dict[str, tuple[Doctor, str]] = {
    "empty": (lambda content: b"", "is empty"),
    "seven bytes": (lambda content: content[:7], "not a safetensors file"),
    "truncated header": (lambda content: content[:300], "cut short"),
    "truncated values": (lambda content: content[:-1], "is damaged"),
    "longer": (lambda content: content + b"x", "is damaged"),
    "JPEG": (lambda content: b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100), "not a safetensors file"),
    "pickle": (lambda content: pickle.dumps({"conv1.weight": [1.0]}), "not a safetensors file"),
    "header that claims 100 MB": (lambda content: struct.pack("<Q", 10**8) + content[8:], "cut short"),
    "deep JSON": (lambda content: join(b'{"a":' + b"[" * 100_000, b""), "nested too deeply"),
    "no metadata": (with_header(lambda header: header.pop("__metadata__")), "no metadata of vae"),
    "two metadata keys": (with_header(lambda h: h["__metadata__"].update(a="b")), "no metadata of vae"),
    "duplicate key": (duplicate_key, "a key stands twice"),
    "duplicate key in the metadata": (duplicate_metadata_key, "a key stands twice"),
    "newer format": (with_metadata(lambda value: value.update(format=2)), "newer vae"),
    "no format": (with_metadata(lambda value: value.pop("format")), "no format"),
    "another model": (with_metadata(lambda value: value["model"].update(name="MLP")), "another model"),
    "z_dim 3": (with_metadata(lambda value: value["model"].update(z_dim=3)), "does not fit the model"),
    "z_dim 10^18 and no tensors": (
        lambda content: with_metadata(lambda value: value["model"].update(z_dim=10**18))(without_tensors(content)),
        "its z_dim",
    ),
    "no tensors": (without_tensors, "no tensor 'conv1.bias'"),
    "z_dim 0": (with_metadata(lambda value: value["model"].update(z_dim=0)), "z_dim"),
    "z_dim 2^63": (with_metadata(lambda value: value["model"].update(z_dim=2**63)), "its z_dim"),
    "z_dim 10^30": (with_metadata(lambda value: value["model"].update(z_dim=10**30)), "its z_dim"),
    "epoch beyond the history": (with_metadata(lambda value: value.update(epoch=3)), "history differ"),
    "history not a list": (with_metadata(lambda value: value.update(history={})), "history is no list"),
    "infinite loss": (with_metadata(lambda v: v["history"][0].update(test_kl=1e999)), "damaged"),
    "another field": (with_metadata(lambda value: value.update(more=1)), "unknown field 'more'.* Upgrade"),
    "a field less": (with_metadata(lambda value: value.pop("epoch")), "other fields"),
    "class names of numbers": (with_metadata(lambda value: value.update(class_names=[1])), "class names"),
    "tensor missing": (with_tensors(lambda tensors: tensors.pop("conv3.bias")), "no tensor 'conv3.bias'"),  # type: ignore[arg-type]
    "tensor extra": (with_tensors(lambda tensors: tensors.update(extra=torch.ones(1))), "too many, 'extra'"),
    "misshapen": (with_tensors(lambda t: t.update({"conv3.bias": torch.ones(2)})), "does not fit the model"),
    "half precision": (with_tensors(lambda t: t.update({"conv3.bias": torch.ones(1).half()})), "not float32"),
    "NaN": (with_tensors(lambda tensors: set_value(tensors, float("nan"))), "not finite"),
    "infinity": (with_tensors(lambda tensors: set_value(tensors, float("inf"))), "not finite"),
    "entry of rubbish": (with_header(lambda header: header.update({"conv3.bias": 5})), "not float32"),
    "overlapping tensors": (with_header(lambda h: h["conv3.bias"].update(data_offsets=[0, 4])), "is damaged"),
}


@pytest.mark.parametrize(("doctor", "words"), BAD.values(), ids=BAD)
def test_an_unsound_file_is_refused(ckpt: str, tmp_path: Path, doctor: Doctor, words: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(doctor(Path(ckpt).read_bytes()))
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(str(path), CPU)


@pytest.mark.parametrize("command", ["test", "encode", "sample", "scatter", "curves"])
@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "truncated", "name\nwith lines"])
def test_every_command_answers_a_bad_checkpoint_with_one_line(
    ckpt: str, tmp_path: Path, invoke: Invoke, command: str, kind: str
) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "truncated":
        path.write_bytes(Path(ckpt).read_bytes()[:300])
    result = invoke(command, path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert kind.replace("\n", "\\n") in assert_one_line(result.stderr)


def test_equal_state_is_equal_bytes_and_comes_back_exactly(trained: Trained, tmp_path: Path) -> None:
    source = str(Path(trained.checkpoint).with_name("state.safetensors"))
    model = engine.prepare(engine.new_model(2, 9), CPU)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    metadata = checkpoint.load_state(source, model, optimizer)
    assert metadata.epoch == 2
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].stride() == parameter.stride()
        assert optimizer.state[parameter]["step"].item() == 20
    again = str(tmp_path / "state.safetensors")
    checkpoint.save_state(again, model, optimizer, metadata)
    assert Path(again).read_bytes() == Path(source).read_bytes()


def test_weights_are_no_state_and_state_is_no_weights(trained: Trained) -> None:
    state = str(Path(trained.checkpoint).with_name("state.safetensors"))
    model = engine.new_model(2, 0)
    with pytest.raises(CheckpointError, match="no state of a run"):
        checkpoint.load_state(trained.checkpoint, model, torch.optim.Adam(model.parameters()))
    with pytest.raises(CheckpointError, match="Name the run folder"):
        checkpoint.load(state, CPU)
    other = engine.new_model(3, 0)
    with pytest.raises(CheckpointError, match="another run"):
        checkpoint.load_state(state, other, torch.optim.Adam(other.parameters()))


def test_what_could_not_be_read_back_is_not_written(ckpt: str, tmp_path: Path) -> None:
    model, metadata = checkpoint.load(ckpt, CPU)
    metadata = dataclasses.replace(metadata, class_names=("\N{SNOWMAN}" * 255,) * 10_000)
    with pytest.raises(CheckpointError, match="too long for a checkpoint"):
        checkpoint.save(str(tmp_path / "a"), dict(model.named_parameters()), metadata)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("step", [-1, 10**400])
def test_a_step_that_no_run_takes_is_refused(trained: Trained, tmp_path: Path, step: int) -> None:
    header, values = split(Path(trained.checkpoint).with_name("state.safetensors").read_bytes())
    metadata = json.loads(header["__metadata__"]["vae"])
    header["__metadata__"]["vae"] = json.dumps(metadata | {"step": step})
    (tmp_path / "state").write_bytes(join(header, values))
    with pytest.raises(CheckpointError, match="is no state of a run"):
        checkpoint.read_state_metadata(str(tmp_path / "state"))
