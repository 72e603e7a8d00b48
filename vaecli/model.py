"""A convolutional VAE for 28x28 grey images (Kingma & Welling, "Auto-Encoding Variational Bayes", 2013).

    encoder q(z|x)   images (B, 1, 28, 28) in [0, 1] -> mean, log-variance (B, Z)
    sample           z = mean + exp(logvar / 2) * eps, eps ~ N(0, I)
    decoder p(x|z)   z (B, Z) -> logits (B, 1, 28, 28); the pixels' probabilities are their sigmoid

The names of the layers are the names in every weights file.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaecli import phases
from vaecli.layers import ConvolutionToOne, Deconvolution, MapLinear


class Gaussian(NamedTuple):
    """A batch of diagonal Gaussians.

    The encoder yields the logarithm of the variance: it may be any real number, so the layer needs
    no constraint, the variance is positive by construction, and the KL term needs no `log`.
    """

    mean: Tensor  # (B, Z)
    logvar: Tensor  # (B, Z)

    def sample(self, eps: Tensor | None = None) -> Tensor:
        """z (B, Z), reparameterised so that gradients reach mean and logvar.

        One Monte Carlo sample an image is enough: averaged over a batch of 100 the estimator's
        noise is small beside that of the choice of images (section 2.3 of the paper). `eps` (B, Z)
        is standard normal noise; without it, it is drawn on the device where the tensors live.
        """
        if eps is None:
            eps = torch.randn_like(self.mean)
        return self.mean + torch.exp(self.logvar / 2) * eps


class ConvVAE(nn.Module):
    """The tutorial's network: 96,677 parameters for z_dim 2, 115,497 for z_dim 4.

    Arguments:
        z_dim: dimensions of the latent space, at least 1.

    Example:
        >>> model = ConvVAE(z_dim=2)
        >>> logits, posterior = model(torch.rand(5, 1, 28, 28))
        >>> logits.shape, posterior.mean.shape
        (torch.Size([5, 1, 28, 28]), torch.Size([5, 2]))
    """

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        if z_dim < 1:
            raise ValueError(f"z_dim must be at least 1, not {z_dim}")
        self.z_dim = z_dim
        # Whether ReLUs overwrite what the layers give, which a hook may have kept; `engine.prepare` says yes.
        self.in_place = False
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1)
        self.linear1mean = MapLinear(64 * 7 * 7, z_dim)
        self.linear1logvar = MapLinear(64 * 7 * 7, z_dim)
        self.linear2 = nn.Linear(z_dim, 64 * 7 * 7)
        self.deconv1 = Deconvolution(64, 64, kernel_size=3, stride=2)
        self.deconv2 = Deconvolution(64, 32, kernel_size=3, stride=2)
        # The transposed convolutions land on 31x31, never on 28; 31 - 4 + 1 = 28 does.
        self.conv3 = ConvolutionToOne(32, 1, kernel_size=4)

    def encode(self, images: Tensor) -> Gaussian:
        """Posterior q(z|x) of each image: (B, 1, 28, 28) in [0, 1] -> mean and logvar (B, Z).

        Raises TypeError for integers, whose greys are 0 to 255, and ValueError for another shape.
        """
        if not images.is_floating_point() and images.dtype != torch.bool:
            raise TypeError(f"images are {images.dtype}, but greys are floats in [0, 1]: divide bytes by 255")
        if images.shape[1:] != (1, 28, 28):
            raise ValueError(f"images are {tuple(images.shape)}, not (B, 1, 28, 28)")
        h = F.relu(self.conv1(images.to(self.conv1.weight.dtype)), self.in_place)  # (B, 32, 14, 14)
        h = F.relu(self.conv2(h), self.in_place)  # (B, 64, 7, 7)
        h = h.to(self.linear1mean.weight.dtype)  # codes stay float32 where the convolutions are bf16
        return Gaussian(self.linear1mean(h), self.linear1logvar(h))

    def decode(self, z: Tensor) -> Tensor:
        """Logits of the pixels given codes: (B, Z) -> (B, 1, 28, 28), as exact as the weights, in z's own type."""
        if not z.is_floating_point():
            z = z.float()  # codes typed by hand; logits are no integers
        if z.device.type == "cuda" and z.dim() == 2 and torch.is_inference_mode_enabled():  # pragma: no cover-cuda
            # Not under `no_grad`, where there are forward-mode derivatives.
            h = z.to(self.linear2.weight.dtype)
            return phases.logits(self.linear2, self.deconv1, self.deconv2, self.conv3, h).to(z.dtype)
        h = F.relu(self.linear2(z.to(self.linear2.weight.dtype)), self.in_place)  # (B, 3136)
        h = h.view(-1, 64, 7, 7)  # (B, 64, 7, 7)
        h = F.relu(self.deconv1(h), self.in_place)  # (B, 64, 15, 15)
        h = F.relu(self.deconv2(h), self.in_place)  # (B, 32, 31, 31)
        logits: Tensor = self.conv3(h)  # (B, 1, 28, 28)
        return logits.to(z.dtype)

    def forward(self, images: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Gaussian]:
        """Encode, sample one z an image, decode: logits (B, 1, 28, 28) and the posterior."""
        posterior = self.encode(images)
        return self.decode(posterior.sample(eps)), posterior
