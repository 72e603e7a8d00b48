"""Measures beyond the loss, against closed forms, numerical integration and plain code."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, Invoke, assert_one_line
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal

from vaecli import checkpoint, data, engine
from vaecli.cli import main
from vaecli.loss import kl
from vaecli.measures import importance_bound, knn_accuracy, latent_usage, log_likelihood
from vaecli.model import ConvVAE, Gaussian
from vaecli.run import Settings
from vaecli.services import Observer
from vaecli.services.evaluate import evaluate
from vaecli.services.resume import Trained
from vaecli.services.train import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def one_dim(tmp_path_factory: pytest.TempPathFactory) -> ConvVAE:
    """A model with a single latent dimension, trained until it uses it."""
    settings = Settings(z_dim=1, epochs=8, **TINY | {"batch_size": 10})  # type: ignore[arg-type]
    result = train(settings, str(tmp_path_factory.mktemp("one") / "run"))
    assert result is not None
    return engine.prepare(checkpoint.load(result.checkpoint, CPU)[0], CPU)


def lively(trained: Trained) -> tuple[ConvVAE, checkpoint.Metadata]:
    """A model whose codes vary: two epochs on 500 digits do not get so far."""
    model, metadata = checkpoint.load(trained.checkpoint, CPU)
    with torch.no_grad():
        model.linear1mean.weight *= 30
    return model, metadata


def log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    density: Tensor = distribution.log_prob(value)
    return density


def integrated(model: ConvVAE, images: Tensor) -> Tensor:
    """log p(x) (N,) of a model with one latent dimension, summed over a grid of z in float64."""
    posterior = engine.encode(model, images, CPU)
    step = float(torch.exp(posterior.logvar / 2).min()) / 4  # finer than any posterior
    grid = torch.arange(-6, 6, step)[:, None]
    with torch.inference_mode():
        logits = torch.cat([model.decode(z) for z in torch.split(grid, 500)]).flatten(1).double()
    x = engine.to_unit(images, CPU).flatten(1).double()
    log_likelihoods = x @ logits.T - F.softplus(logits).sum(1)  # (N, grid)
    prior = log_prob(Normal(0.0, 1.0), grid[:, 0].double()) + math.log(step)
    return torch.logsumexp(log_likelihoods + prior, dim=1)


def test_bound_approaches_the_integrated_likelihood_from_below(one_dim: ConvVAE, digits: data.Split) -> None:
    images = digits.images[:50]
    exact = integrated(one_dim, images)
    elbo = -engine.evaluate(one_dim, images, seed=0, device=CPU, samples=50).loss().double()
    gaps = [exact - elbo]
    for draws in (1, 10, 300):
        gaps.append(exact - log_likelihood(one_dim, images, draws=draws, seed=0, device=CPU))
    means = [float(gap.mean()) for gap in gaps]
    errors = [float(gap.std()) / math.sqrt(len(gap)) for gap in gaps]
    assert means[0] > 0
    assert means[0] == pytest.approx(means[1], abs=3 * errors[1])  # one draw is the ELBO, with its noise
    assert means[0] > means[2] > means[3]
    assert means[3] > -3 * errors[3]
    # The median: of an image that the encoder does not know, no number of draws finds the codes.
    assert float(gaps[3].median()) == pytest.approx(0, abs=0.05)


def test_bound_of_a_linear_gaussian_is_its_closed_form() -> None:
    """x = W z + b + noise: log p(x) is known, and each draw from the true posterior gives it exactly."""
    torch.manual_seed(0)
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
        return importance_bound(posterior, of_codes, (torch.randn_like(mean) for _ in range(draws)))

    torch.testing.assert_close(bound(posterior, 1), exact)
    off = Gaussian(posterior.mean + 0.2, posterior.logvar + 0.5)  # a posterior that is not the true one
    few, many = (exact - bound(off, draws) for draws in (2, 2000))
    assert float(few.mean()) > 0.05
    assert float(many.mean()) == pytest.approx(0, abs=0.02)


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


@pytest.mark.parametrize(("dead", "words"), [(2, "has collapsed"), (1, "1 of the 2 dimensions tell nothing")])
def test_unused_dimensions_are_said_in_plain_words(trained: Trained, tmp_path: Path, dead: int, words: str) -> None:
    model, metadata = lively(trained)
    checkpoint.save(str(tmp_path / "lively.safetensors"), dict(model.named_parameters()), metadata)
    with torch.no_grad():
        for parameter in model.linear1mean.parameters():
            parameter[:dead] = 0
    checkpoint.save(str(tmp_path / "dead.safetensors"), dict(model.named_parameters()), metadata)
    heard: list[str] = []

    class Listener(Observer):
        def note(self, text: str) -> None:
            heard.append(text)

    result = evaluate(str(tmp_path / "dead.safetensors"), observer=Listener())
    assert result.active_units == 2 - dead
    assert any(words in note for note in heard)
    assert evaluate(str(tmp_path / "lively.safetensors"), observer=Listener()).active_units == 2
    assert len(heard) == 1
