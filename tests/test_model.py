"""The network is the tutorial's, to the last parameter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vaecli import data
from vaecli.engine import new_model, to_unit
from vaecli.loss import negative_elbo
from vaecli.model import ConvVAE, Gaussian

CPU = torch.device("cpu")


class Tutorial(nn.Module):
    """The tutorial's two tables as a plain torch class that shares nothing with ours."""

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.linear1mean = nn.Linear(3136, z_dim)
        self.linear1logvar = nn.Linear(3136, z_dim)
        self.linear2 = nn.Linear(z_dim, 3136)
        self.deconv1 = nn.ConvTranspose2d(64, 64, 3, stride=2)
        self.deconv2 = nn.ConvTranspose2d(64, 32, 3, stride=2)
        self.conv3 = nn.Conv2d(32, 1, 4)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.relu(self.conv2(torch.relu(self.conv1(x)))).reshape(len(x), 3136)
        mean, logvar = self.linear1mean(h), self.linear1logvar(h)
        h = torch.relu(self.linear2(mean + torch.exp(logvar / 2) * eps)).reshape(len(x), 64, 7, 7)
        return self.conv3(torch.relu(self.deconv2(torch.relu(self.deconv1(h))))), mean, logvar


def test_parameter_counts_are_the_tutorials() -> None:
    counts = {z_dim: sum(p.numel() for p in ConvVAE(z_dim).parameters()) for z_dim in (2, 4)}
    assert counts == {2: 96_677, 4: 115_497}


def test_plain_class_with_our_weights_computes_the_same(digits: data.Split) -> None:
    ours, plain = new_model(4, seed=1), Tutorial(4)
    plain.load_state_dict(ours.state_dict(), strict=True)
    x, eps = to_unit(digits.images, CPU), torch.randn(len(digits.images), 4)
    logits, posterior = ours(x, eps)
    for mine, theirs in zip((logits, *posterior), plain(x, eps), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_initialisation_is_torchs_default_under_the_seed() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = new_model(3, seed=7), new_model(3, seed=7), new_model(3, seed=8)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is left alone
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c), name
    bound = 3136**-0.5  # nn.Linear: uniform within 1 / sqrt(fan_in)
    weight = first.linear1mean.weight.detach()
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound


@settings(max_examples=8, deadline=None)
@given(z_dim=st.integers(1, 20), batch=st.integers(1, 5))
def test_any_z_dim_and_batch_size(z_dim: int, batch: int) -> None:
    logits, posterior = ConvVAE(z_dim)(torch.rand(batch, 1, 28, 28))
    assert logits.shape == (batch, 1, 28, 28)
    assert posterior.mean.shape == posterior.logvar.shape == (batch, z_dim)


def test_gradients_reach_every_parameter(digits: data.Split) -> None:
    model = new_model(2, seed=0).double()
    x = to_unit(digits.images[:8], CPU).double()
    logits, posterior = model(x)
    negative_elbo(logits, posterior, x).loss().mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_gradient_is_that_of_finite_differences() -> None:
    model = new_model(2, seed=0).double()
    x, eps = torch.rand(3, 1, 28, 28, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)

    def loss() -> Tensor:
        logits, posterior = model(x, eps)
        return negative_elbo(logits, posterior, x).loss().mean()

    loss().backward()  # type: ignore[no-untyped-call]
    for parameter in (model.linear1logvar.bias, model.deconv1.bias, model.conv3.bias):
        assert parameter is not None
        assert parameter.grad is not None
        with torch.no_grad():
            parameter[0] += 1e-6
            above = loss()
            parameter[0] -= 2e-6
            below = loss()
            parameter[0] += 1e-6
        torch.testing.assert_close(parameter.grad[0], (above - below) / 2e-6, rtol=1e-6, atol=1e-7)


@torch.inference_mode()
def test_codes_may_be_whole_numbers() -> None:
    model = new_model(2, seed=0)
    z = torch.tensor([[1, -2], [0, 3]])
    assert torch.equal(model.decode(z), model.decode(z.float()))


def test_bytes_are_no_greys() -> None:
    with pytest.raises(TypeError, match="divide them by 255"):
        new_model(2, seed=0)(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))


def test_sample_is_reparameterised_normal() -> None:
    posterior = Gaussian(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2 * torch.tensor(3.0).log()]]))
    torch.testing.assert_close(posterior.sample(torch.tensor([[0.5, 1.0]])), torch.tensor([[1.5, 1.0]]))
    many = Gaussian(*(t.expand(200_000, 2) for t in posterior)).sample()
    torch.testing.assert_close(many.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(many.std(0), torch.tensor([1.0, 3.0]), rtol=0.02, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch's own, when torch.func is first used
def test_an_eval_model_has_all_of_autograd() -> None:
    """Jacobians, forward and reverse, as those who study a decoder's geometry take them."""
    model = new_model(2, seed=0).double().eval()

    def pixels(z: torch.Tensor) -> torch.Tensor:
        return model.decode(z[None])[0]

    def code(image: torch.Tensor) -> torch.Tensor:
        return model.encode(image[None]).logvar[0]

    image = torch.rand(1, 28, 28, dtype=torch.float64)
    for function, place in ((pixels, torch.randn(2, dtype=torch.float64)), (code, image)):
        torch.testing.assert_close(torch.func.jacfwd(function)(place), torch.func.jacrev(function)(place))


def test_an_eval_model_has_all_of_autograd_with_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second derivatives, too, in bf16."""
    monkeypatch.setattr("vaecli.layers.has_amx", lambda: True)
    model = new_model(2, seed=0).bfloat16().eval()
    z = torch.ones(1, 2, dtype=torch.bfloat16)
    hessian = torch.autograd.functional.hessian(lambda z: model.decode(z).sigmoid().sum(), z)  # type: ignore[no-untyped-call]
    assert hessian.abs().sum() > 0


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("z_dim", [1, 4])
def test_a_posterior_is_its_owners_to_change(z_dim: int, count: int) -> None:
    """In place, with gradients on."""
    posterior = new_model(z_dim, seed=0).encode(torch.rand(count, 1, 28, 28))
    mean = posterior.mean.detach().clone()
    posterior.logvar.clamp_(max=-1)
    assert torch.equal(posterior.mean, mean)
    assert posterior.mean.is_contiguous()
    assert posterior.logvar.is_contiguous()
