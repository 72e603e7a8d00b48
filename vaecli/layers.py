"""The network's layers in forms that are computed faster: same parameters, same values up to rounding.

Each is torch's own layer to whatever hangs on it: hooks, pruning, parametrisations.

Figures: milliseconds of 100 images, two Zen 4 cores, torch 2.15, lower quartile of 40 calls; with AMX, two Xeon
cores of 2023, torch 2.11, medians of 13 interleaved calls.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


class MapLinear(nn.Linear):
    """A linear layer on a flattened map: (B, C, H, W) -> (B, O), with the weights reordered in place of the map.

    A channels-last map must be copied to be flattened; the weights of few dimensions are smaller.
    Encoding takes 1.6 instead of 2.2; training does not notice.
    """

    def forward(self, h: Tensor) -> Tensor:
        """`nn.Linear` on `h.flatten(1)`; a flat h will do."""
        if h.dim() != 4 or self.out_features > 100:  # images of a usual batch
            return super().forward(h.flatten(1))
        weight = self.weight.view(-1, *h.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        h = h.permute(0, 2, 3, 1).flatten(1)
        if h.device.type == "cuda":  # pragma: no cover-cuda
            # With a bias cuBLAS looks for a kernel each time, 0.12 instead of 0.07 ms (Xeon, torch 2.11).
            return h @ weight.t() + self.bias
        return F.linear(h, weight, self.bias)


class Deconvolution(nn.ConvTranspose2d):
    """A transposed convolution of 3 x 3 taps with stride 2 and no padding.

    The bias is added afterwards and in place, so that its gradient is a plain sum. Inside torch's own kernel for CPUs
    that gradient costs more than those of data and weights together: for deconv2 1.6 instead of 0.15 in
    float32, 4.9 instead of 0.14 in bf16.
    """

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]  # no output size
        """(B, C, H, W) -> (B, O, 2 H + 1, 2 W + 1)."""
        assert self.bias is not None
        small = h.shape[2] * h.shape[3] < 100  # deconv1's map, not deconv2's
        if self.training and small and _in_tiles(h):
            h = _Deconvolve.apply(h, self.weight.to(h.dtype))  # they differ under a notebook's autocast
        else:
            h = F.conv_transpose2d(h, self.weight, stride=self.stride)
        return h.add_(self.bias[:, None, None])


class ConvolutionToOne(nn.Conv2d):
    """A convolution to one channel, with stride 1 and no padding.

    oneDNN computes at least 16 output channels and drops what is too much: for conv3 6.4 forward and
    8.0 backward in float32, where the forms below take 1.8 and 1.7; in bf16 3.0 and 4.7, here 2.1 and 1.7.
    """

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H', W')."""
        assert self.bias is not None
        weight = self.weight.to(h.dtype)  # as above
        # The faster backward has no forward-mode derivatives, so it is kept for training.
        logits = _ToOne.apply(h, weight) if self.training else _to_one(h, weight)
        return logits + self.bias  # a float32 bias makes float32 of bf16


def _to_one(h: Tensor, weight: Tensor) -> Tensor:
    """The convolution as one product of all pixels with all taps, and a sum of the taps' shifted planes."""
    batch, channels, height, width = h.shape
    rows, columns = weight.shape[2:]
    planes = h.permute(0, 2, 3, 1).reshape(-1, channels) @ weight[0].flatten(1)  # (B*H*W, taps)
    planes = planes.view(batch, height, width, rows, columns)
    return sum_of_taps(planes, torch.promote_types(h.dtype, torch.float32)).unsqueeze(1)


def sum_of_taps(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """A convolution's pixels from the products of each pixel with each tap: (B, H, W, rows, columns) -> (B, H', W')."""
    batch, height, width, rows, columns = planes.shape
    shape = (batch, height - rows + 1, width - columns + 1)
    if planes.device.type == "cuda":  # pragma: no cover-cuda, where one kernel is faster than many
        image, row, pixel, down, right = planes.stride()
        strides = (image, row, pixel, row + down, pixel + right)
        return planes.as_strided((*shape, rows, columns), strides).sum((3, 4), dtype=dtype)
    out = planes.new_zeros(shape, dtype=dtype)
    for row in range(rows):
        for column in range(columns):
            out += planes[:, row : row + out.shape[1], column : column + out.shape[2], row, column]
    return out


class _ToOne(torch.autograd.Function):
    """`_to_one` with the gradients of its mirror image, the transposed convolution with flipped taps.

    The backward pass of that one is a convolution from one channel to C, which oneDNN has fast.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, weight: Tensor) -> Tensor:
        return _to_one(h, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        h, weight = ctx.saved_tensors
        # With one channel both memory formats fit, and oneDNN goes by the strides: those of
        # channels-last make the result channels-last, and the weights' gradient 8 times faster.
        batch, _, height, width = gradient.shape
        gradient = gradient.to(h.dtype).contiguous().view(batch, height, width, 1).permute(0, 3, 1, 2)
        mirrored = weight.transpose(0, 1).flip(2, 3)  # (C, 1, rows, columns)
        padding = (weight.shape[2] - 1, weight.shape[3] - 1)
        to_h = F.conv2d(gradient, mirrored, padding=padding)
        if _in_tiles(h):
            return to_h, _weight_gradient(h, gradient, weight)
        to_mirrored = conv2d_weight(gradient, mirrored.shape, h, padding=padding)  # type: ignore[no-untyped-call]
        return to_h, to_mirrored.flip(2, 3).transpose(0, 1)


def _in_tiles(h: Tensor) -> bool:
    """Whether this is computed with AMX, whose products outrun oneDNN's convolutions."""
    return h.dtype == torch.bfloat16 and h.device.type == "cpu" and has_amx()


def has_amx() -> bool:
    """Whether this machine's processor has AMX for bfloat16."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def _weight_gradient(h: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """That of `_to_one` as one product of all pixels, for each tap those that it was multiplied with.

    With AMX 1.5 instead of the convolution's 2.9 in bf16; in float32 2.5 instead of 2.3.
    """
    (batch, channels, height, width), (rows, columns) = h.shape, weight.shape[2:]
    around = F.pad(gradient[:, 0], (columns - 1, columns - 1, rows - 1, rows - 1))
    image, row, pixel = around.stride()
    around = around.as_strided((rows, columns, batch, height, width), (row, pixel, image, row, pixel))
    product = around.reshape(rows * columns, -1) @ h.permute(0, 2, 3, 1).reshape(-1, channels)  # from the last tap
    return product.flip(0).t().reshape(weight.shape)


class _Deconvolve(torch.autograd.Function):
    """A transposed convolution with stride 2 and no padding, whose gradients are products of windows.

    For deconv1's small map both take 2.2 in bf16 with AMX, where torch's own take 4.2; for deconv2's 7.0 and 4.3.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(h, weight, stride=2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        h, weight = ctx.saved_tensors
        (batch, channels, height, width), (_, outputs, rows, columns) = h.shape, weight.shape
        image, channel, row, pixel = gradient.stride()
        windows = gradient.as_strided(
            (batch, height, width, rows, columns, outputs), (image, 2 * row, 2 * pixel, row, pixel, channel)
        )
        windows = windows.reshape(batch * height * width, rows * columns * outputs)
        taps = weight.permute(0, 2, 3, 1)  # (C, rows, columns, O)
        to_h = (windows @ taps.flatten(1).t()).view(batch, height, width, channels).permute(0, 3, 1, 2)
        to_taps = h.permute(0, 2, 3, 1).reshape(-1, channels).t() @ windows
        return to_h, to_taps.view(taps.shape).permute(0, 3, 1, 2)
