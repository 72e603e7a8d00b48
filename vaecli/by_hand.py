"""A batch's gradients with every operation written out, as a GPU computes them fastest.

autograd calls kernels that wait for each other, a few of them slow: cuDNN's and cuBLAS's for layers with
one channel and for transposed convolutions. Here are other forms of these, and whatever the next layer does
not wait for, the gradients of weights, Adam and the terms of the loss, is computed aside, on streams of its
own. As one CUDA graph, and with the kernels of `fused`, a step of 100 images takes 0.16 ms in bf16 instead of
0.71, in float32 0.50 instead of 2.75 (H200, torch 2.11). On a CPU autograd's kernels are the faster
ones, 63 instead of 100 ms (two Zen 3 cores, torch 2.14, medians of 3 runs in turn).

`h` is what a layer's ReLU has let through, `d` the objective's gradient before the ReLU. Maps are
(B, H, W, C), in one piece.
"""

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vaecli import phases
from vaecli.arranged import Heads, Layers, arranged_heads, arranged_layers
from vaecli.aside import Aside
from vaecli.loss import kl, reconstruction
from vaecli.mixed import KEPT_IN_FLOAT32
from vaecli.model import ConvVAE, Gaussian
from vaecli.phases import Windows, as_deconvolution, as_taps, relu_product

aten = torch.ops.aten


class GradientsByHand:
    """The terms of the loss and the gradients of the objective, for batches of one size.

    Arguments:
        model: as `engine.prepare` makes it; its weights are read at each call, and must stay where they are.
        batch_size: images of each batch.
        dtype: of all but what `mixed` leaves out; float32 or bfloat16, or that of a model in float64.

    `gradients` holds a tensor for each parameter, by name, which each call overwrites.
    """

    def __init__(self, model: ConvVAE, batch_size: int, dtype: torch.dtype) -> None:
        self.weights = dict(model.named_parameters())
        self.gradients = {name: torch.empty_like(weight) for name, weight in self.weights.items()}
        self.dtype, self._wide = dtype, model.conv1.weight.dtype
        self._device = model.conv1.weight.device
        self.aside = Aside(self._device)

        def zeros(*size: int) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=self._device)

        # The batch: its pixels, conv1's windows and the noise.
        self._x = torch.empty(batch_size, 28, 28, dtype=self._wide, device=self._device)
        self._image, self._windows0 = zeros(batch_size, 30, 30), zeros(batch_size, 14, 14, 16)
        self._windows0[..., 9] = 1  # ones, whose product with a gradient is that of the bias; the others have them, too
        self._eps = torch.empty(batch_size, model.z_dim, dtype=self._wide, device=self._device)
        self._windows1 = Windows(batch_size, (14, 14, 32), 3, 2, like=self._image, more=8)
        self._windows3, self._windows4 = (
            Windows(batch_size, (size, size, 64), 2, like=self._image, more=8) for size in (7, 15)
        )
        for windows in (self._windows1, self._windows3, self._windows4):
            windows.rows.zero_()  # kernels write no more than the map, and leave what lies beyond its border
        self._windows1.rows[:, 288:] = 1
        for windows in (self._windows3, self._windows4):
            # A column for each phase, of which the last odd row and column lie outside.
            inside = windows.rows[:, 256:260].view(*windows.shape, 2, 2)
            inside[:] = 1
            inside[:, -1, :, 1] = inside[:, :, -1, :, 1] = 0
        self._z = zeros(batch_size, (model.z_dim // 8 + 1) * 8)
        self._z[:, model.z_dim] = 1
        # For each row of taps four pixels: at (y, x, t) that of (y - 3, x + t - 3), or 0 outside. The pixel (y, x)
        # gets there at (y + 3, x + s, 3 - s), for s from 0 to 3.
        self._slopes = zeros(batch_size, 35, 32, 4)
        self._mirror = torch.arange(15, -1, -1, device=self._device)
        # Where, among the rows (4 taps * 64 * 4 phases) that `_store_deconvolution` makes, the layer's (64 * 9) are.
        places = torch.arange(16 * 64, device=self._device).view(2, 2, 64, 4).permute(3, 2, 0, 1)
        self._places = as_deconvolution(places).flatten()

    @torch.no_grad()
    def read(self, images: Tensor, noise: Tensor, rows: Tensor) -> None:
        """Take the next batch: these rows (B,) of uint8 images (N, 28, 28) and of noise (N, Z)."""
        torch.div(images[rows], 255, out=self._x)
        self._image[:, 1:29, 1:29] = self._x
        self._windows0[..., :9].view(-1, 14, 14, 3, 3).copy_(self._image.unfold(1, 3, 2).unfold(2, 3, 2))
        self._eps.copy_(noise[rows])

    @torch.no_grad()
    def __call__(
        self,
        kl_weight: Tensor,
        *,
        update: Callable[..., None] = lambda *layers: None,
        begin: Callable[[], None] = lambda: None,
        read_next: Callable[[Tensor], None] = lambda terms: None,
    ) -> Tensor:
        """The terms (2, B) of the batch.

        `begin` is called before the others, `update` hears the names of layers whose gradients are there, and
        which are not read any more, and `read_next` gets the terms when the batch is not read any more. They
        are called aside, but for the first layer's update, which is the last.

        What two streams share keeps its name to the end: the memory of a tensor without one is given away at
        once, and the other stream may not be through with it.
        """
        count = len(self._eps)
        heads, w = self._heads(), self._layers()
        h1, windows1 = self._conv1(w)
        h2 = relu_product(windows1, w.conv2, w.conv2_bias)  # (B*7*7, 64)
        codes, reach, h3, windows3 = self._through_codes(h2, heads, w)
        with self.aside.meanwhile():
            begin()
            windows0 = self._windows0.clone()
            terms = torch.empty(2, count, dtype=self._wide, device=self._device)
            terms[1] = kl(Gaussian(*codes.chunk(2, dim=1)))
        phases4 = relu_product(windows3, w.up1, w.up1_bias)  # (B*8*8, 4*64)
        windows4 = self._windows_of_phases(phases4)
        phases5 = relu_product(windows4, w.up2, w.up2_bias)  # (B*16*16, 4*32)
        logits = self._logits_and_slopes(phases5.view(-1, 32) @ w.taps)
        self.aside.join()

        with self.aside.meanwhile():
            terms[0] = reconstruction(logits.unsqueeze(1), self._x.unsqueeze(1))
            read_next(terms)
        around, d5 = self._back_through_conv3(w, phases5)
        with self.aside.meanwhile():
            of_conv3 = (around.t() @ phases5.view(-1, 32)).index_select(0, self._mirror)
            self._store("conv3.weight", of_conv3.t() / count)
            self._store("conv3.bias", self._slopes[..., 0].sum((1, 2), dtype=self._wide).mean())
            update("conv3")
        # Before what is computed aside, for a GPU begins with it then: 161 instead of 165 us a step (H200, a run each).
        d_map4 = input_gradient(d5.view(count, 16, 16, 128), (count, 15, 15, 64), as_taps(w.up2, 2))
        with self.aside.meanwhile():
            self._store_deconvolution("deconv2", d5, self._windows4)
            update("deconv2")
        d4 = self._gradient_of_phases(d_map4, phases4)
        d_map3 = input_gradient(d4.view(count, 8, 8, 256), (count, 7, 7, 64), as_taps(w.up1, 2))
        with self.aside.meanwhile():
            self._store_deconvolution("deconv1", d4, self._windows3)
            update("deconv1")
        d3, d_codes, d2 = self._back_through_codes(d_map3, h3, w.linear2, codes, reach, kl_weight, heads.weight, h2)
        with self.aside.meanwhile():
            self._store_at_codes(h2, d_codes, d3)
            update("linear1mean", "linear1logvar", "linear2")
        with self.aside.meanwhile():
            of_conv2 = d2.t() @ self._windows1.rows
            self._store("conv2.weight", as_taps(of_conv2[:, :288], 3))
            self._store("conv2.bias", of_conv2[:, 288])
            update("conv2")
        d_map1 = input_gradient(d2.view(count, 7, 7, 64), (count, 14, 14, 32), as_taps(w.conv2, 3), stride=2)
        self._store_conv1(d_map1, h1, windows0)
        update("conv1")
        self.aside.join()  # before any tensor of this call is freed, too
        return terms

    # What lies between the products. `fused` has each of these as one kernel.

    @cached_property
    def _copies(self) -> dict[str, Tensor]:
        """Memory for the weights in `dtype`; copies, for Adam changes a layer while others go on."""
        names = (name for name in self.weights if not name.startswith(KEPT_IN_FLOAT32))
        return {name: torch.empty_like(self.weights[name], dtype=self.dtype) for name in names}

    def _layers(self) -> Layers:
        torch._foreach_copy_(list(self._copies.values()), [self.weights[name] for name in self._copies])
        return arranged_layers(self.weights | self._copies)

    def _heads(self) -> Heads:
        return arranged_heads(self.weights)

    def _conv1(self, w: Layers) -> tuple[Tensor, Tensor]:
        """conv1's map (B*14*14, 32) and its windows."""
        h1 = relu_product(self._windows0[..., :9].flatten(0, 2), w.conv1, w.conv1_bias)
        return h1, self._windows1.of(h1.view(-1, 14, 14, 32))

    def _through_codes(self, h2: Tensor, heads: Heads, w: Layers) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes (B, 2Z), z's distances from the means (B, Z), linear2's map (B, 3136) and its windows."""
        codes = torch.addmm(heads.bias, h2.to(self._wide).view(len(self._eps), -1), heads.weight.t())
        mean, logvar = codes.chunk(2, dim=1)
        reach = torch.exp(logvar / 2) * self._eps
        z = (mean + reach).to(self.dtype)
        self._z[:, : z.shape[1]] = z
        h3 = relu_product(z, w.linear2.t(), w.linear2_bias)
        return codes, reach, h3, self._windows3.of(h3.view(-1, 7, 7, 64))

    def _windows_of_phases(self, phases4: Tensor) -> Tensor:
        return self._windows4.of(phases.to_map4(phases4))

    def _logits_and_slopes(self, planes: Tensor) -> Tensor:
        """The logits (B, 28, 28); puts their gradient, but for 1 / B, wherever a row of taps takes it."""
        logits = phases.to_logits(planes, self.weights["conv3.bias"])
        to_slopes = self._slopes.as_strided((len(logits), 28, 28, 4), (35 * 128, 128, 4, 3), 3 * 128 + 3)
        torch.sub(logits.sigmoid().unsqueeze(3).expand(-1, -1, -1, 4), self._x.unsqueeze(3), out=to_slopes)
        return logits

    def _back_through_conv3(self, w: Layers, phases5: Tensor) -> tuple[Tensor, Tensor]:
        """The slopes that each of deconv2's pixels has a part in (B*16*16*4, 16), and the gradient at its phases."""
        around = self._slopes.unfold(1, 4, 1).permute(0, 1, 2, 4, 3).reshape(-1, 16, 2, 16, 2, 16).transpose(2, 3)
        around = around.reshape(-1, 16)
        d5 = (around @ w.mirrored).div_(len(self._eps))
        return around, aten.threshold_backward(d5.view_as(phases5), phases5, 0)

    def _gradient_of_phases(self, d_map4: Tensor, phases4: Tensor) -> Tensor:
        """The gradient at deconv1's phases (B*8*8, 4*64) from that at its map (B, 15, 15, 64)."""
        d4 = phases.shuffled(F.pad(d_map4, (0, 0, 0, 1, 0, 1)).view(-1, 8, 2, 8, 2, 64))
        masked: Tensor = aten.threshold_backward(d4.view_as(phases4), phases4, 0)
        return masked

    def _back_through_codes(
        self,
        d_map3: Tensor,
        h3: Tensor,
        linear2: Tensor,
        codes: Tensor,
        reach: Tensor,
        kl_weight: Tensor,
        heads: Tensor,
        h2: Tensor,
        /,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients before linear2's ReLU (B, 3136), at the codes (B, 2Z) and before conv2's ReLU (B*7*7, 64)."""
        d3 = aten.threshold_backward(d_map3.view_as(h3), h3, 0)
        dz = (d3 @ linear2.t()).to(self._wide)
        mean, logvar = codes.chunk(2, dim=1)
        of_kl = kl_weight / len(codes) * torch.cat([mean, torch.expm1(logvar) / 2], 1)
        d_codes = of_kl + torch.cat([dz, dz * reach / 2], 1)
        return d3, d_codes, aten.threshold_backward((d_codes @ heads).to(self.dtype).view_as(h2), h2, 0)

    def _store_at_codes(self, h2: Tensor, d_codes: Tensor, d3: Tensor) -> None:
        """The gradients of heads and linear2."""
        of_heads = (d_codes.t() @ h2.to(self._wide).view(len(d_codes), -1)).view(-1, 49, 64).transpose(1, 2)
        means, logvars = of_heads.chunk(2)
        self._store("linear1mean.weight", means)
        self._store("linear1logvar.weight", logvars)
        means, logvars = d_codes.sum(0).chunk(2)
        self._store("linear1mean.bias", means)
        self._store("linear1logvar.bias", logvars)
        of_linear2, z_dim = d3.t() @ self._z, len(means)  # (3136, Z and more)
        self._store("linear2.weight", of_linear2[:, :z_dim].view(49, 64, -1).transpose(0, 1))
        self._store("linear2.bias", of_linear2[:, z_dim].view(49, 64).t())

    def _store_conv1(self, d_map1: Tensor, h1: Tensor, windows0: Tensor) -> None:
        """Its gradients, from that at its map before the ReLU's part, and windows with ones behind them."""
        d1 = aten.threshold_backward(d_map1.view_as(h1), h1, 0)
        of_conv1 = d1.t() @ windows0.view(-1, 16)
        self._store("conv1.weight", of_conv1[:, :9])
        self._store("conv1.bias", of_conv1[:, 9])

    def _store(self, name: str, gradient: Tensor) -> None:
        self.gradients[name].copy_(gradient.reshape(self.gradients[name].shape))

    def _store_deconvolution(self, name: str, d: Tensor, windows: Windows) -> None:
        """The gradients of a layer that is computed behind `as_convolution`, from d (B * H * W, 4 * O)."""
        outputs = len(self.weights[f"{name}.bias"])
        rows = (windows.rows.t() @ d).view(-1, 4, outputs)  # (4 taps * C, and more; phases; O)
        weight = rows[:256].flatten(0, 1).index_select(0, self._places).view(64, 3, 3, outputs)
        self._store(f"{name}.weight", weight.permute(0, 3, 1, 2))
        self._store(f"{name}.bias", rows[256:260].diagonal().sum(1))


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
