"""The negative ELBO of a VAE with Bernoulli pixels and a Gaussian posterior, in nats per image.

Kingma & Welling, "Auto-Encoding Variational Bayes" (2013): equation 10 with one Monte Carlo sample
(L = 1), and appendix B for the KL term in closed form.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from vaecli.model import Gaussian


class Terms(NamedTuple):
    """The two terms of the negative ELBO, one number an image, reduced by whoever needs a mean."""

    reconstruction: Tensor  # (B,) nats per image
    kl: Tensor  # (B,) nats per image

    def loss(self, kl_weight: float | Tensor = 1.0) -> Tensor:
        """Negative ELBO of each image (B,); with another weight of the KL term an objective, and no ELBO."""
        return self.reconstruction + kl_weight * self.kl


def reconstruction(logits: Tensor, images: Tensor) -> Tensor:
    """-log p(x|z) of each image (B,): binary cross-entropy summed over the pixels.

    It works on logits (B, 1, 28, 28), so it stays finite where a pixel's probability saturates,
    which `log(sigmoid(...))` does not. Grey pixels stay grey: the cross-entropy is linear in its
    target, so the number is the expectation over pixels drawn as 0 or 1 with the grey value's
    probability.
    """
    return F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(dim=(1, 2, 3))


def kl_per_dim(posterior: Gaussian) -> Tensor:
    """KL(q(z|x) || N(0, I)) of each image and dimension (B, Z), in closed form (appendix B)."""
    mean, logvar = posterior
    return -0.5 * (1 + logvar - mean.square() - logvar.exp())


def kl(posterior: Gaussian) -> Tensor:
    """KL(q(z|x) || N(0, I)) of each image (B,): over dimensions that are independent it adds up."""
    return kl_per_dim(posterior).sum(dim=1)


def negative_elbo(logits: Tensor, posterior: Gaussian, images: Tensor) -> Terms:
    """Both terms for images (B, 1, 28, 28) in [0, 1] and one sample's logits of the same shape."""
    return Terms(reconstruction(logits, images), kl(posterior))
