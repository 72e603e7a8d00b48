"""The network is the tutorial's, to the last parameter."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import Tutorial
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from vaecli import data
from vaecli.engine import new_model, to_unit
from vaecli.loss import negative_elbo
from vaecli.model import ConvVAE, Gaussian

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_are_no_greys(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="divide bytes by 255"):
        new_model(2, seed=0)(torch.zeros(1, 1, 28, 28, dtype=dtype))


def test_pixels_may_be_true_and_false() -> None:
    model, images = new_model(2, seed=0), torch.rand(2, 1, 28, 28) < 0.5
    assert torch.equal(model.encode(images).mean, model.encode(images.float()).mean)


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 28, 28), (2, 1, 27, 27), (2, 3, 28, 28)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"not \(B, 1, 28, 28\)"):
        new_model(2, seed=0).encode(torch.zeros(shape))


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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("amx", [True, False])
def test_second_derivatives_are_those_of_torchs_own_layers(
    training: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the code, and of a penalty on the gradients of all weights."""
    monkeypatch.setattr("vaecli.layers._in_tiles", lambda h: amx)  # as with AMX, but in numbers of many digits
    ours, plain = new_model(2, seed=0).double().train(training), Tutorial(2).double()
    plain.load_state_dict(ours.state_dict())
    x, eps = torch.rand(3, 1, 28, 28, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    results = []
    for model in (ours, plain):
        inputs = [eps.requires_grad_(), *model.parameters()]
        first = torch.autograd.grad(model(x, eps)[0].sigmoid().sum(), inputs, create_graph=True)
        penalty: Tensor = sum(part.square().sum() for part in first)  # type: ignore[assignment]
        results.append(torch.autograd.grad(penalty, inputs))
    for one, other in zip(*results, strict=True):
        assert other.abs().sum() > 0
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch's own, when torch.func is first used
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("amx", [True, False])
def test_gradients_may_be_taken_image_by_image(training: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaecli.layers._in_tiles", lambda h: amx)
    model = new_model(2, seed=0).double().train(training)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    x, eps = torch.rand(3, 1, 28, 28, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], x: Tensor, eps: Tensor) -> Tensor:
        logits, posterior = torch.func.functional_call(model, weights, (x[None], eps[None]))
        return negative_elbo(logits, posterior, x[None]).loss()[0]

    gradient = torch.func.grad(loss)
    together = torch.func.vmap(gradient, (None, 0, 0))(weights, x, eps)
    for number in range(3):
        one = gradient(weights, x[number], eps[number])
        for name in weights:
            torch.testing.assert_close(together[name][number], one[name])


def test_hooks_see_every_layer_and_keep_what_they_saw() -> None:
    model, seen = new_model(2, seed=0), {}

    def keep(name: str, layer: nn.Module, given: Any, output: Tensor) -> None:
        seen[name] = output, output.detach().clone()

    for name, layer in model.named_children():
        layer.register_forward_hook(partial(keep, name))
        layer.register_full_backward_hook(lambda *given: None)
    images = torch.rand(3, 1, 28, 28, requires_grad=True)
    logits, posterior = model(images)
    negative_elbo(logits, posterior, images.detach()).loss().sum().backward()  # type: ignore[no-untyped-call]
    assert list(seen) == [name for name, _ in model.named_children()]
    for kept, then in seen.values():
        assert torch.equal(kept, then)


def test_what_hangs_on_a_layer_takes_part() -> None:
    """As pruning does, which replaces a layer's weights before each call."""
    model = new_model(2, seed=0)
    layers: tuple[Any, ...] = (model.linear1mean, model.deconv1, model.conv3)
    for layer in layers:
        prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
        layer.weight_orig.data.zero_()
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(model.encode(images).mean, model.linear1mean.bias.expand(2, 2))
    assert torch.equal(model.decode(torch.randn(2, 2))[0], model.decode(torch.randn(1, 2))[0])


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
