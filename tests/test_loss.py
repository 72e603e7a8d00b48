"""The loss is the negative ELBO in nats per image."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal, kl_divergence

from vaecli import data
from vaecli.engine import new_model, to_unit
from vaecli.loss import Terms, kl, negative_elbo, reconstruction
from vaecli.model import Gaussian

FLOATS = st.floats(-6, 6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=6))
def test_kl_is_that_of_torch_distributions(values: list[tuple[float, float]]) -> None:
    mean, logvar = torch.tensor(values, dtype=torch.float64).T[:, None]  # one image, (1, Z) each
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(torch.zeros(()), torch.ones(()))).sum(1)
    torch.testing.assert_close(kl(Gaussian(mean, logvar)), expected, rtol=1e-12, atol=1e-12)


def test_reconstruction_is_that_of_torch_distributions_on_binary_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(4, 1, 28, 28, dtype=torch.float64, generator=generator)
    pixels = torch.rand(logits.shape, generator=generator).round().double()
    expected = -Bernoulli(logits=logits).log_prob(pixels).sum((1, 2, 3))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(reconstruction(logits, pixels), expected, rtol=1e-12, atol=1e-9)


def test_reconstruction_stays_finite_for_saturated_pixels() -> None:
    logits = torch.full((1, 1, 28, 28), 1e4, requires_grad=True)
    value = reconstruction(logits, torch.zeros(1, 1, 28, 28))
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert value.item() == 1e4 * 784
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_perfect_reconstruction_costs_the_pixels_own_entropy(digits: data.Split) -> None:
    x = to_unit(digits.images, torch.device("cpu")).double()
    entropy = -(x.xlogy(x) + (1 - x).xlogy(1 - x)).sum((1, 2, 3))
    value = reconstruction(x.logit(eps=1e-15), x)
    torch.testing.assert_close(value, entropy, rtol=1e-6, atol=1e-6)


def test_terms_of_an_image_do_not_depend_on_its_batch(digits: data.Split) -> None:
    model = new_model(3, seed=0).double()
    x = to_unit(digits.images[:20], torch.device("cpu")).double()
    eps = torch.randn(20, 3, dtype=torch.float64)

    def terms(rows: slice) -> Terms:
        logits, posterior = model(x[rows], eps[rows])
        return negative_elbo(logits, posterior, x[rows])

    whole = terms(slice(20))
    parts = [terms(slice(start, start + 7)) for start in (0, 7, 14)]
    for term, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(term, torch.cat(pieces), rtol=1e-12, atol=1e-10)


def test_beta_weighs_the_kl_alone() -> None:
    terms = Terms(torch.tensor([100.0]), torch.tensor([5.0]))
    assert terms.loss().item() == 105
    assert terms.loss(kl_weight=4).item() == 120
