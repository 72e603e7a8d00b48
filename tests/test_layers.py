"""The faster forms of layers compute what torch's own layers do, forwards and backwards."""

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import DEVICES
from torch import Tensor, nn

from vaecli.layers import ConvolutionToOne, Deconvolution, MapLinear


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    return torch.autograd.grad((y * weights).sum(), inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kernel", [(4, 4), (2, 3)])
@pytest.mark.parametrize("device", DEVICES)
def test_convolution_to_one_is_the_layer(
    training: bool, memory_format: torch.memory_format, kernel: tuple[int, int], device: str
) -> None:
    layer = ConvolutionToOne(8, 1, kernel).double().train(training).to(device)
    h = torch.randn(3, 8, 9, 7, dtype=torch.float64, device=device).to(memory_format=memory_format).requires_grad_()
    ours, theirs = layer(h), nn.Conv2d.forward(layer, h)
    torch.testing.assert_close(ours, theirs)
    parameters = (h, *layer.parameters())
    for one, other in zip(gradients(ours, *parameters), gradients(theirs, *parameters), strict=True):
        torch.testing.assert_close(one, other)


def test_convolution_to_one_keeps_channels_last() -> None:
    """A gradient in another memory format would make every layer before it slower."""
    layer = ConvolutionToOne(8, 1, 4).train()
    h = torch.randn(3, 8, 9, 9).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(h).sum(), h)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_convolution_to_one_sums_bf16_in_float32() -> None:
    layer = ConvolutionToOne(32, 1, 4).train()
    h = torch.randn(3, 32, 9, 9).bfloat16().requires_grad_()
    expected = nn.Conv2d.forward(layer, h.float())
    layer.weight.data = layer.weight.data.bfloat16()  # the bias stays float32
    logits = layer(h)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.02)
    assert {gradient.dtype for gradient in torch.autograd.grad(logits.sum(), [h, layer.weight])} == {torch.bfloat16}


@pytest.mark.parametrize("device", DEVICES)
def test_deconvolution_is_the_layer(device: str) -> None:
    layer = Deconvolution(6, 5, 3, stride=2).double().to(device)
    h = torch.randn(2, 6, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    ours, theirs = layer(h), nn.ConvTranspose2d.forward(layer, h)
    torch.testing.assert_close(ours, theirs)
    parameters = (h, *layer.parameters())
    for one, other in zip(gradients(ours, *parameters), gradients(theirs, *parameters), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("kind", "make", "size"),
    [
        (nn.ConvTranspose2d, lambda: Deconvolution(6, 5, 3, stride=2), (4, 3)),
        (nn.Conv2d, lambda: ConvolutionToOne(6, 1, (4, 2)), (9, 7)),
    ],
    ids=["deconvolution", "convolution_to_one"],
)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_forms_for_amx_have_the_layer_s_gradients(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[nn.Module],
    make: Callable[[], nn.Module],
    size: tuple[int, int],
    memory_format: torch.memory_format,
) -> None:
    monkeypatch.setattr("vaecli.layers.has_amx", lambda: True)
    layer = make().train().bfloat16()
    h = torch.randn(3, 6, *size).bfloat16().to(memory_format=memory_format).requires_grad_()
    ours = gradients(layer(h), h, *layer.parameters())
    exact = copy.deepcopy(layer).double()
    wide = h.detach().double().requires_grad_()
    theirs = gradients(kind.forward(exact, wide), wide, *exact.parameters())
    for one, other in zip(ours, theirs, strict=True):
        assert (one.double() - other).norm() <= 0.01 * other.norm() + 1e-3


@pytest.mark.parametrize("dims", [2, 101])  # few and more than a batch: the two ways to compute it
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_map_linear_is_the_layer_on_a_flat_map(dims: int, memory_format: torch.memory_format) -> None:
    layer = MapLinear(6 * 4 * 5, dims).double()
    h = torch.randn(5, 6, 4, 5, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    ours, theirs = layer(h), nn.Linear.forward(layer, h.flatten(1))
    torch.testing.assert_close(ours, theirs)
    parameters = (h, *layer.parameters())
    for one, other in zip(gradients(ours, *parameters), gradients(theirs, *parameters), strict=True):
        torch.testing.assert_close(one, other)
