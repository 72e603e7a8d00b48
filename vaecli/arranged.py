"""The model's weights as the products of a step by hand take them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vaecli.phases import as_convolution, in_rows, to_map3


class Layers(NamedTuple):
    """Weights as the products take them."""

    conv1: Tensor  # (32, 9)
    conv1_bias: Tensor  # (32,)
    conv2: Tensor  # (64, 9 * 32)
    conv2_bias: Tensor  # (64,)
    linear2: Tensor  # (Z, 3136), of the map (H, W, C)
    linear2_bias: Tensor  # (3136,)
    up1: Tensor  # (4 * 64, 2 * 2 * 64), deconv1 behind `as_convolution`
    up1_bias: Tensor  # (4 * 64,)
    up2: Tensor  # (4 * 32, 2 * 2 * 64), deconv2
    up2_bias: Tensor  # (4 * 32,)
    taps: Tensor  # (32, 4 * 4), conv3
    mirrored: Tensor  # (4 * 4, 32), from the last to the first


class Heads(NamedTuple):
    """Those of mean and log-variance in one, in float32 always."""

    weight: Tensor  # (2Z, 3136), of the map (H, W, C)
    bias: Tensor  # (2Z,)


def arranged_layers(w: Mapping[str, Tensor]) -> Layers:
    """From the model's weights."""
    linear2, linear2_bias = to_map3(w["linear2.weight"], w["linear2.bias"])
    taps = w["conv3.weight"][0].flatten(1)
    return Layers(
        w["conv1.weight"].flatten(1),
        w["conv1.bias"],
        in_rows(w["conv2.weight"]),
        w["conv2.bias"],
        linear2.t(),
        linear2_bias,
        in_rows(as_convolution(w["deconv1.weight"])),
        w["deconv1.bias"].repeat(4),
        in_rows(as_convolution(w["deconv2.weight"])),
        w["deconv2.bias"].repeat(4),
        taps,
        taps.flip(1).t(),
    )


def arranged_heads(w: Mapping[str, Tensor]) -> Heads:
    """From the model's weights."""
    weight = torch.cat([w["linear1mean.weight"], w["linear1logvar.weight"]])
    weight = weight.view(-1, 64, 49).transpose(1, 2).flatten(1)
    return Heads(weight, torch.cat([w["linear1mean.bias"], w["linear1logvar.bias"]]))
