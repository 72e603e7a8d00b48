"""The decoder as products computes what its layers do."""

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES
from torch import nn

from vaecli import engine, phases
from vaecli.runtime import be_exact


def test_a_transposed_convolution_is_a_convolution_in_phases() -> None:
    layer = nn.ConvTranspose2d(6, 5, 3, stride=2).double()
    h = torch.randn(2, 6, 4, 7, dtype=torch.float64)
    assert layer.bias is not None
    of_phases = F.conv2d(h, phases.as_convolution(layer.weight), layer.bias.repeat(4), padding=1)
    pixels = of_phases.view(2, 2, 2, 5, 5, 8).permute(0, 3, 4, 1, 5, 2).reshape(2, 5, 10, 16)
    torch.testing.assert_close(pixels[..., :-1, :-1], layer(h))
    assert torch.equal(phases.as_deconvolution(phases.as_convolution(layer.weight)), layer.weight)


def test_windows_are_those_of_a_convolution() -> None:
    weight = torch.randn(5, 8, 3, 3).to(memory_format=torch.channels_last)
    windows = phases.Windows(3, (9, 7, 8), 3, 2, like=weight, more=4)
    windows.rows[:, -4:] = 7
    for _ in range(2):  # nothing is left of another map, and the caller's columns stay
        h = torch.randn(3, 8, 9, 7)
        rows = windows.of(h.permute(0, 2, 3, 1).contiguous())
        product = (rows @ phases.in_rows(weight).t()).view(*windows.shape, 5).permute(0, 3, 1, 2)
        torch.testing.assert_close(product, F.conv2d(h, weight, stride=2, padding=1))
        assert windows.rows[:, -4:].eq(7).all()


@pytest.mark.parametrize("device", DEVICES)
def test_logits_are_those_of_the_model(device: str) -> None:
    place = torch.device(device)
    be_exact(place)
    model = engine.prepare(engine.new_model(3, 0), place).eval()
    z = torch.randn(50, 3, device=place)
    expected = model.decode(z)  # with gradients, so by the layers
    with torch.inference_mode():
        layers = model.linear2, model.deconv1, model.deconv2, model.conv3
        torch.testing.assert_close(phases.logits(*layers, z), expected)
        torch.testing.assert_close(model.decode(z), expected)
