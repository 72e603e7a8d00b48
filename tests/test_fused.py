"""The fused kernels compute what they replace, on a CPU that pretends to be a GPU and on a GPU."""

from pathlib import Path

import pytest
import torch
from conftest import needs_cuda
from kernels_on_cpu import COMPILER, KernelsOnCPU

from vaecli import data, engine
from vaecli.by_hand import GradientsByHand
from vaecli.fused import MOST_Z, FusedGradients, Kernels, _compiled, compiles_for, gradients_by_hand
from vaecli.runtime import be_exact
from vaecli.schedule import Schedule
from vaecli.training import Trainer

needs_compiler = pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=needs_compiler), pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "z_dim", "count"),
    # One and several rounds of each loop over images, for up to 8 dimensions and for more.
    [
        (torch.float32, 1e-5, 1, 2),
        (torch.float32, 1e-5, 9, 17),
        (torch.bfloat16, 0.03, 5, 3),
        (torch.bfloat16, 0.03, 9, 1),
    ],
)
def test_fused_kernels_compute_what_they_replace(
    digits: data.Split, tmp_path: Path, device: str, dtype: torch.dtype, tolerance: float, z_dim: int, count: int
) -> None:
    place = torch.device(device)
    be_exact(place)
    model = engine.prepare(engine.new_model(z_dim, 0), place)
    kernels = KernelsOnCPU(tmp_path, count, z_dim, dtype) if device == "cpu" else Kernels(place, count, z_dim, dtype)
    plain, ours = GradientsByHand(model, count, dtype), FusedGradients(model, count, dtype, kernels)
    noise = torch.randn(len(digits.images), z_dim).to(place)
    order = torch.randperm(len(digits.images)).to(place)
    for rows in order[:count], order[-count:]:  # nothing of the first batch is left in the second
        for each in plain, ours:
            each.read(digits.images.to(place), noise, rows)
        terms, expected = (each(torch.tensor(0.7, device=place)) for each in (ours, plain))
        torch.testing.assert_close(terms, expected, rtol=tolerance / 10, atol=tolerance / 10)
        for name, gradient in plain.gradients.items():
            assert (ours.gradients[name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nvidia_s_compiler_takes_the_kernels(dtype: torch.dtype) -> None:
    if not compiles_for((9, 0)):
        pytest.skip("needs NVIDIA's compiler")
    assert _compiled((9, 0), 100, 4, dtype).startswith(b"\x7fELF")
    with pytest.raises(RuntimeError, match="array"):
        _compiled((9, 0), 100, -1, dtype)  # in the compiler's words
    assert not compiles_for((1, 0))


def test_a_cpu_has_no_kernels() -> None:
    assert type(gradients_by_hand(engine.new_model(2, 0), 1, torch.float32)) is GradientsByHand


@needs_cuda
@pytest.mark.parametrize(("z_dim", "kind"), [(MOST_Z, FusedGradients), (MOST_Z + 1, GradientsByHand)])
def test_a_gpu_trains_with_kernels(digits: data.Split, z_dim: int, kind: type[GradientsByHand]) -> None:
    cuda = torch.device("cuda")
    model = engine.prepare(engine.new_model(z_dim, 0), cuda)
    trainer = Trainer(model, digits.images.to(cuda), schedule=Schedule(1e-3), batch_size=40)
    trainer.epoch(1, 0)
    assert trainer._by_hand
    assert type(trainer._by_hand._compute) is kind
