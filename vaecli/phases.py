"""The decoder's convolutions as products of matrices, which a GPU computes fastest.

A product takes all windows of a map at once, as rows. 1,000 images in float32 take 0.38 ms for deconv2 as
a product and 0.15 for its windows, where cuDNN takes 0.63 for the same convolution and 3.4 for the transposed
one (H200, torch 2.11). Training needs the windows again, for the gradients of the weights.

Maps are (B, H, W, C) here, in one piece, and C numbers are whole units of 16 bytes.
"""

import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaecli.layers import sum_of_taps


def logits(
    linear2: nn.Linear, deconv1: nn.ConvTranspose2d, deconv2: nn.ConvTranspose2d, conv3: nn.Conv2d, z: Tensor
) -> Tensor:
    """The decoder's layers with their ReLUs, without gradients: (B, Z) -> (B, 1, 28, 28)."""
    assert deconv1.bias is not None
    assert deconv2.bias is not None
    assert conv3.bias is not None
    weight, bias = to_map3(linear2.weight, linear2.bias)
    map3 = (z @ weight.t()).add_(bias).relu_().view(-1, 7, 7, 64)
    windows3, windows4 = (Windows(len(z), (size, size, 64), 2, like=map3) for size in (7, 15))
    phases4 = relu_product(windows3.of(map3), in_rows(as_convolution(deconv1.weight)), deconv1.bias.repeat(4))
    windows = windows4.of(to_map4(phases4))
    phases5 = relu_product(windows, in_rows(as_convolution(deconv2.weight)), deconv2.bias.repeat(4))
    return to_logits(phases5.view(-1, 32) @ conv3.weight[0].flatten(1), conv3.bias).unsqueeze(1)


def to_map4(phases4: Tensor) -> Tensor:
    """deconv1's phases (B*8*8, 4*64) -> its map (B, 15, 15, 64)."""
    return shuffled(phases4.view(-1, 8, 8, 2, 2, 64)).view(-1, 16, 16, 64)[:, :15, :15]


def to_logits(planes: Tensor, bias: Tensor) -> Tensor:
    """Products of deconv2's phases with conv3's taps (B*16*16*4, 16) -> logits (B, 28, 28), in the bias's type."""
    planes = shuffled(planes.view(-1, 16, 16, 2, 2, 16)).view(-1, 32, 32, 4, 4)
    return sum_of_taps(planes, bias.dtype)[:, :28, :28] + bias


class Windows:
    """All windows of a map (B, H, W, C) with padding 1, for a convolution as a product: as its weights are `in_rows`.

    Arguments:
        batch, shape: B and (H, W, C).
        size: rows and columns of a window.
        like: a tensor of the type and on the device of the map.
        more: columns besides, for the caller, in whole units of 16 bytes.

    `rows` is (B * H' * W', size * size * C, and more): memory that is kept, as the zeros around the map are.
    """

    def __init__(
        self, batch: int, shape: tuple[int, int, int], size: int, stride: int = 1, *, like: Tensor, more: int = 0
    ) -> None:
        height, width, channels = shape
        self._size, self._stride, self._columns = size, stride, size * size * channels
        self._like, self._shape = like, (batch, height + 2, width + 2, channels)
        self.shape = batch, (height + 2 - size) // stride + 1, (width + 2 - size) // stride + 1
        self.rows = like.new_empty(math.prod(self.shape), self._columns + more)

    @cached_property
    def _bordered(self) -> Tensor:
        """Memory for the map and zeros around it, which `fused` does without."""
        return self._like.new_zeros(self._shape)

    def of(self, h: Tensor) -> Tensor:
        """Those of this map (B, H, W, C): (B * H' * W', size * size * C)."""
        in_units(self._bordered[:, 1:-1, 1:-1]).copy_(in_units(h))
        windows = in_units(self._bordered).unfold(1, self._size, self._stride).unfold(2, self._size, self._stride)
        rows = self.rows[:, : self._columns]
        windows = windows.permute(0, 1, 2, 4, 5, 3)  # (B, H', W', size, size, units of C)
        in_units(rows).view(windows.shape).copy_(windows)
        return rows


def relu_product(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """ReLU of a linear layer: (N, C), (O, C), (O,) -> (N, O). Whether a NaN gets through is the library's choice."""
    return torch._addmm_activation(bias, h, weight.t())


def to_map3(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """linear2's (3136, Z) and (3136,), of pixels in the order (C, H, W), for the order (H, W, C); copies."""
    return weight.view(64, 49, -1).transpose(0, 1).reshape(3136, -1), bias.view(64, 49).t().flatten()


def in_rows(weight: Tensor) -> Tensor:
    """A channels-last convolution's weights (O, C, H, W) as its windows' rows take them: (O, H * W * C)."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def as_taps(rows: Tensor, size: int) -> Tensor:
    """The inverse of `in_rows`: (O, size * size * C) -> (O, C, size, size), channels-last."""
    return rows.view(len(rows), size, size, -1).permute(0, 3, 1, 2)


def as_convolution(weight: Tensor) -> Tensor:
    """Weights (4 * O, C, 2, 2) of a convolution that does the work of those (C, O, 3, 3) of a transposed one.

    With stride 2 every second row of what a transposed convolution yields, and every second column, is
    a convolution of its own. Here these four phases lie behind each other in the channels (Shi et
    al., 2016). With padding 1 a map (H, W) becomes (H + 1, W + 1), of whose pixels the last odd row
    and column lie outside. Channels-last.
    """
    inputs, outputs = weight.shape[:2]
    weight = F.pad(weight, (0, 1, 0, 1)).roll((2, 2), (2, 3)).view(inputs, outputs, 2, 2, 2, 2)
    weight = weight.permute(3, 5, 1, 0, 2, 4).reshape(4 * outputs, inputs, 2, 2)
    return weight.contiguous(memory_format=torch.channels_last)


def as_deconvolution(weight: Tensor) -> Tensor:
    """The inverse of `as_convolution`: (4 * O, C, 2, 2) -> (C, O, 3, 3)."""
    outputs, inputs = len(weight) // 4, weight.shape[1]
    weight = weight.reshape(2, 2, outputs, inputs, 2, 2).permute(3, 2, 4, 0, 5, 1)
    return weight.reshape(inputs, outputs, 4, 4).roll((-2, -2), (2, 3))[:, :, :3, :3]


def shuffled(pixels: Tensor) -> Tensor:
    """(B, H, W, 2, 2, C), each place's four phases, as pixels (B, H, 2, W, 2, C), and the reverse."""
    return in_units(pixels.transpose(2, 3)).contiguous().view(pixels.dtype)


def in_units(pixels: Tensor) -> Tensor:
    """(..., C) as units of 16 bytes, by which it is copied in a third of the time that single numbers take."""
    return pixels.view(torch.complex128)
