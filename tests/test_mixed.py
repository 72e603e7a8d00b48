"""Mixed precision: what is bfloat16, what stays float32, and that it is what torch's autocast computes."""

import torch
import torch.nn.functional as F
from torch.func import functional_call

from vaecli.engine import new_model
from vaecli.mixed import in_bf16


def test_codes_logits_and_gradients_stay_float32() -> None:
    model = new_model(2, seed=0).train()
    weights = in_bf16(model)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    logits, posterior = functional_call(model, weights, (torch.rand(2, 1, 28, 28),))
    assert {logits.dtype, posterior.mean.dtype, posterior.logvar.dtype} == {torch.float32}
    (logits.sum() + posterior.logvar.sum()).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.any()


def test_it_is_what_autocast_computes() -> None:
    """In torch's own layers, bit by bit as far as the layers are the same."""
    model = new_model(2, seed=0)
    images = torch.rand(5, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        h = F.relu(model.conv2(F.relu(model.conv1(images))))
    h = h.float().flatten(1)
    posterior = functional_call(model, in_bf16(model), (images,))[1]
    torch.testing.assert_close(posterior.mean, model.linear1mean(h), rtol=0, atol=1e-6)
    torch.testing.assert_close(posterior.logvar, model.linear1logvar(h), rtol=0, atol=1e-6)
    assert not torch.allclose(posterior.mean, model.encode(images).mean, rtol=0, atol=1e-6)
