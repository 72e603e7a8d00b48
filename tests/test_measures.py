"""Measures beyond the loss, against closed forms, numerical integration and plain code."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DIGITS, FEW, TINY, Invoke, Notes, assert_one_line
from test_hostile import SOAKING
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal

from vaecli import checkpoint, data, engine
from vaecli.cli import main
from vaecli.errors import DataError, UsageError
from vaecli.loss import kl
from vaecli.measures import importance_bound, knn_accuracy, latent_usage, log_likelihood
from vaecli.metadata import Metadata
from vaecli.model import ConvVAE, Gaussian
from vaecli.run import Settings
from vaecli.services.evaluate import evaluate
from vaecli.services.resume import Trained
from vaecli.services.train import train

CPU = torch.device("cpu")
slow = pytest.mark.skipif(not SOAKING, reason="minutes of decoding, for make soak: SOAK_FUZZ=1")


def learned_model(z_dim: int, folder: Path) -> ConvVAE:
    """A model trained until it uses its latent space."""
    settings = Settings(z_dim=z_dim, epochs=3, lr=0.003, **TINY | {"batch_size": 10})
    result = train(settings, str(folder / "run"))
    assert result is not None
    return engine.prepare(checkpoint.load(result.checkpoint, CPU)[0], CPU)


def lively(trained: Trained) -> tuple[ConvVAE, Metadata]:
    """A model whose codes vary: two epochs on 500 digits do not get so far."""
    model, metadata = checkpoint.load(trained.checkpoint, CPU)
    with torch.no_grad():
        model.linear1mean.weight *= 30
    return model, metadata


def log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    density: Tensor = distribution.log_prob(value)
    return density


@torch.inference_mode()
def integrated(model: ConvVAE, images: Tensor, finer: float) -> Tensor:
    """log p(x) (N,) summed over a grid of z in float64, `finer` than the smallest posterior deviation."""
    posterior = engine.encode(model, images, CPU)
    step = float(torch.exp(posterior.logvar / 2).min()) / finer
    axis = torch.arange(-6, 6, step)
    x = engine.to_unit(images, CPU).flatten(1).double()
    total = torch.full((len(images),), -math.inf, dtype=torch.float64)
    for z in torch.cartesian_prod(*[axis] * model.z_dim).view(-1, model.z_dim).split(1000):  # type: ignore[no-untyped-call]
        (logits,) = engine.by_chunks(CPU, lambda z: [model.decode(z).flatten(1)], z)
        log_joint = x @ logits.double().T - F.softplus(logits.double()).sum(1)  # (N, grid)
        log_joint += log_prob(Normal(0.0, 1.0), z.double()).sum(1)
        total = torch.logaddexp(total, torch.logsumexp(log_joint, dim=1))
    return total + model.z_dim * math.log(step)


@pytest.mark.parametrize(
    ("z_dim", "count", "few", "many"),
    [(1, 25, 10, 500), pytest.param(2, 100, 50, 5000, marks=[pytest.mark.soak, slow])],
)
def test_bound_approaches_the_integrated_likelihood_from_below(
    digits: data.Split, tmp_path: Path, z_dim: int, count: int, few: int, many: int
) -> None:
    model, images = learned_model(z_dim, tmp_path), digits.images[:count]
    exact = integrated(model, images, finer=2)
    elbo = -engine.evaluate(model, images, seed=0, device=CPU, samples=50).loss().double()
    one, some, best = (log_likelihood(model, images, draws=draws, seed=0, device=CPU) for draws in (1, few, many))

    def mean_and_error(difference: Tensor) -> tuple[float, float]:
        return float(difference.mean()), float(difference.std()) / math.sqrt(count)

    noise, error = mean_and_error(one - elbo)
    assert noise == pytest.approx(0, abs=3 * error)  # one draw is the ELBO, with its noise
    assert float(elbo.mean()) < float(some.mean()) < float(best.mean())
    gap, error = mean_and_error(exact - best)
    assert -3 * error < gap < 0.05


def test_bound_of_a_linear_gaussian_is_its_closed_form() -> None:
    """x = W z + b + noise: log p(x) is known, and each draw from the true posterior gives it exactly."""
    weight, shift, deviation = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64), 0.7
    weight, _ = torch.linalg.qr(weight)  # orthogonal columns: a diagonal posterior
    x = torch.randn(40, 6, dtype=torch.float64)
    covariance = weight @ weight.T + deviation**2 * torch.eye(6, dtype=torch.float64)
    exact = log_prob(MultivariateNormal(shift, covariance), x)

    def of_codes(z: Tensor) -> Tensor:
        return log_prob(Normal(z @ weight.T + shift, deviation), x).sum(1)

    variance = 1 / (1 + 1 / deviation**2)
    mean = variance / deviation**2 * (x - shift) @ weight
    posterior = Gaussian(mean, torch.full_like(mean, math.log(variance)))

    def bound(posterior: Gaussian, draws: int) -> Tensor:
        return importance_bound(posterior, of_codes, lambda draw: torch.randn_like(mean), draws)

    torch.testing.assert_close(bound(posterior, 1), exact)
    off = Gaussian(posterior.mean + 0.2, posterior.logvar + 0.5)  # a posterior that is not the true one
    few, many = (exact - bound(off, draws) for draws in (2, 2000))
    assert float(few.mean()) > 0.05
    assert float(many.mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("draws", [1, 2, 3, 7, 8])
def test_weights_are_right_on_average_whatever_the_draws(draws: int) -> None:
    """With p(x|z) = 1 the integral is 1: proposals that are used more often than others count as much more."""
    torch.manual_seed(1)
    posterior = Gaussian(torch.full((100_000, 2), 0.3), torch.full((100_000, 2), -0.1))
    bound = importance_bound(
        posterior, lambda z: torch.zeros(len(z)), lambda draw: torch.randn_like(posterior.mean), draws
    )
    weights = bound.exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.01
    assert float(weights.mean()) == pytest.approx(1, abs=4 * error)


def test_usage_is_that_of_all_images(trained: Trained, digits: data.Split) -> None:
    model, _ = lively(trained)
    many = digits.images.repeat(8, 1, 1)  # more than a block
    usage = latent_usage(model, many, CPU)
    posterior = engine.encode(model, many, CPU)
    torch.testing.assert_close(usage.variance, posterior.mean.double().var(0, correction=0), rtol=1e-5, atol=1e-8)
    assert float(usage.kl_per_dim.sum()) == pytest.approx(float(kl(posterior).mean()), rel=1e-5)
    assert usage.active_units() == 2


def test_neighbours_vote_and_the_nearer_ones_break_ties() -> None:
    codes, labels = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([3, 5, 5, 9])
    queries = torch.tensor([[0.1], [0.1], [0.1], [9.0]])
    for neighbours, votes in ((1, [3, 3, 3, 9]), (2, [3, 3, 3, 9]), (3, [5, 5, 5, 5])):
        answers = torch.tensor(votes)
        assert knn_accuracy(codes, labels, queries, answers, neighbours) == 1
        assert knn_accuracy(codes, labels, queries, answers + 1, neighbours) == 0


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_of_equal_votes_as_near_the_nearest_decides(first: int, second: int) -> None:
    """Not the label's number, and not what rounding does to the sums."""
    codes, labels = torch.arange(4.0)[:, None], torch.tensor([first, second, second, first])
    assert knn_accuracy(codes, labels, torch.tensor([[-1.0]]), torch.tensor([first]), 4) == 1
    codes, labels = torch.arange(10.0)[:, None], torch.arange(2, 12)
    labels[[0, 7]], labels[[2, 5]] = first, second  # in float64 the second sum is larger by its rounding
    assert knn_accuracy(codes, labels, torch.tensor([[-1.0]]), torch.tensor([first]), 10) == 1


def test_a_vote_counts_more_than_all_nearness() -> None:
    codes, labels = torch.arange(5.0)[:, None], torch.tensor([0, 0, 1, 1, 1])
    assert knn_accuracy(codes, labels, torch.tensor([[-1.0]]), torch.tensor([1]), 5) == 1


def test_a_posterior_too_sure_of_itself_misleads_no_bound() -> None:
    """z ~ N(0, 1), x ~ N(z, 0.05), x = 2; q(z|x) is two deviations off the true posterior and a quarter as wide."""
    x, deviation = torch.tensor(2.0), 0.05
    q = Gaussian(torch.full((2000, 1), 1.9), torch.full((2000, 1), 2 * math.log(deviation / 4)))
    bound = importance_bound(
        q, lambda z: log_prob(Normal(z[:, 0].double(), deviation), x), lambda draw: torch.randn(2000, 1), 200
    )
    exact = float(log_prob(Normal(0.0, math.hypot(1, deviation)), x))
    assert float(bound.mean()) == pytest.approx(exact, abs=0.1)


def test_what_is_reported_is_what_was_measured(trained: Trained, digits: data.Split) -> None:
    model, _ = checkpoint.load(trained.checkpoint, CPU)
    result = evaluate(trained.checkpoint, importance_samples=3, knn=7, seed=2)
    bound = log_likelihood(model, digits.images, draws=3, seed=2, device=CPU)
    assert result.log_likelihood == pytest.approx(float(bound.mean()), abs=1e-4)
    assert result.log_likelihood_se == pytest.approx(float(bound.double().std()) / math.sqrt(150), rel=1e-4)
    train_split = data.load(str(DIGITS), "train", None, lambda text: None)
    means = [engine.encode(model, split.images, CPU).mean for split in (train_split, digits)]
    assert train_split.labels is not None
    assert digits.labels is not None
    expected = knn_accuracy(means[0], train_split.labels, means[1], digits.labels, 7)
    assert result.knn_accuracy == expected
    assert expected != knn_accuracy(means[1], digits.labels, means[1], digits.labels, 7)


def test_draws_differ_from_block_to_block(trained: Trained, many: data.Split) -> None:
    model, _ = checkpoint.load(trained.checkpoint, CPU)
    arguments: dict[str, Any] = {"draws": 2, "seed": 0, "device": CPU}
    second = log_likelihood(model, many.images, **arguments)[1000:]
    assert not torch.isclose(second, log_likelihood(model, many.images[1000:], **arguments), atol=1e-3).any()


def test_what_is_not_asked_for_is_absent(ckpt: str, invoke: Invoke) -> None:
    plain = json.loads(invoke("test", ckpt, "--json").stdout)
    assert not {"log_likelihood", "log_likelihood_se", "importance_samples", "knn", "knn_accuracy"} & plain.keys()
    assert plain["samples"] == 1
    assert sum(plain["kl_per_dim"]) == pytest.approx(plain["kl"], abs=1e-4)
    more = json.loads(invoke("test", ckpt, "--json", "--samples", 5, "--importance-samples", 20, "--knn", 3).stdout)
    assert plain.keys() < more.keys()
    assert more["kl"] == plain["kl"]
    assert more["loss"] == pytest.approx(plain["loss"], abs=3 * plain["loss_se"])
    assert more["loss"] != plain["loss"]
    assert -more["log_likelihood"] < more["loss"]
    assert more["log_likelihood_se"] > 0
    assert 0.1 < more["knn_accuracy"] <= 1
    lines = dict(line.split("\t") for line in invoke("test", ckpt).stdout.splitlines())
    assert [float(value) for value in lines["kl_per_dim"].split()] == pytest.approx(plain["kl_per_dim"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--knn", "3", "--split", "train"], 2), (["--knn", "10000"], 1), (["--knn", "0"], 2), (["--samples", "0"], 2)],
)
def test_impossible_measures_are_one_line(
    ckpt: str, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert main(["test", ckpt, "-q", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_one_line(captured.err)


@pytest.mark.parametrize("counts", [{"samples": -1}, {"importance_samples": 0}, {"knn": -3}])
def test_a_notebooks_counts_are_at_least_1(ckpt: str, counts: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        evaluate(ckpt, **counts)  # type: ignore[arg-type]


@pytest.mark.parametrize("lacking", ["training", "test"])
def test_neighbours_need_the_labels_of_both_splits(trained: Trained, digits: data.Split, lacking: str) -> None:
    images, labels = digits.images[:10].numpy(), np.zeros(10, np.int64)
    labelled: dict[str, Any] = {"training": {"test_labels": labels}, "test": {"labels": labels}}[lacking]
    np.savez("some.npz", images=images, test_images=images, **labelled)
    with pytest.raises(DataError, match=f"The {lacking} images of some.npz have no labels"):
        evaluate(trained.checkpoint, dataset="some.npz", knn=1)


@pytest.mark.parametrize(("dead", "words"), [(2, "has collapsed"), (1, "Active dimensions: 1 of 2.")])
def test_unused_dimensions_are_said_in_plain_words(trained: Trained, tmp_path: Path, dead: int, words: str) -> None:
    model, metadata = lively(trained)
    checkpoint.save(str(tmp_path / "lively.safetensors"), dict(model.named_parameters()), metadata)
    with torch.no_grad():
        for parameter in model.linear1mean.parameters():
            parameter[:dead] = 0
    checkpoint.save(str(tmp_path / "dead.safetensors"), dict(model.named_parameters()), metadata)
    notes = Notes()
    result = evaluate(str(tmp_path / "dead.safetensors"), observer=notes)
    assert result.active_units == 2 - dead
    assert any(words in note for note in notes.heard)
    assert evaluate(str(tmp_path / "lively.safetensors"), observer=notes).active_units == 2
    assert len(notes.heard) == 1


def test_the_word_at_collapse_advises_what_can_be_done(trained: Trained, tmp_path: Path) -> None:
    """A cosine schedule cannot be extended, and images of another data set say little of the model."""
    model, metadata = checkpoint.load(trained.checkpoint, CPU)
    with torch.no_grad():
        for parameter in model.linear1mean.parameters():
            parameter.zero_()
    path, notes = str(tmp_path / "dead.safetensors"), Notes()
    cosine = replace(metadata.training, lr_schedule="cosine")
    for training, in_run in ((metadata.training, False), (metadata.training, True), (cosine, True)):
        if in_run:
            Path(tmp_path, "state.safetensors").touch()
        checkpoint.save(path, dict(model.named_parameters()), replace(metadata, training=training))
        evaluate(path, observer=notes)
    evaluate(path, dataset=str(FEW), observer=notes)
    alone, constant, cosines, foreign = notes.heard
    assert f"Train on with 'vae train --resume -o {tmp_path}'" in constant
    for note in (alone, cosines):
        assert "--resume" not in note
        assert note.endswith("Train anew with another -o and another --seed or a smaller --beta.")
    assert foreign == f"All images of {FEW} get nearly the same code."
