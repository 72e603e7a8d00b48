"""A batch's gradients with every operation written out, as a GPU computes them fastest.

autograd calls kernels that wait for each other, a few of them slow: cuDNN's and cuBLAS's for layers with
one channel, for transposed convolutions and for the heads' few outputs. Here are other forms of these, and
whatever only Adam and the logs wait for, the gradients of weights and the terms of the loss, is
computed aside, on streams of its own. As one CUDA graph a step of 100 images takes 0.27 ms in bf16
instead of 0.71, in float32 0.80 instead of 2.75 (H200, torch 2.11). On a CPU autograd's
kernels are the faster ones, 60 instead of 85 ms (two Zen 3 cores, torch 2.14).

`h` is what a layer's ReLU has let through, `d` the objective's gradient before the ReLU. Maps are
channels-last.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vaecli.engine import to_unit
from vaecli.layers import as_convolution, as_deconvolution, sum_of_taps
from vaecli.loss import kl, reconstruction
from vaecli.mixed import FLOAT32
from vaecli.model import ConvVAE, Gaussian

aten = torch.ops.aten
# Of the heads' sums over 3136: with few outputs cuBLAS takes 28 us for whole ones, 5 for all their parts.
PARTS = 28


class GradientsByHand:
    """The terms of the loss and the gradients of the objective, for batches of one size.

    Arguments:
        model: as `engine.prepare` makes it; its weights are read at each call.
        batch_size: images of each batch.
        dtype: of all but what `mixed` leaves out; float32 or bfloat16, or that of a model in float64.

    `gradients` holds a tensor for each parameter, by name, which each call overwrites.
    """

    STREAMS = 3  # aside, taking turns: with two a step takes 9% longer, with one 37%; four are not better

    def __init__(self, model: ConvVAE, batch_size: int, dtype: torch.dtype) -> None:
        self.weights = dict(model.named_parameters())
        self.gradients = {name: torch.empty_like(weight) for name, weight in self.weights.items()}
        self.dtype, self._wide = dtype, model.conv1.weight.dtype
        self._device = model.conv1.weight.device
        streams = self.STREAMS if self._device.type == "cuda" else 0
        self._aside = [torch.cuda.Stream(self._device) for _ in range(streams)]  # type: ignore[no-untyped-call]
        self._busy: list[torch.cuda.Stream] = []
        self._narrow = {
            name: torch.empty_like(weight, dtype=dtype)
            for name, weight in self.weights.items()
            if dtype != self._wide and not name.startswith(FLOAT32)
        }
        wide = [self.weights[name] for name in self._narrow]
        self._cast = flattened(pieces(self._narrow.values())), flattened(pieces(wide))
        # Maps with borders of zeros, of which only the inside is written.
        self._slope = torch.zeros(batch_size, 35, 35, dtype=dtype, device=self._device)
        self._d4 = torch.zeros(batch_size, 16, 16, 64, dtype=dtype, device=self._device)
        # Where, among the weights that `as_convolution` makes, as they lie in memory, those of the layer are.
        self._places = {
            name: as_deconvolution(torch.arange(16 * c * o).view(4 * o, 2, 2, c).permute(0, 3, 1, 2))
            .flatten()
            .to(self._device)
            for name, (c, o) in {"deconv1": (64, 64), "deconv2": (64, 32)}.items()
        }

    @torch.no_grad()
    def __call__(self, images: Tensor, eps: Tensor, kl_weight: Tensor) -> Tensor:
        """The terms (2, B) of uint8 images (B, 28, 28) with noise (B, Z).

        What two streams share keeps its name to the end: the memory of a tensor without one is given away at
        once, and the other stream may not be through with it.
        """
        count, z_dim = eps.shape
        parts = PARTS if z_dim <= 32 else 1  # many outputs are fast, and their parts would take memory
        if self._narrow:
            torch._foreach_copy_(*self._cast)
        w = self.weights | self._narrow
        with self._meanwhile():
            x = to_unit(images, images.device)[:, 0]  # (B, 28, 28)
            terms = torch.empty(2, count, dtype=self._wide, device=x.device)
        with self._meanwhile():
            heads = torch.cat([w["linear1mean.weight"], w["linear1logvar.weight"]])
            heads = heads.view(-1, 64, 49).permute(2, 1, 0).reshape(3136, -1)  # (H*W*C, 2Z)
            heads_bias = torch.cat([w["linear1mean.bias"], w["linear1logvar.bias"]])
        with self._meanwhile():
            linear2 = w["linear2.weight"].view(64, 49, -1).transpose(0, 1).reshape(3136, -1)  # (H*W*C, Z)
            linear2_bias = w["linear2.bias"].view(64, 49).t().flatten()
        narrow = torch.empty(count, 1, 28, 28, dtype=self.dtype, device=images.device)
        torch.div(images.unsqueeze(1), 255, out=narrow)
        h1 = convolve(narrow, w["conv1.weight"], w["conv1.bias"], stride=2)  # (B, 32, 14, 14)
        h2 = convolve(h1, w["conv2.weight"], w["conv2.bias"], stride=2)  # (B, 64, 7, 7)
        flat = rows(h2).to(self._wide).view(count, -1)  # (B, 3136)
        self._join()

        with self._meanwhile():
            up1, up1_bias = as_convolution(w["deconv1.weight"]), w["deconv1.bias"].repeat(4)
        with self._meanwhile():
            up2, up2_bias = as_convolution(w["deconv2.weight"]), w["deconv2.bias"].repeat(4)
        with self._meanwhile():
            taps = w["conv3.weight"][0].flatten(1)  # (32, 16)
            # For the gradient at h5, with its 1 / B, and rounded once.
            mirrored = (self.weights["conv3.weight"][0].flatten(1).flip(1).t() / count).to(self.dtype)  # (16, 32)
        codes = torch.bmm(flat.view(count, parts, -1).transpose(0, 1), heads.view(parts, -1, 2 * z_dim))
        codes = codes.sum(0) + heads_bias  # (B, 2Z)
        posterior = Gaussian(*codes.chunk(2, dim=1))
        deviation = torch.exp(posterior.logvar / 2)
        z = torch.addcmul(posterior.mean, deviation, eps).to(self.dtype)
        h3 = torch._addmm_activation(linear2_bias, z, linear2.t())  # (B, 3136)
        map3 = h3.view(count, 7, 7, 64).permute(0, 3, 1, 2)
        self._join()

        with self._meanwhile():
            terms[1] = kl(posterior)
        with self._meanwhile():
            # The codes' gradient is `pull`, that of the KL term, and z's times `reach`.
            pull = kl_weight / count * torch.cat([posterior.mean, torch.expm1(posterior.logvar) / 2], 1)
            reach = torch.cat([torch.ones_like(eps), eps * deviation / 2], 1)
        with self._meanwhile():
            # Nine pixels and ones, whose product with a gradient is that of the bias.
            seen = F.pad(narrow[:, 0], (1, 1, 1, 1)).unfold(1, 3, 2).unfold(2, 3, 2).reshape(-1, 9)
            seen = F.pad(seen, (0, 7), value=1.0)
        phases4 = convolve(map3, up1, up1_bias)  # (B, 4 * 64, 8, 8)
        h4 = shuffled(rows(phases4).view(count, 8, 8, 2, 2, 64)).view(count, 16, 16, 64)
        h4 = copied(h4[:, :15, :15]).permute(0, 3, 1, 2)  # (B, 64, 15, 15)
        h5 = convolve(h4, up2, up2_bias)  # (B, 4 * 32, 16, 16)
        h5 = rows(h5).view(-1, 32)  # (B*16*16*4, 32)
        planes = shuffled((h5 @ taps).view(count, 16, 16, 2, 2, 16)).view(count, 32, 32, 4, 4)
        logits = sum_of_taps(planes, self._wide)[:, :28, :28] + w["conv3.bias"]
        self._join()

        with self._meanwhile():
            terms[0] = reconstruction(logits.unsqueeze(1), x.unsqueeze(1))
            self._store("conv3.bias", (logits.sigmoid() - x).sum((1, 2)).sum() / count)
        torch.sub(logits.sigmoid(), x, out=self._slope[:, 3:31, 3:31])  # the gradient at the logits, but for 1 / B
        around = self._slope.unfold(1, 4, 1).unfold(2, 4, 1).view(count, 16, 2, 16, 2, 4, 4)
        around = around.transpose(2, 3).reshape(-1, 16)  # (B*16*16*4, 16), the taps' pixels of each pixel of h5
        with self._meanwhile():
            self._store("conv3.weight", (around.t() @ h5).flip(0).t() / count)
        d5 = aten.threshold_backward(around @ mirrored, h5, 0).view(count, 16, 16, 128).permute(0, 3, 1, 2)
        with self._meanwhile():
            self._store_deconvolution("deconv2", d5, h4)
        d = input_gradient(d5, h4, up2)
        aten.threshold_backward.grad_input(d, h4, 0, grad_input=self._d4[:, :15, :15].permute(0, 3, 1, 2))
        d4 = shuffled(self._d4.view(count, 8, 2, 8, 2, 64)).view(count, 8, 8, 256).permute(0, 3, 1, 2)
        with self._meanwhile():
            self._store_deconvolution("deconv1", d4, map3)
        d3 = aten.threshold_backward(rows(input_gradient(d4, map3, up1)).view(count, -1), h3, 0)  # (B, 3136)
        with self._meanwhile():
            self._store("linear2.weight", (d3.t() @ z).view(49, 64, -1).transpose(0, 1))
            self._store("linear2.bias", d3.sum(0).view(49, 64).t())
        dz = (d3 @ linear2).to(self._wide).unsqueeze(1)
        dcodes = torch.addcmul(pull.view(count, 2, -1), reach.view(count, 2, -1), dz).view(count, -1)  # (B, 2Z)
        with self._meanwhile():
            of_heads, of_bias = (flat.t() @ dcodes).view(49, 64, -1).permute(2, 1, 0), dcodes.sum(0)
            for name, one in (("linear1mean", slice(z_dim)), ("linear1logvar", slice(z_dim, None))):
                self._store(f"{name}.weight", of_heads[one])
                self._store(f"{name}.bias", of_bias[one])
        d = (dcodes @ heads.t()).to(self.dtype).view(count, 7, 7, 64).permute(0, 3, 1, 2)
        d2 = aten.threshold_backward(d, h2, 0)
        with self._meanwhile():
            self._store("conv2.weight", weight_gradient(d2, h1, 3, stride=2).permute(0, 3, 1, 2))
        with self._meanwhile():
            self._store("conv2.bias", rows(d2).sum(0))
        d1 = aten.threshold_backward(input_gradient(d2, h1, w["conv2.weight"], stride=2), h1, 0)
        of_conv1 = rows(d1).t() @ seen  # (32, 16)
        self._store("conv1.weight", of_conv1[:, :9])
        self._store("conv1.bias", of_conv1[:, 9])
        self._join()  # before any tensor of this call is freed, too
        return terms

    @contextlib.contextmanager
    def _meanwhile(self) -> Iterator[None]:
        """Aside: what is within may read what is computed outside before, or was before the last `_join`.

        After the next one it may be read itself.
        """
        if not self._aside:
            yield
            return
        stream = self._aside[0]
        self._aside = [*self._aside[1:], stream]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        self._busy.append(stream)
        with torch.cuda.stream(stream):
            yield

    def _join(self) -> None:
        """Wait for all that is computed aside.

        Waiting for an event in the midst of it would do, but a graph with such events crashed when it was
        replayed (torch 2.11, driver 580).
        """
        for stream in self._busy:
            torch.cuda.current_stream(self._device).wait_stream(stream)
        self._busy.clear()

    def _store(self, name: str, gradient: Tensor) -> None:
        self.gradients[name].copy_(gradient.reshape(self.gradients[name].shape))

    def _store_deconvolution(self, name: str, d: Tensor, h: Tensor) -> None:
        """The gradients of a layer that is computed behind `as_convolution`."""
        self._store(f"{name}.weight", weight_gradient(d, h, 2).flatten().index_select(0, self._places[name]))
        self._store(f"{name}.bias", rows(d).reshape(-1, len(self.gradients[f"{name}.bias"])).sum(0))


def pieces(tensors: Iterable[Tensor]) -> list[Sequence[Tensor]]:
    """Each tensor, as it lies in memory, in pieces of 8,192 numbers, or of more if there would be too many pieces.

    Lists of these go together if the tensors lie alike in memory, as parameters, gradients and moments do.

    A kernel for lists of tensors gives 65,536 numbers of one to one block of threads: Adam takes 26 us for
    the tensors and 13 for their pieces. But one launch takes only some dozens of them.
    """
    flat = [tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    size = sum(map(len, flat)) // 32 // 8 * 8  # 8 numbers of bf16 are 16 bytes, which a thread reads at once
    size = min(65_536, max(8192, size))
    return [torch.split(tensor, size) for tensor in flat]


def flattened(parts: list[Sequence[Tensor]]) -> list[Tensor]:
    """All pieces one after the other."""
    return [piece for of_one in parts for piece in of_one]


def rows(h: Tensor) -> Tensor:
    """The pixels of a map: (B, C, H, W) -> (B * H * W, C), without a copy if it is channels-last."""
    return h.permute(0, 2, 3, 1).flatten(0, 2)


def copied(pixels: Tensor) -> Tensor:
    """A contiguous copy of (..., C), in units of 16 bytes, which C must fill; number by number takes thrice as long."""
    return pixels.view(torch.complex128).contiguous().view(pixels.dtype)


def shuffled(pixels: Tensor) -> Tensor:
    """(B, H, W, 2, 2, C), each place's four phases, as pixels (B, H, 2, W, 2, C), and the reverse."""
    return copied(pixels.transpose(2, 3))


def convolve(h: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """ReLU of a convolution with padding 1: (B, C, H, W) -> (B, O, H', W').

    Where it is one kernel, torch does not ask cuDNN for one that computes the same bits each time, as
    `be_exact` has it do elsewhere. On an H200 all do, which `test_training` checks where there is a GPU.
    """
    if _has_fused_relu(h.device):
        return torch.cudnn_convolution_relu(h, weight, bias, (stride, stride), (1, 1), (1, 1), 1)
    return F.relu_(F.conv2d(h, weight, bias, stride=stride, padding=1))


def _has_fused_relu(device: torch.device) -> bool:
    """Whether there is cuDNN, which AMD's GPUs, "cuda" as well, have not, and a GPU on which it takes bf16."""
    if device.type != "cuda" or not torch.version.cuda or not torch.backends.cudnn.enabled:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)  # pragma: no cover-cuda


def input_gradient(d: Tensor, h: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """The gradient at a convolution's input (B, C, H, W) from that at its output (B, O, H', W'), with padding 1."""
    mask = [True, False, False]
    gradient: Tensor = aten.convolution_backward(
        d, h, weight, None, (stride, stride), (1, 1), (1, 1), False, (0, 0), 1, mask
    )[0]
    return gradient


def weight_gradient(d: Tensor, h: Tensor, size: int, stride: int = 1) -> Tensor:
    """That at its weights, channels-last (O, size, size, C), as a product with all windows of its input.

    In bf16 15 us instead of 26 for deconv1 behind `as_convolution`, in float32 35 instead of 116.
    """
    padded = F.pad(h.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).view(torch.complex128)
    windows = padded.unfold(1, size, stride).unfold(2, size, stride).permute(0, 1, 2, 4, 5, 3)
    windows = windows.contiguous().view(h.dtype).view(-1, size * size * h.shape[1])
    return (rows(d).t() @ windows).view(-1, size, size, h.shape[1])
