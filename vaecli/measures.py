"""What `vae test` measures beyond the loss: how the latent space is used, a tighter bound, and neighbours."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaecli.engine import blocks, by_chunks, encode, to_unit
from vaecli.loss import kl_per_dim, reconstruction
from vaecli.model import ConvVAE, Gaussian
from vaecli.runtime import noise

ACTIVE = 0.01  # variance of a unit's posterior mean over images (Burda et al., 2016, section 5.2)


@dataclass(frozen=True)
class Usage:
    """How a split uses the latent space, each of Z numbers in float64."""

    kl_per_dim: Tensor  # mean over images, nats
    variance: Tensor  # of the posterior means over images

    def active_units(self) -> int:
        """The dimensions that carry information about the image."""
        return int((self.variance > ACTIVE).sum())


def latent_usage(model: ConvVAE, images: Tensor, device: torch.device) -> Usage:
    """Means over uint8 images (N, 28, 28), a block at a time."""
    kl, first, second = torch.zeros(3, model.z_dim, dtype=torch.float64)
    for _, chunk in blocks(images):
        posterior = encode(model, chunk, device)
        mean = posterior.mean.double().cpu()
        kl += kl_per_dim(posterior).double().sum(0).cpu()
        first += mean.sum(0)
        second += mean.square().sum(0)
    count = len(images)
    return Usage(kl / count, second / count - (first / count).square())


def importance_bound(
    posterior: Gaussian, log_likelihood: Callable[[Tensor], Tensor], noise: Iterable[Tensor]
) -> Tensor:
    """The K-sample bound on log p(x) of each image (B,), in float64, from K draws of noise (B, Z).

    log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) with z_k ~ q(z|x) (Burda et al., 2016, equation 8), where
    `log_likelihood` gives log p(x|z) (B,) of codes z (B, Z). It is the ELBO in expectation for K = 1,
    and approaches log p(x) from below as K grows. The weights are summed as they come, so memory does
    not depend on K.
    """
    mean, logvar = posterior
    total = torch.full_like(mean[:, 0], -math.inf, dtype=torch.float64)
    draws = 0
    for eps in noise:
        draws += 1
        z = posterior.sample(eps)
        # log p(z) - log q(z|x), in which the constants cancel
        ratio = 0.5 * (eps.square() + logvar - z.square()).sum(dim=1)
        total = torch.logaddexp(total, (log_likelihood(z) + ratio).double())
    return total - math.log(draws)


@torch.inference_mode()
def log_likelihood(
    model: ConvVAE,
    images: Tensor,
    *,
    draws: int,
    seed: int,
    device: torch.device,
    on_block: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """The importance-weighted bound of each uint8 image (N, 28, 28), nats (N,), on the CPU; K = `draws`.

    It is computed a block at a time; `on_block` hears of each draw of a block.
    """
    model.eval()
    parts = []
    for block, chunk in blocks(images):
        posterior, x = encode(model, chunk, device), to_unit(chunk, device)

        def of_codes(z: Tensor, x: Tensor = x) -> Tensor:
            (cost,) = by_chunks(device, lambda z, x: [reconstruction(model.decode(z), x)], z, x)
            on_block(len(z))
            return -cost

        eps = (noise(seed, "importance", block, model.z_dim, draw)[: len(chunk)].to(device) for draw in range(draws))
        parts.append(importance_bound(posterior, of_codes, eps).cpu())
    return torch.cat(parts)


def knn_accuracy(codes: Tensor, labels: Tensor, queries: Tensor, answers: Tensor, neighbours: int) -> float:
    """The share of `queries` (M, Z) whose label `answers` (M,) the nearest of `codes` (N, Z) vote for.

    Distances are Euclidean; of labels with equal votes the one with the nearer neighbours wins.
    """
    classes = int(labels.max()) + 1
    # A nearer neighbour's vote counts a little more; all that is more stays less than one vote.
    votes = 1 + torch.arange(neighbours, 0, -1, dtype=torch.float64) / (neighbours + 1) ** 2
    right = 0
    for query, answer in zip(torch.split(queries, 100), torch.split(answers, 100), strict=True):
        distances = torch.cdist(query, codes, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(neighbours, largest=False).indices  # (B, neighbours), the nearest first
        counts = torch.zeros(len(query), classes, dtype=torch.float64)
        counts.scatter_add_(1, labels[nearest], votes.expand(len(query), -1))
        right += int((counts.argmax(dim=1) == answer).sum())
    return right / len(queries)
