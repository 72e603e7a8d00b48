"""Device, precision and seeds."""

import hashlib

import pytest
import torch

from vaecli.errors import VaeError
from vaecli.runtime import choose_device, choose_precision, emulates_bf16, generator, memory_errors, noise

CPU = torch.device("cpu")


def test_seed_is_the_documented_hash() -> None:
    digest = hashlib.blake2b(b"5/order/2/0").digest()
    assert generator(5, "order", 2).initial_seed() == int.from_bytes(digest[:4], "big")


def test_purposes_epochs_and_blocks_are_apart() -> None:
    seeds = {
        generator(seed, purpose, epoch, block).initial_seed()
        for seed in (0, 1)
        for purpose in ("order", "noise")
        for epoch in (0, 1, 10)
        for block in (0, 1, 10)
    }
    assert len(seeds) == 36


def test_noise_blocks_are_standard_normal() -> None:
    draws = torch.cat([noise(0, "test", block, 4) for block in range(50)])
    torch.testing.assert_close(draws.mean(0), torch.zeros(4), rtol=0, atol=0.02)
    torch.testing.assert_close(draws.std(0), torch.ones(4), rtol=0, atol=0.02)


def test_explicit_precision_is_taken_as_it_is() -> None:
    assert [choose_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(("name", "precision"), [("amx_bf16", "bf16"), ("avx512_bf16", "fp32")])
def test_auto_precision_is_bf16_exactly_on_amx(monkeypatch: pytest.MonkeyPatch, name: str, precision: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert choose_precision("auto", CPU) == precision


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16", "avx2"])
def test_bf16_is_emulated_unless_there_are_instructions_for_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True, "avx512_f": True})
    assert emulates_bf16(CPU) == (name == "avx2")
    assert not emulates_bf16(torch.device("cuda"))


def test_auto_device_is_one_that_works() -> None:
    assert torch.ones(1, device=choose_device("auto")).item() == 1


@pytest.mark.parametrize("name", ["cuda:99", "cuda:128", "cuda:256", "mps"])
def test_missing_device_names_a_remedy(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has MPS")
    with pytest.raises(VaeError, match="--device cpu"):
        choose_device(name)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_auto_passes_over_an_mps_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a virtual Mac, which says that it has one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(VaeError, match="--device cpu"):
        choose_device("mps")


@pytest.mark.parametrize("name", ["xla", "meta", "tpu"])
def test_a_device_of_another_kind_is_an_expected_error(name: str) -> None:
    with pytest.raises(VaeError, match=f"^No device '{name}'. Use auto"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_device_that_does_not_work_is_an_expected_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(VaeError, match=r"^The CUDA device does not work: \w.*[^.]\. Use --device cpu\.$"):
        choose_device(name)


def test_out_of_memory_is_an_expected_error() -> None:
    with pytest.raises(VaeError, match="--batch-size"), memory_errors(CPU):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(VaeError, match=r"cuda.*--batch-size"), memory_errors(torch.device("cuda")):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 EiB")
    with pytest.raises(VaeError, match="Out of memory"), memory_errors(CPU):
        bytearray(1 << 62)
    with pytest.raises(VaeError, match="Out of memory"), memory_errors(torch.device("mps")):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB, max allowed: 9.07 GiB)")
    for words in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA_ERROR_OUT_OF_MEMORY"):
        with pytest.raises(VaeError, match=r"cuda.*--device cpu"), memory_errors(torch.device("cuda")):
            raise RuntimeError(words)
    for words in ("could not create a primitive", "std::bad_alloc"):  # seen under `ulimit -v`
        with pytest.raises(VaeError, match="Out of memory"), memory_errors(CPU):
            raise RuntimeError(words)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="a bug"), memory_errors(CPU):
        raise RuntimeError("a bug")
