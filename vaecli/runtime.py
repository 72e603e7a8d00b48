"""Where and how to compute: device, precision, seeds."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch

from vaecli.errors import VaeError
from vaecli.layers import has_amx


def choose_device(name: str) -> torch.device:
    """The device behind `auto|cpu|cuda|cuda:N|mps`; `auto` is the first of CUDA, MPS, CPU that is there.

    Raises VaeError if it is not there, or does not work.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _mps_works() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise VaeError(f"No device '{name}'. Use auto, cpu, cuda, cuda:N or mps.")
    if device.type == "cuda":
        there = torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
        if not there or str(device) != name:  # of a large index torch keeps 8 bits
            raise VaeError(f"No CUDA device '{name}' on this machine. Use --device cpu, or auto.")
        try:
            torch.zeros(1, device=device)
        except RuntimeError as error:  # a GPU too old for this build of torch, or one whose memory is full
            words = str(error).splitlines()[0].rstrip(".")
            raise VaeError(f"The CUDA device does not work: {words}. Use --device cpu.") from error
    if device.type == "mps" and not _mps_works():
        raise VaeError("No MPS device that works on this machine. Use --device cpu, or auto.")
    return device


def _mps_works() -> bool:
    try:
        return torch.backends.mps.is_available() and torch.zeros(1, device="mps").numel() == 1
    except RuntimeError:  # in a virtual machine there is one without memory
        return False


def be_exact(device: torch.device) -> None:
    """Let this process compute on CUDA as the promise says: the same bits each time, float32 in full."""
    if device.type == "cuda":  # pragma: no cover-cuda
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms, without importing torch's compiler
        torch.backends.cudnn.benchmark = False  # it would choose kernels by the clock, in each process anew
        # Else each new tensor is filled first: kernels for nothing.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False  # TF32 is float32 with 10 bits, and torch's default here


def choose_precision(name: str, device: torch.device) -> str:
    """`fp32` or `bf16`: `auto` is bf16 where the hardware multiplies it natively and well.

    That is a CPU with AMX, or CUDA from compute capability 8.0. Without AMX bf16 can be slower than
    float32. It is judged by capability alone, so the same machine always resolves the same way.
    """
    if name != "auto":
        return name
    if device.type == "cuda":  # pragma: no cover-cuda
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu" and has_amx():
        return "bf16"
    return "fp32"


def emulates_bf16(device: torch.device) -> bool:
    """Whether bf16 has no instructions on this CPU: a training step then took 10 times as long as in float32.

    547 against 56 ms: two Zen 3 cores, torch 2.14, lower quartile of 60 steps.
    """
    native = ("amx_bf16", "avx512_bf16", "bf16")  # Intel's tiles, Intel and AMD, ARM
    return device.type == "cpu" and not any(torch.cpu.get_capabilities().get(name, False) for name in native)


def generator(
    seed: int, purpose: str, epoch: int = 0, block: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator of its own for each purpose, epoch and block, so that none depends on another.

    Its seed is the first 4 bytes of blake2b over "seed/purpose/epoch/block": torch's CPU generator
    keeps 32 bits of its seed, and Python's `hash()` changes with every process. Only a training
    epoch draws on another device than the CPU: what is measured has the same noise everywhere.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{epoch}/{block}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:4], "big"))


NOISE_BLOCK = 1000  # images; fixed, so that the draws depend on no batch size and on no count


def noise(seed: int, purpose: str, block: int, z_dim: int, draw: int = 0) -> torch.Tensor:
    """Standard normal noise (1000, Z) of one block: rows `1000 * block` onwards of an endless table, one a draw."""
    return torch.randn(NOISE_BLOCK, z_dim, generator=generator(seed, purpose, draw, block))


# In words of RuntimeErrors: torch's allocators for two devices, C++ itself, oneDNN; CUDA, cuBLAS, CUDA's driver.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "MPS backend out of memory", "std::bad_alloc", "could not create a primitive")
_OUT_OF_CUDA_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "ALLOC_FAILED", "CUDA_ERROR_OUT_OF_MEMORY")


@contextlib.contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Turn running out of memory into a VaeError with a remedy."""
    remedy = "train with a smaller --batch-size."
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if any(words in str(error) for words in _OUT_OF_CUDA_MEMORY):
            raise VaeError(f"Out of memory on {device}. Use another device or --device cpu, or {remedy}") from error
        if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
            raise VaeError(f"Out of memory. Free some, or {remedy}") from error
        raise
