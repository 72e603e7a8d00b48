"""A batch's gradients with every operation written out, as a GPU computes them fastest.

autograd calls kernels that wait for each other, a few of them slow: cuDNN's and cuBLAS's for layers with
one channel, for transposed convolutions and for the heads' few outputs. Here are other forms of these, and
whatever the next layer does not wait for, the gradients of weights, Adam and the terms of the loss, is
computed aside, on streams of its own. As one CUDA graph a step of 100 images takes 0.24 ms in bf16
instead of 0.71, in float32 0.58 instead of 2.75 (H200, torch 2.11). On a CPU autograd's
kernels are the faster ones, 71 instead of 102 ms (two Zen 3 cores, torch 2.14, medians of 7).

`h` is what a layer's ReLU has let through, `d` the objective's gradient before the ReLU. Maps are
(B, H, W, C), in one piece.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from vaecli import phases
from vaecli.loss import kl, reconstruction
from vaecli.mixed import FLOAT32
from vaecli.model import ConvVAE, Gaussian
from vaecli.phases import Windows, as_convolution, as_deconvolution, in_rows, in_units, relu_product

aten = torch.ops.aten
# Of the heads' sums over 3136: with few outputs cuBLAS takes 20 us for whole ones, 5 for all their parts.
PARTS = 28


class GradientsByHand:
    """The terms of the loss and the gradients of the objective, for batches of one size.

    Arguments:
        model: as `engine.prepare` makes it; its weights are read at each call.
        batch_size: images of each batch.
        dtype: of all but what `mixed` leaves out; float32 or bfloat16, or that of a model in float64.

    `gradients` holds a tensor for each parameter, by name, which each call overwrites.
    """

    STREAMS = 6  # aside, taking turns: with 3 a step takes 5% longer, with 2 22%; 8 are not better

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
        self._cast = pieces(self._narrow.values()), pieces(self.weights[name] for name in self._narrow)

        def zeros(*size: int) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=self._device)

        # The batch: its pixels, conv1's windows and the noise.
        self._x = torch.empty(batch_size, 28, 28, dtype=self._wide, device=self._device)
        self._image, self._windows0 = zeros(batch_size, 30, 30), zeros(batch_size, 14, 14, 16)
        self._windows0[..., 9] = 1  # ones, whose product with a gradient is that of the bias; the others have them, too
        self._eps = torch.empty(batch_size, model.z_dim, dtype=self._wide, device=self._device)
        self._windows1 = Windows(batch_size, (14, 14, 32), 3, 2, like=self._image, more=8)
        self._windows1.rows[:, 288:] = 1
        self._windows3, self._windows4 = (
            Windows(batch_size, (size, size, 64), 2, like=self._image, more=8) for size in (7, 15)
        )
        for windows in (self._windows3, self._windows4):
            windows.rows[:, 256:] = 0  # a column for each phase, of which the last odd row and column lie outside
            inside = windows.rows[:, 256:260].view(*windows.shape, 2, 2)
            inside[:] = 1
            inside[:, -1, :, 1] = inside[:, :, -1, :, 1] = 0
        self._z = zeros(batch_size, (model.z_dim // 8 + 1) * 8)
        self._z[:, model.z_dim] = 1
        self._d5 = zeros(batch_size + 1, 16, 16, 128)  # of an image more, so that there is memory behind the last one
        # For each row of taps four pixels: at (y, x, t) that of (y - 3, x + t - 3), or 0 outside. The pixel (y, x)
        # gets there at (y + 3, x + s, 3 - s), for s from 0 to 3.
        self._slopes = zeros(batch_size, 35, 32, 4)
        self._to_slopes = self._slopes.as_strided((batch_size, 28, 28, 4), (35 * 128, 128, 4, 3), 3 * 128 + 3)
        self._parts = PARTS if model.z_dim <= 32 else 1  # many outputs are fast, and their parts would take memory
        self._ones = torch.ones(1, self._parts, dtype=self._wide, device=self._device)
        self._mirror = torch.arange(15, -1, -1, device=self._device)
        # Where, among the rows (4 taps * 64 * 4 phases) that `_store_deconvolution` makes, the layer's (64 * 9) are.
        places = torch.arange(16 * 64, device=self._device).view(2, 2, 64, 4).permute(3, 2, 0, 1)
        self._places = as_deconvolution(places).flatten()

    @torch.no_grad()
    def read(self, images: Tensor, eps: Tensor) -> None:
        """Take the next batch: uint8 images (B, 28, 28) and noise (B, Z)."""
        torch.div(images, 255, out=self._x)
        self._image[:, 1:29, 1:29] = self._x
        self._windows0[..., :9].view(-1, 14, 14, 3, 3).copy_(self._image.unfold(1, 3, 2).unfold(2, 3, 2))
        self._eps.copy_(eps)

    @torch.no_grad()
    def __call__(
        self,
        kl_weight: Tensor,
        *,
        update: Callable[..., None] = lambda *layers: None,
        read_next: Callable[[Tensor], None] = lambda terms: None,
    ) -> Tensor:
        """The terms (2, B) of the batch.

        `update` hears the names of layers whose gradients are there, and which are not read any more;
        `read_next` gets the terms when the batch is not read any more. They are called aside, but for the first
        layer's update, which is the last.

        What two streams share keeps its name to the end: the memory of a tensor without one is given away at
        once, and the other stream may not be through with it.
        """
        (count, z_dim), parts = self._eps.shape, self._parts
        if self._narrow:
            torch._foreach_copy_(*self._cast)
        w = self.weights | self._narrow
        with self.meanwhile():
            windows0 = self._windows0.view(-1, 16).clone()
            terms = torch.empty(2, count, dtype=self._wide, device=self._device)
        with self.meanwhile():
            # The log-variance is halved, for its exponential is the standard deviation then.
            heads = torch.cat([w["linear1mean.weight"], w["linear1logvar.weight"] / 2])
            heads = heads.view(-1, 64, 49).permute(2, 1, 0).reshape(3136, -1)  # (H*W*C, 2Z)
            codes = torch.cat([w["linear1mean.bias"], w["linear1logvar.bias"] / 2]).repeat(1, count)
        with self.meanwhile():
            linear2, linear2_bias = phases.to_map3(w["linear2.weight"], w["linear2.bias"])
        h1 = relu_product(self._windows0[..., :9].flatten(0, 2), w["conv1.weight"].view(32, 9), w["conv1.bias"])
        windows1 = self._windows1.of(h1.view(count, 14, 14, 32))
        h2 = relu_product(windows1, in_rows(w["conv2.weight"]), w["conv2.bias"])  # (B*7*7, 64)
        flat = h2.to(self._wide).view(count, -1)  # (B, 3136)
        self._join()

        with self.meanwhile():
            up1, up1_bias = as_convolution(w["deconv1.weight"]), w["deconv1.bias"].repeat(4)
        with self.meanwhile():
            up2, up2_bias = as_convolution(w["deconv2.weight"]), w["deconv2.bias"].repeat(4)
        with self.meanwhile():
            taps = w["conv3.weight"][0].flatten(1)  # (32, 16)
            # For the gradient at deconv2's map, with its 1 / B, and rounded once.
            mirrored = (self.weights["conv3.weight"][0].flatten(1).flip(1).t() / count).to(self.dtype)  # (16, 32)
        of_parts = torch.bmm(flat.view(count, parts, -1).transpose(0, 1), heads.view(parts, -1, 2 * z_dim))
        codes = codes.addmm_(self._ones, of_parts.view(parts, -1)).view(count, -1)  # their sum: (B, 2Z)
        mean, half = codes.chunk(2, dim=1)
        deviation = torch.exp(half)
        z = torch.addcmul(mean, deviation, self._eps).to(self.dtype)
        h3 = relu_product(z, linear2, linear2_bias)  # (B, 3136)
        self._join()

        with self.meanwhile():
            terms[1] = kl(Gaussian(mean, 2 * half))
            self._z[:, :z_dim] = z
        with self.meanwhile():
            # The codes' gradient is `pull`, that of the KL term, and z's times `reach`.
            pull = kl_weight / count * torch.cat([mean, torch.expm1(2 * half)], 1)
            reach = torch.cat([torch.ones_like(mean), self._eps * deviation], 1)
        decoder = phases.Weights(in_rows(up1), up1_bias, in_rows(up2), up2_bias, taps, w["conv3.bias"])
        decoded = phases.decode(h3.view(count, 7, 7, 64), decoder, self._windows3, self._windows4)
        phases4, phases5, logits = decoded
        self._join()

        # The logits' gradient, but for 1 / B, wherever a row of taps takes it.
        torch.sub(logits.sigmoid().unsqueeze(3).expand(-1, -1, -1, 4), self._x.unsqueeze(3), out=self._to_slopes)
        around = self._slopes.view(torch.int64).unfold(1, 4, 1).view(count, 16, 2, 16, 2, -1, 4)
        around = around.permute(0, 1, 3, 2, 4, 6, 5).contiguous().view(self.dtype)
        around = around.view(-1, 16)  # (B*16*16*4, 16), the taps' pixels of each of deconv2's
        with self.meanwhile():
            terms[0] = reconstruction(logits.unsqueeze(1), self._x.unsqueeze(1))
            read_next(terms)
        with self.meanwhile():
            of_conv3 = (around.t() @ phases5.view(-1, 32)).index_select(0, self._mirror)
            self._store("conv3.weight", of_conv3.t() / count)
            self._store("conv3.bias", self._slopes[..., 0].sum((1, 2), dtype=self._wide).mean())
            update("conv3")
        d5 = self._d5[:-1]
        aten.threshold_backward.grad_input((around @ mirrored).view_as(d5), phases5, 0, grad_input=d5)
        with self.meanwhile():
            self._store_deconvolution("deconv2", d5, self._windows4)
            update("deconv2")
        # A row has 15 pixels. In place of a 16th, which would lie outside, is the next row's first one, behind the last
        # row the next image's. It does no harm: there `up1`, which the phases are multiplied with, is 0, and so are
        # the ones.
        d = in_units(input_gradient(self._d5, (count + 1, 15, 15, 64), up2))
        units = d.shape[3]
        d = d.as_strided((count, 8, 8, 2, 2, units), (225 * units, 30 * units, 2 * units, 15 * units, units, 1))
        d4 = aten.threshold_backward(d.contiguous().view(self.dtype).view_as(phases4), phases4, 0)
        with self.meanwhile():
            self._store_deconvolution("deconv1", d4, self._windows3)
            update("deconv1")
        d3 = aten.threshold_backward(input_gradient(d4, (count, 7, 7, 64), up1).view(count, -1), h3, 0)  # (B, 3136)
        with self.meanwhile():
            of_linear2 = d3.t() @ self._z  # (3136, Z and more)
            self._store("linear2.weight", of_linear2[:, :z_dim].view(49, 64, -1).transpose(0, 1))
            self._store("linear2.bias", of_linear2[:, z_dim].view(49, 64).t())
            update("linear2")
        of_parts = torch.bmm(d3.view(count, parts, -1).transpose(0, 1), linear2.view(parts, -1, z_dim))
        dz = of_parts.sum(0, dtype=self._wide).unsqueeze(1)
        dcodes = torch.addcmul(pull.view(count, 2, -1), reach.view(count, 2, -1), dz).view(count, -1)  # (B, 2Z)
        with self.meanwhile():
            of_heads, of_bias = (flat.t() @ dcodes).view(49, 64, -1).permute(2, 1, 0), dcodes.sum(0)
            self._store("linear1mean.weight", of_heads[:z_dim])
            self._store("linear1mean.bias", of_bias[:z_dim])
            self._store("linear1logvar.weight", of_heads[z_dim:] / 2)
            self._store("linear1logvar.bias", of_bias[z_dim:] / 2)
            update("linear1mean", "linear1logvar")
        d2 = aten.threshold_backward((dcodes @ heads.t()).to(self.dtype).view(-1, 64), h2, 0)
        d = input_gradient(d2.view(count, 7, 7, 64), (count, 14, 14, 32), w["conv2.weight"], stride=2)
        with self.meanwhile():
            of_conv2 = d2.t() @ self._windows1.rows
            self._store("conv2.weight", of_conv2[:, :288].view(64, 3, 3, 32).permute(0, 3, 1, 2))
            self._store("conv2.bias", of_conv2[:, 288])
            update("conv2")
        d1 = aten.threshold_backward(d.view(-1, 32), h1, 0)
        of_conv1 = d1.t() @ windows0  # (32, 16)
        self._store("conv1.weight", of_conv1[:, :9])
        self._store("conv1.bias", of_conv1[:, 9])
        update("conv1")
        self._join()  # before any tensor of this call is freed, too
        return terms

    @contextlib.contextmanager
    def meanwhile(self) -> Iterator[None]:
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

    def _store_deconvolution(self, name: str, d: Tensor, windows: Windows) -> None:
        """The gradients of a layer that is computed behind `as_convolution`, from d (B, H, W, 4 * O)."""
        outputs = len(self.weights[f"{name}.bias"])
        rows = (windows.rows.t() @ d.flatten(0, 2)).view(-1, 4, outputs)  # (4 taps * C, and more; phases; O)
        weight = rows[:256].flatten(0, 1).index_select(0, self._places).view(64, 3, 3, outputs)
        self._store(f"{name}.weight", weight.permute(0, 3, 1, 2))
        self._store(f"{name}.bias", rows[256:260].diagonal().sum(1))


def pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors, as they lie in memory, in pieces of 2,048 numbers, or of more if there would be too many pieces.

    Lists of these go together if the tensors lie alike in memory, as parameters, gradients and moments do.

    A kernel for lists of tensors gives up to 65,536 numbers of one to one block of threads: for deconv1 Adam
    takes 5.7 us in pieces of 8,192 and 3.3 in these. But one launch takes only some dozens of them.
    """
    flat = [tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    size = sum(map(len, flat)) // 32 // 8 * 8  # 8 numbers of bf16 are 16 bytes, which a thread reads at once
    size = min(65_536, max(2048, size))
    return [piece for tensor in flat for piece in torch.split(tensor, size)]


def input_gradient(d: Tensor, shape: tuple[int, ...], weight: Tensor, stride: int = 1) -> Tensor:
    """The gradient at a convolution's input (B, H, W, C) from that at its output (B, H', W', O), with padding 1."""
    like = d.new_empty(shape).permute(0, 3, 1, 2)
    gradient: Tensor = aten.convolution_backward(
        d.permute(0, 3, 1, 2),
        like,
        weight,
        None,
        (stride, stride),
        (1, 1),
        (1, 1),
        False,
        (0, 0),
        1,
        [True, False, False],
    )[0]
    return gradient.permute(0, 2, 3, 1).contiguous()
