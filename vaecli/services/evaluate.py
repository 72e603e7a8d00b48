"""`vae test`: the negative ELBO of a split, with standard errors."""

import math
from dataclasses import dataclass

import torch

from vaecli import data, engine
from vaecli.errors import VaeError
from vaecli.images import SIDE
from vaecli.runtime import memory_errors
from vaecli.services import Observer
from vaecli.services.inputs import open_checkpoint, open_split


@dataclass(frozen=True)
class Evaluation:
    """Means over all images of a split in nats per image, one z sampled an image, never the mean.

    `loss` is the negative ELBO, reconstruction + kl, unweighted. The `_se` are standard errors of
    the means over images: the deviation between images divided by the root of their number.
    """

    loss: float
    reconstruction: float
    kl: float
    loss_se: float
    reconstruction_se: float
    kl_se: float
    bits_per_dim: float  # loss / (784 ln 2)
    images: int
    split: str
    dataset: str
    checkpoint: str
    seed: int


def evaluate(
    checkpoint: str,
    *,
    split: data.SplitName = "test",
    seed: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on a split. Raises CheckpointError or DataError."""
    observer = observer or Observer()
    opened = open_checkpoint(checkpoint, device)
    images = open_split(opened, dataset, split, data_dir, observer).images
    observer.begin("test", len(images))
    with memory_errors(opened.device):
        terms = engine.evaluate(
            opened.model, images, seed=opened.seed(seed), device=opened.device, on_block=observer.advance
        )
    if not terms.loss().isfinite().all():
        raise VaeError(f"The loss of {opened.path} on {split} images is not finite. Use another checkpoint.")
    means = engine.Losses.mean_of(terms)
    return Evaluation(
        loss=means.loss,
        reconstruction=means.reconstruction,
        kl=means.kl,
        loss_se=_standard_error(terms.loss()),
        reconstruction_se=_standard_error(terms.reconstruction),
        kl_se=_standard_error(terms.kl),
        bits_per_dim=means.loss / (SIDE * SIDE * math.log(2)),
        images=len(images),
        split=split,
        dataset=dataset or opened.metadata.data.dataset,
        checkpoint=opened.path,
        seed=opened.seed(seed),
    )


def _standard_error(values: torch.Tensor) -> float:
    """Of the mean of values (N,); a single value has none to speak of: 0."""
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
