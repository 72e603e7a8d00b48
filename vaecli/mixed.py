"""Mixed precision: the arithmetic in bfloat16, the weights, what Adam keeps and all losses in float32.

Micikevicius et al., "Mixed Precision Training" (2018). A loss need not be scaled up as there:
bfloat16 has the range of float32.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vaecli.model import ConvVAE

# What makes codes and logits; the model casts what goes in and out of these.
KEPT_IN_FLOAT32 = ("linear1mean.", "linear1logvar.", "conv3.bias")


def in_bf16(model: ConvVAE) -> dict[str, Tensor]:
    """The model's other weights in bfloat16, by name, for `torch.func.functional_call`; gradients reach the model.

    `torch.autocast` casts one weight and one gradient at a time, in 22 operations, which here are 2.
    """
    weights = {name: weight for name, weight in model.named_parameters() if not name.startswith(KEPT_IN_FLOAT32)}
    return dict(zip(weights, _InBf16.apply(*weights.values()), strict=True))


class _InBf16(torch.autograd.Function):
    """float32 tensors to bfloat16 and their gradients back, each way in one kernel."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        return _cast(weights, torch.bfloat16)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _cast(gradients, torch.float32)


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    cast = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    torch._foreach_copy_(cast, tensors)
    return cast
