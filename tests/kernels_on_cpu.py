"""The kernels of `vaecli/kernels.cu` on a CPU, compiled by the machine's C++ compiler."""

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

import vaecli

HERE, COMPILER = Path(__file__).parent, sys.platform == "linux" and (shutil.which("g++") or shutil.which("clang++"))
SOURCE = Path(vaecli.__file__).with_name("kernels.cu")


class KernelsOnCPU:
    """In place of `fused.Kernels`."""

    def __init__(self, folder: Path, batch_size: int, z_dim: int, dtype: torch.dtype) -> None:
        assert COMPILER
        library = folder / f"kernels-{batch_size}-{z_dim}-{dtype}.so"
        options = [
            f"-DB={batch_size}",
            f"-DZ={z_dim}",
            *["-DBF16"] * (dtype == torch.bfloat16),
            "-include",
            str(HERE / "cuda_on_cpu.hpp"),
        ]
        options += ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-x", "c++"]
        subprocess.run([COMPILER, *options, str(SOURCE), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))

    def __call__(self, name: str, blocks: tuple[int, int], threads: int, *tensors: Tensor) -> None:
        assert all(tensor.is_contiguous() for tensor in tensors)
        pointers = (ctypes.c_void_p * 12)(*(tensor.data_ptr() for tensor in tensors))
        self._library.launch(getattr(self._library, name), *blocks, threads, pointers)


class KernelsThatTouch:
    """In place of `fused.Kernels`, too: they read and write what they should, but nothing of sense, for `Races`.

    Arguments:
        weights: what those read that arrange weights, by address.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = list(weights)
        kernels = re.findall(r"__launch_bounds__\(\w+\) (\w+)\((.*?)\n\{", SOURCE.read_text(), re.DOTALL)
        self._written = {
            name: ["const" not in argument for argument in re.findall(r"([^,\n]*)__restrict__", arguments)]
            for name, arguments in kernels
        }

    def __call__(self, name: str, blocks: tuple[int, int], threads: int, *tensors: Tensor) -> None:
        for weight in self._weights if name.startswith("arrange") else []:
            weight.sum()
        for tensor, written in zip(tensors, self._written[name], strict=True):
            tensor.zero_() if written else tensor.sum()
