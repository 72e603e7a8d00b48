"""What lies between the products of a step by hand as one kernel each, from `kernels.cu`, on a GPU.

ATen's kernels do one thing each, so that there they are a chain of some 50, of 2 to 10 us whatever they do,
while the GPU is all but empty. With these a step of 100 images takes 0.16 ms in bf16 and 0.50 in float32, where it
took 0.24 and 0.58 with the best that ATen's could do (H200, torch 2.11).

They are compiled when a training begins, for its GPU and sizes, by the compiler that comes with torch, NVRTC: in
about a second, and in 0.1 the next time where it could keep what it made.
"""

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vaecli.arranged import Heads, Layers, arranged_heads, arranged_layers
from vaecli.by_hand import GradientsByHand
from vaecli.model import ConvVAE

MOST_Z = 32  # a thread keeps two numbers for each
MOST_IMAGES = 2**31 // (64 * 264)  # of a batch, whose windows the kernels count in 32 bits
OF_AN_IMAGE = 7 * 64  # threads of a block that computes an image, each a channel of a column


class Kernels:
    """The functions of `kernels.cu`, for a device that `compiles_for` says yes to.

    Arguments:
        batch_size, z_dim: up to MOST_IMAGES and MOST_Z.
        dtype: bfloat16 or float32.

    Raises RuntimeError with the compiler's words if they do not compile.
    """

    def __init__(self, device: torch.device, batch_size: int, z_dim: int, dtype: torch.dtype) -> None:
        from cuda.bindings import driver

        self._driver, self._device = driver, device
        with torch.cuda.device(device):
            code = _compiled(torch.cuda.get_device_capability(), batch_size, z_dim, dtype)
            self._module = _checked(driver.cuModuleLoadData(code))

    def __call__(self, name: str, blocks: tuple[int, int], threads: int, *tensors: Tensor) -> None:
        """Launch one on the current stream."""
        assert all(tensor.is_contiguous() for tensor in tensors)
        function = _checked(self._driver.cuModuleGetFunction(self._module, name.encode()))
        arguments = tuple(tensor.data_ptr() for tensor in tensors), (ctypes.c_void_p,) * len(tensors)
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream().cuda_stream
            _checked(self._driver.cuLaunchKernel(function, *blocks, 1, threads, 1, 1, 0, stream, arguments, 0))


# Once for all trainings in a process: a module stays loaded, for a graph may have its functions.
_kernels = cache(Kernels)


def compiles_for(capability: tuple[int, int]) -> bool:
    """Whether there is a compiler, which comes with torch on Linux, and it knows GPUs of this compute capability."""
    try:
        from cuda.bindings import nvrtc

        error, known = nvrtc.nvrtcGetSupportedArchs()
    except (ImportError, RuntimeError):  # no bindings; no library
        return False
    return not error.value and 10 * capability[0] + capability[1] in known


@cache
def _compiled(capability: tuple[int, int], batch_size: int, z_dim: int, dtype: torch.dtype) -> bytes:
    """Machine code for GPUs of this compute capability."""
    from cuda.bindings import nvrtc

    major, minor = capability
    options = [f"--gpu-architecture=sm_{major}{minor}", f"-DB={batch_size}", f"-DZ={z_dim}"]
    options += ["-DBF16"] * (dtype == torch.bfloat16)
    source = files("vaecli").joinpath("kernels.cu").read_bytes()
    program = _checked(nvrtc.nvrtcCreateProgram(source, b"kernels.cu", 0, [], []))
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if error.value:
        log = bytes(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"{error.name}: {log.decode()}")
    code = bytes(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return code


def _checked(answer: tuple[Any, ...]) -> Any:
    """The value of a call of CUDA's; raises RuntimeError if it failed."""
    error, *values = answer
    if error.value:
        raise RuntimeError(error.name)
    return values[0] if values else None


class FusedGradients(GradientsByHand):
    """`GradientsByHand` with `kernels`, to which it hands a function's name, blocks, threads of each, and tensors."""

    def __init__(self, model: ConvVAE, batch_size: int, dtype: torch.dtype, kernels: Callable[..., None]) -> None:
        super().__init__(model, batch_size, dtype)
        self._kernels, self._count = kernels, batch_size
        addresses = {name: addresses_of(weight) for name, weight in self.weights.items()}
        self._for_layers = Arrangement(arranged_layers(addresses), dtype)
        self._for_heads = Arrangement(arranged_heads(addresses), self._wide)

    @torch.no_grad()
    def read(self, images: Tensor, noise: Tensor, rows: Tensor) -> None:
        """As of `GradientsByHand`."""
        batch = self._x, self._image, self._windows0, self._eps
        self._kernels("read_batch", (self._count, 1), 256, images, noise, rows, *batch)

    def _layers(self) -> Layers:
        what = self._for_layers
        self._kernels("arrange", (len(what.memory) // 256, 1), 256, what.sources, what.memory)
        return Layers(*what.tensors)

    def _heads(self) -> Heads:
        what = self._for_heads
        self._kernels("arrange_wide", (len(what.memory) // 256, 1), 256, what.sources, what.memory)
        return Heads(*what.tensors)

    def _conv1(self, w: Layers) -> tuple[Tensor, Tensor]:
        h1, rows = self._new(self._count * 14 * 14, 32), self._windows1.rows
        self._kernels("conv1", (self._count, 2), OF_AN_IMAGE, self._image, w.conv1, w.conv1_bias, h1, rows)
        return h1, rows[:, :288]

    def _through_codes(self, h2: Tensor, heads: Heads, w: Layers) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codes = torch.empty(self._count, len(heads.bias), device=self._device)
        reach, h3, rows = torch.empty_like(self._eps), self._new(self._count, 3136), self._windows3.rows
        given = h2, *heads, self._eps, w.linear2, w.linear2_bias
        self._kernels("through_codes", (self._count, 1), OF_AN_IMAGE, *given, codes, reach, self._z, h3, rows)
        return codes, reach, h3, rows[:, :256]

    def _windows_of_phases(self, phases4: Tensor) -> Tensor:
        rows = self._windows4.rows
        self._kernels("windows_of_phases", (self._units, 1), 256, phases4, rows)
        return rows[:, :256]

    def _logits_and_slopes(self, planes: Tensor) -> Tensor:
        logits, bias = torch.empty_like(self._x), self.weights["conv3.bias"]
        self._kernels("logits_and_slopes", (self._count, 7), 112, planes, bias, self._x, logits, self._slopes)
        return logits

    def _back_through_conv3(self, w: Layers, phases5: Tensor) -> tuple[Tensor, Tensor]:
        around, d5 = self._new(self._count * 1024, 16), torch.empty_like(phases5)
        self._kernels("back_through_conv3", (4 * self._count, 1), 256, self._slopes, w.mirrored, phases5, around, d5)
        return around, d5

    def _gradient_of_phases(self, d_map4: Tensor, phases4: Tensor) -> Tensor:
        d4 = torch.empty_like(phases4)
        self._kernels("gradient_of_phases", (self._units, 1), 256, d_map4, phases4, d4)
        return d4

    def _back_through_codes(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, h3, _, codes, _, _, _, h2 = given
        gradients = torch.empty_like(h3), torch.empty_like(codes), torch.empty_like(h2)
        self._kernels("back_through_codes", (self._count, 1), OF_AN_IMAGE, *given, *gradients)
        return gradients

    def _store_at_codes(self, h2: Tensor, d_codes: Tensor, d3: Tensor) -> None:
        names = "linear1mean", "linear1logvar", "linear2"
        gradients = (self.gradients[f"{name}.{what}"] for name in names for what in ("weight", "bias"))
        blocks = 50, d_codes.shape[1] * 3 // 16 + 1  # 49 pixels and the biases; 3Z + 1 of each, 8 at once
        self._kernels("gradients_at_codes", blocks, 512, h2, d_codes, d3, self._z, *gradients)

    def _store_conv1(self, d_map1: Tensor, h1: Tensor, windows0: Tensor) -> None:
        of_images = torch.empty(self._count, 10, 32, device=self._device)
        self._kernels("gradients_of_conv1", (self._count, 1), OF_AN_IMAGE, d_map1, h1, windows0, of_images)
        gradients = self.gradients["conv1.weight"], self.gradients["conv1.bias"]
        self._kernels("sum_of_conv1", (10, 1), 512, of_images, *gradients)

    def _new(self, *size: int) -> Tensor:
        return torch.empty(*size, dtype=self.dtype, device=self._device)

    @property
    def _units(self) -> int:
        """Blocks of 256 threads, one for each 16 bytes of all (16, 16) pixels' 64 channels."""
        return self._count * 64 * self.dtype.itemsize // 16


class Arrangement:
    """Where weights come from that are wanted in another order, and memory for them.

    Arguments:
        sources: a tensor for each that is wanted, with the address of each weight, or 0 for a 0.
        dtype: of the memory.

    `sources` has those of all in whole blocks of 256, and `memory` the weights; `tensors` are its parts.
    """

    def __init__(self, sources: Iterable[Tensor], dtype: torch.dtype) -> None:
        wanted = list(sources)
        flat = torch.cat([each.flatten() for each in wanted])
        self.sources = F.pad(flat, (0, -len(flat) % 256))
        self.memory = torch.empty(len(self.sources), dtype=dtype, device=flat.device)
        parts = torch.split(self.memory[: len(flat)], [each.numel() for each in wanted])
        self.tensors = [part.view(each.shape) for part, each in zip(parts, wanted, strict=True)]


def addresses_of(weight: Tensor) -> Tensor:
    """The address of each number of a tensor without gaps."""
    steps = torch.arange(weight.numel(), device=weight.device) * weight.itemsize
    return (weight.data_ptr() + steps).as_strided(weight.shape, weight.stride())


def gradients_by_hand(model: ConvVAE, batch_size: int, dtype: torch.dtype) -> GradientsByHand:
    """The fastest for this model, its device and these sizes."""
    device, wide = model.conv1.weight.device, model.conv1.weight.dtype
    fits = wide == torch.float32 and batch_size <= MOST_IMAGES and model.z_dim <= MOST_Z
    if fits and device.type == "cuda" and compiles_for(torch.cuda.get_device_capability(device)):
        return FusedGradients(model, batch_size, dtype, _kernels(device, batch_size, model.z_dim, dtype))
    return GradientsByHand(model, batch_size, dtype)
