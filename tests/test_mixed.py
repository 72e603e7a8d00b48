"""Mixed precision: what is bfloat16, what stays float32, and that it is what torch's autocast computes."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Tutorial
from torch.func import functional_call

from vaecli.engine import new_model
from vaecli.loss import negative_elbo
from vaecli.mixed import in_bf16
from vaecli.model import Gaussian


def test_codes_and_logits_stay_float32() -> None:
    model = new_model(2, seed=0).train()
    weights = in_bf16(model)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    logits, posterior = functional_call(model, weights, (torch.rand(2, 1, 28, 28),))
    assert {logits.dtype, posterior.mean.dtype, posterior.logvar.dtype} == {torch.float32}


def test_gradients_are_those_of_autocast_and_torchs_own_layers() -> None:
    model, plain = new_model(2, seed=0).train(), Tutorial(2)
    plain.load_state_dict(model.state_dict())
    images, eps = torch.rand(20, 1, 28, 28), torch.randn(20, 2)
    logits, posterior = functional_call(model, in_bf16(model), (images, eps))
    negative_elbo(logits, posterior, images).loss().mean().backward()  # type: ignore[no-untyped-call]

    with torch.autocast("cpu", torch.bfloat16):
        h = F.relu(plain.conv2(F.relu(plain.conv1(images))))
        with torch.autocast("cpu", enabled=False):
            h = h.float().flatten(1)
            codes = Gaussian(plain.linear1mean(h), plain.linear1logvar(h))
        h = F.relu(plain.linear2(codes.sample(eps))).view(-1, 64, 7, 7)
        theirs = plain.conv3(F.relu(plain.deconv2(F.relu(plain.deconv1(h))))).float()
    negative_elbo(theirs, codes, images).loss().mean().backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(posterior.mean, codes.mean, rtol=0, atol=1e-6)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.dtype == torch.float32
        assert (one.grad - other.grad).norm() < 0.1 * other.grad.norm(), name  # seen: 0.04 at most


@pytest.mark.parametrize("training", [True, False])
def test_a_notebook_may_train_under_autocast(training: bool) -> None:
    model, plain = (new_model(2, seed=0).train(training) for _ in range(2))
    images, eps = torch.rand(20, 1, 28, 28), torch.randn(20, 2)
    for each, mixed in ((model, True), (plain, False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits, posterior = each(images, eps)
        negative_elbo(logits.float(), posterior, images).loss().mean().backward()  # type: ignore[no-untyped-call]
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() < 0.1 * other.grad.norm(), name
