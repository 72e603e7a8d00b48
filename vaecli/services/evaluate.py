"""`vae test`: the negative ELBO of a split and what else a reviewer asks for, with standard errors."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from vaecli import data, engine, measures, reference
from vaecli.errors import DataError, UsageError, VaeError
from vaecli.images import SIDE
from vaecli.metadata import Metadata
from vaecli.run import STATE, resume_command
from vaecli.runtime import memory_errors
from vaecli.services import Observer
from vaecli.services.inputs import Opened, open_checkpoint, open_split, posterior_means


@dataclass(frozen=True)
class Evaluation:
    """Means over all images of a split in nats per image, z sampled, never the mean.

    `loss` is the negative ELBO, reconstruction + kl, unweighted. The `_se` are standard errors of
    the means over images: the deviation between images divided by the root of their number. What
    was not asked for is None, and of a single image whatever compares images.

    `log_likelihood` is the importance-weighted bound on log p(x). For grey pixels it is a lower bound
    on the mean log p of pixels drawn as 0 or 1 with the grey value's probability, no more: the loss
    is linear in the pixels, but the logarithm of a sum is not.
    """

    loss: float
    reconstruction: float
    kl: float
    loss_se: float | None
    reconstruction_se: float | None
    kl_se: float | None
    bits_per_dim: float  # loss / (784 ln 2)
    kl_per_dim: list[float]  # sums to kl
    active_units: int | None  # dimensions whose posterior mean varies over images by more than 0.01
    samples: int  # of z an image
    log_likelihood: float | None
    log_likelihood_se: float | None
    importance_samples: int | None
    knn_accuracy: float | None  # share of test labels that the nearest training means vote for
    knn: int | None  # neighbours
    images: int
    split: str
    dataset: str
    checkpoint: str
    seed: int


def evaluate(
    path: str,
    *,
    split: data.SplitName = "test",
    samples: int = 1,
    importance_samples: int | None = None,
    knn: int | None = None,
    seed: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on a split. Raises UsageError or VaeError, also for a loss that is not finite."""
    if min(count for count in (samples, importance_samples, knn) if count is not None) < 1:
        raise UsageError("Counts of samples and neighbours are at least 1. Use larger ones.")
    if knn and split == "train":
        raise UsageError("--knn looks for test images among the training images. Leave out --split train.")
    observer = observer or Observer()
    opened = open_checkpoint(path, device)
    chosen = open_split(opened, dataset, split, data_dir, observer)
    images = chosen.images
    neighbours = _training_split(opened, chosen, knn, dataset, data_dir, observer) if knn else None
    arguments: Any = {"seed": opened.seed(seed), "device": opened.device, "on_block": observer.advance}
    accuracy = bound = None
    with memory_errors(opened.device):
        observer.begin("test", len(images) * samples, long=samples > 1)
        terms = engine.evaluate(opened.model, images, samples=samples, **arguments)
        if not terms.loss().isfinite().all():
            raise VaeError(f"The loss of {opened.path} on {split} images is not finite. Use another checkpoint.")
        usage = measures.latent_usage(opened.model, images, opened.device)
        active = usage.active_units() if len(images) > 1 else None
        _note_unused(active, opened, dataset, observer)
        if knn and neighbours:
            observer.begin("nearest neighbours", len(neighbours.images) + len(images))
            accuracy = _knn_accuracy(opened, neighbours, chosen, knn, observer)
        if importance_samples:
            observer.begin("importance sampling", len(images) * importance_samples, long=True)
            bound = measures.log_likelihood(opened.model, images, draws=importance_samples, **arguments)
            engine.require_finite([bound], "likelihoods")
    means = engine.Losses.mean_of(terms)
    _note_expected(opened.metadata, chosen, means.loss, observer)
    return Evaluation(
        loss=means.loss,
        reconstruction=means.reconstruction,
        kl=means.kl,
        loss_se=_standard_error(terms.loss()),
        reconstruction_se=_standard_error(terms.reconstruction),
        kl_se=_standard_error(terms.kl),
        bits_per_dim=means.loss / (SIDE * SIDE * math.log(2)),
        kl_per_dim=usage.kl_per_dim.tolist(),
        active_units=active,
        samples=samples,
        log_likelihood=None if bound is None else float(bound.mean()),
        log_likelihood_se=None if bound is None else _standard_error(bound),
        importance_samples=importance_samples,
        knn_accuracy=accuracy,
        knn=knn,
        images=len(images),
        split=split,
        dataset=dataset or opened.metadata.data.dataset,
        checkpoint=opened.path,
        seed=opened.seed(seed),
    )


def _training_split(
    opened: Opened, test: data.Split, knn: int, dataset: str | None, data_dir: str | None, observer: Observer
) -> data.Split:
    train = open_split(opened, dataset, "train", data_dir, observer)
    for name, split in (("training", train), ("test", test)):
        if split.labels is None:
            where = dataset or opened.metadata.data.dataset
            raise DataError(f"The {name} images of {where} have no labels to compare. Leave out --knn.")
    if knn > len(train.images):
        raise DataError(
            f"--knn {knn:,} is more than there are training images ({len(train.images):,}). Use a smaller one."
        )
    return train


def _knn_accuracy(opened: Opened, train: data.Split, test: data.Split, knn: int, observer: Observer) -> float:
    assert train.labels is not None
    assert test.labels is not None
    known, asked = (posterior_means(opened, split.images, observer) for split in (train, test))
    return measures.knn_accuracy(known, train.labels, asked, test.labels, knn)


def _note_unused(active: int | None, opened: Opened, dataset: str | None, observer: Observer) -> None:
    if active == 0 and dataset is not None:  # which says little of the model
        observer.note(f"All images of {dataset} get nearly the same code.")
    elif active == 0:
        folder = os.path.dirname(opened.path) or "."
        anew = "with another -o and another --seed or a smaller --beta"
        longer = f"Train on with '{resume_command(folder)}' and a higher --epochs; if it stays so, anew {anew}."
        ends_here = opened.metadata.training.lr_schedule == "cosine" or not os.path.exists(os.path.join(folder, STATE))
        remedy = f"Train anew {anew}." if ends_here else longer
        observer.note(f"The latent space has collapsed: all images get nearly the same code. {remedy}")
    elif active and active < (z_dim := opened.model.z_dim):
        observer.note(f"Active dimensions: {active} of {z_dim}. The means of the others hardly vary between images.")


def _note_expected(metadata: Metadata, split: data.Split, loss: float, observer: Observer) -> None:
    """Where the loss falls among those of the reference runs, if there are any to compare with."""
    runs = reference.expected(metadata)
    if not runs or split.sha256() != metadata.data.test_sha256:
        return
    low, high, loss = min(runs), max(runs), round(loss, 2)  # as the runs are
    if distance := max(low - loss, loss - high, 0.0):
        usual = "as" if distance <= reference.margin(metadata.epoch) else "more than"
        place = f"{distance:.2f} {'above' if loss > high else 'below'} them, {usual} another seed or processor may be"
    else:
        place = "among them"
    observer.note(
        f"{len(runs)} runs of the tutorial's recipe gave {low:.2f} to {high:.2f} nats at z_dim {metadata.z_dim} after "
        f"epoch {metadata.epoch}; this loss is {place}."
    )


def _standard_error(values: torch.Tensor) -> float | None:
    """Of the mean of values (N,); a single value has none."""
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else None
